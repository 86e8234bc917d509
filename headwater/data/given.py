"""Images as people hold them: a file, an image of Pillow's, an array, a tensor, or the bytes of a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headwater.data.images import open_image, read_image, to_rgb
from headwater.data.storage import StoragePath, as_path
from headwater.errors import ImageError, InputError

GivenImage = str | Path | StoragePath | Image.Image | np.ndarray | Tensor | bytes | bytearray | memoryview
"""What is taken for an image: the path or address of a file, its bytes, or an image in memory."""
ACCEPTED = (
    "a file's path or bytes, an image of Pillow's, an array (H, W) or (H, W, 3), a tensor (3, H, W), uint8 or floating "
    "point from 0 to 1, or a list of these"
)
_CHANNELS = (1, 3, 4)


def check_image(image: object, name: str) -> None:
    """Check that something is an image, from its type and shape; its values are not read.

    Raises:
        InputError: it is none; the message says what is accepted.
    """
    if isinstance(image, (str, Path, StoragePath, Image.Image, bytes, bytearray, memoryview)):
        return
    if not isinstance(image, (np.ndarray, Tensor)):
        raise InputError(
            f"{name} must be {ACCEPTED}; got {type(image).__name__}. A network's own input is explained by "
            "headwater.LRP(model)(x) or headwater.load_method(name, model)(x)"
        )
    last = isinstance(image, np.ndarray)
    shape = tuple(image.shape)
    kind, order = ("an array", "(H, W) or (H, W, 3)") if last else ("a tensor", "(H, W) or (3, H, W)")
    channels = 1 if len(shape) == 2 else shape[-1 if last else 0] if len(shape) == 3 else 0
    if channels not in _CHANNELS or 0 in shape:
        hint = ""
        if len(shape) == 3 and shape[0 if last else -1] in _CHANNELS:
            turned = "array.transpose(1, 2, 0)" if last else "tensor.permute(2, 0, 1)"
            hint = f". Channels are {'last' if last else 'first'} in {kind.split()[1]}s: give {turned}"
        elif len(shape) == 4:
            hint = ". Several images are given as a list: list(images)"
        raise InputError(f"{name} is {kind} of shape {shape}, not {order}{hint}")
    floating = image.dtype.kind == "f" if isinstance(image, np.ndarray) else image.is_floating_point()
    if not floating and image.dtype not in (np.uint8, torch.uint8):
        kind = str(image.dtype).removeprefix("torch.")
        raise InputError(
            f"{name} holds {kind}, whose white value is unknown; images have uint8 from 0 to 255, or floating point "
            "from 0 to 1"
        )


def name_of(image: GivenImage, position: int | None = None) -> str:
    """What an image is called: its file, or ``image``, or in a list ``image-3``.

    >>> name_of("photos/cat.jpg"), name_of(np.zeros((2, 2)), 2)
    ('cat.jpg', 'image-3')
    """
    file = image if isinstance(image, (str, Path, StoragePath)) else getattr(image, "filename", None)
    if file:
        return as_path(file).name if not isinstance(file, bytes) else "image"
    return "image" if position is None else f"image-{position + 1}"


def path_of(image: GivenImage) -> Path | None:
    """The path of an image that is given as a file."""
    return as_path(image) if isinstance(image, (str, Path, StoragePath)) else None


def open_given(image: GivenImage, name: str) -> Image.Image:
    """An image as RGB, upright.

    Values from 0 to 1 become 8 bits, as in a file. What is given is not changed.

    Args:
        image: checked by :func:`check_image`.
        name: what it is called in errors.

    Raises:
        ImageError: a file cannot be read, or values are not finite or outside 0 to 1.
        StorageError: object storage denies access, or cannot be reached.
    """
    if isinstance(image, (str, Path, StoragePath)):
        return open_image(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return read_image(io.BytesIO(image), name)
    if isinstance(image, Image.Image):
        return to_rgb(image, name)
    if isinstance(image, Tensor):
        values = image.detach().cpu()
        array = (values.float() if values.is_floating_point() else values).numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    else:
        array = image
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return to_rgb(Image.fromarray(np.ascontiguousarray(_eight_bits(array, name))), name)


def _eight_bits(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if not np.isfinite(array).all():
        raise ImageError(f"{name} holds values that are not finite (NaN or infinite); replace them first")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise ImageError(
            f"{name} holds floating-point values from {low:g} to {high:g}, outside 0 to 1; scale them first. An input "
            "that is normalised for a network already is explained by headwater.LRP(model)(x)"
        )
    return (array * 255).round().astype(np.uint8)
