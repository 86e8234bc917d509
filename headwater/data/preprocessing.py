"""From an image to a network's input, and from a map of that input back to the image's coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from headwater.errors import InputError

_LONG = 16
"""Of images longer than this multiple of their short side, only the part that is cropped is resized."""
_LARGEST = 10_000  # the side of the largest image that is read
_SMALLEST_STD = float(torch.finfo(torch.float32).tiny)  # below it a deviation is 0, or loses digits, in float32
_BLOCK = 2**22  # values at a time while a map is laid over its image, so that memory stays bounded


@dataclass(frozen=True)
class Box:
    """A rectangle in an image, in pixels from its top left corner; not rounded to whole pixels."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Preprocessing:
    """Resize with antialiasing, crop the centre, scale to [0, 1], normalise by channel.

    Attributes:
        resize: short side after resizing, in pixels; or (height, width), whatever the image's shape; ``None`` to leave
            the image in its size.
        crop: side of the square cut from the centre, or its (height, width); ``None`` for the whole image.
        mean, std: of each channel, for images in [0, 1].
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        stretch: resize both sides to ``resize`` whatever the image's shape, as the papers do on CUB.
        corner: how the corner of the crop comes to lie on whole pixels: ``"nearest"``, as torchvision and timm do, or
            ``"down"``, as transformers does.

    >>> from PIL import Image
    >>> Preprocessing(256, 224)(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 224, 224])
    >>> Preprocessing((192, 256), None)(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 192, 256])
    """

    resize: int | tuple[int, int] | None
    crop: int | tuple[int, int] | None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    stretch: bool = False
    corner: Literal["nearest", "down"] = "nearest"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: a size or a standard deviation is not positive, or the interpolation is unknown.
        """
        sizes = [side for given in (self.resize, self.crop) if given is not None for side in _pair(given)]
        if not all(isinstance(v, int) and not isinstance(v, bool) and 0 < v <= _LARGEST for v in sizes):
            raise InputError(
                f"resize and crop must be numbers of pixels from 1 to {_LARGEST}, got {self.resize!r} and {self.crop!r}"
            )
        numbers = (*self.mean, *self.std)
        if len(self.mean) != len(self.std) or not all(isinstance(v, (int, float)) and isfinite(v) for v in numbers):
            raise InputError(
                f"mean and std must have the same number of finite values, got {self.mean!r} and {self.std!r}"
            )
        if any(isinstance(v, bool) for v in numbers) or not isinstance(self.stretch, bool):
            raise InputError(
                f"mean and std must be numbers and stretch true or false, got {self.mean!r}, {self.std!r} and "
                f"{self.stretch!r}"
            )
        if not all(v >= _SMALLEST_STD for v in self.std):
            raise InputError(f"std must be positive (at least {_SMALLEST_STD:.0e}, in float32), got {self.std!r}")
        if self.interpolation not in [mode.value for mode in InterpolationMode]:
            raise InputError(
                f"interpolation must be one of torchvision's, such as bilinear; got {self.interpolation!r}"
            )
        if self.corner not in ("nearest", "down"):
            raise InputError(f"corner must be nearest or down, got {self.corner!r}")

    def described(self) -> str:
        """In words; sizes are height x width.

        >>> Preprocessing(256, 224).described(), Preprocessing(224, 224, stretch=True).described()
        ('short side to 256, centre 224 x 224, bilinear', 'stretched to 224 x 224, bilinear')
        """
        fixed = self._fixed
        if fixed is not None:
            steps = [f"stretched to {fixed[0]} x {fixed[1]}"]
        else:
            steps = [] if self.resize is None else [f"short side to {self.resize}"]
        if self.crop is not None and _pair(self.crop) != fixed:
            steps.append("centre {} x {}".format(*_pair(self.crop)))
        return ", ".join([*(steps or ["in its own size"]), *([] if self.resize is None else [self.interpolation])])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input.

        Raises:
            InputError: they depend on the image.
        """
        size = self._fixed if self.crop is None else _pair(self.crop)
        if size is None:
            raise InputError(
                f"images are prepared in sizes that depend on their own ({self.described()}); here one size is needed: "
                "say preprocessing=Preprocessing(resize, crop)"
            )
        return size

    @property
    def is_sized(self) -> bool:
        """Whether inputs have one size, whatever the image's."""
        return self.crop is not None or self._fixed is not None

    @property
    def _fixed(self) -> tuple[int, int] | None:
        """Height and width to which every image is resized."""
        if self.resize is None or (isinstance(self.resize, int) and not self.stretch):
            return None
        return _pair(self.resize)

    def __call__(self, image: Image.Image) -> Tensor:
        """The image (RGB) as float32 ``(3, height, width)``, normalised."""
        resized = self._resized(image)
        if self.crop is not None:
            resized = self._cropped(resized, *_pair(self.crop))
        return transforms.normalize(transforms.to_tensor(resized), list(self.mean), list(self.std))

    def colours(self, x: Tensor) -> Tensor:
        """The part of the image that the network sees, red, green and blue in [0, 1], from its input ``(3, H, W)``."""
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x.detach().cpu().float() * std + mean).clamp(0, 1)

    def _resized(self, image: Image.Image) -> Image.Image:
        """The resized image; of a very long one only the cropped part (1 x 500 would become 256 x 128,000)."""
        if self.resize is None:
            return image
        width, height = image.size
        short, fixed = _pair(self.resize)[0], self._fixed
        ordinary = max(width, height) <= _LONG * min(width, height)
        if ordinary or fixed is not None or self.crop is None or max(_pair(self.crop)) > _LONG * short:
            size = [short] if fixed is None else list(fixed)
            return transforms.resize(image, size, interpolation=InterpolationMode(self.interpolation), antialias=True)
        filtered, box = Image.Resampling[self.interpolation.upper()], self.box(width, height)
        rows, columns = _pair(self.crop)
        if width > height:
            return image.resize((columns, short), filtered, (box.left, 0, box.right, height))
        return image.resize((short, rows), filtered, (0, box.top, width, box.bottom))

    def _cropped(self, image: Image.Image, rows: int, columns: int) -> Image.Image:
        """The centre of an image, with black around it where it is smaller."""
        if self.corner == "nearest":
            return transforms.center_crop(image, [rows, columns])
        left, top = self._start(image.width, columns), self._start(image.height, rows)
        return image.crop((left, top, left + columns, top + rows))

    def _start(self, length: int, cropped: int) -> int:
        """Where the crop begins on a side of the resized image; negative where it is longer."""
        half = (length - cropped) / 2
        return round(half) if self.corner == "nearest" else int(half)

    def box(self, width: int, height: int) -> Box:
        """The part of a ``width`` x ``height`` image that the network sees."""
        rows, columns = self._resized_size(width, height)
        down, across = height / rows, width / columns
        crop_rows, crop_columns = (rows, columns) if self.crop is None else _pair(self.crop)
        # The crop's corner is on the resized image's pixel grid.
        left, top = self._start(columns, crop_columns), self._start(rows, crop_rows)
        return Box(left * across, top * down, (left + crop_columns) * across, (top + crop_rows) * down)

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of a resized ``width`` x ``height`` image, as torchvision rounds them."""
        if self.resize is None:
            return height, width
        fixed, short = self._fixed, min(width, height)
        if fixed is not None:
            return fixed
        side = _pair(self.resize)[0]
        return (
            side if height <= width else int(side * height / short),
            side if width <= height else int(side * width / short),
        )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class NoImages(Preprocessing):
    """The preprocessing of a network that takes no images, or none that can be prepared: every use is an error.

    Args:
        reason: what the network takes instead, and what to call.
    """

    reason: str

    def __init__(self, reason: str) -> None:
        super().__init__(None, None, (), ())
        object.__setattr__(self, "reason", reason)

    def __repr__(self) -> str:
        return f"NoImages({self.reason!r})"

    def described(self) -> str:
        return "none"

    @property
    def size(self) -> tuple[int, int]:
        raise InputError(self.reason)

    def __call__(self, image: Image.Image) -> Tensor:
        raise InputError(self.reason)

    def box(self, width: int, height: int) -> Box:
        raise InputError(self.reason)


PIPELINES = ("crop", "stretch")
"""Preprocessing by name: ``"crop"``, the code of Otsuki et al., and ``"stretch"``, the text of both papers."""


def with_pipeline(given: Preprocessing, name: str) -> Preprocessing:
    """The papers' preprocessing, for a network's size and normalisation.

    Source of ``"crop"``: the authors' code, ``data/__init__.py``, lines 144 to 154: the short side to 8/7 of the size,
    the centre cut out. ``"stretch"``: Otsuki et al., Sec. A, "resized to a uniform dimension of 224 x 224".

    Args:
        given: the network's own.
        name: ``"crop"`` or ``"stretch"``.

    Raises:
        InputError: the name is unknown.

    >>> with_pipeline(Preprocessing(232, 224), "crop").described()
    'short side to 256, centre 224 x 224, bilinear'
    """
    if name not in PIPELINES:
        raise InputError(f"preprocessing must be one of {', '.join(PIPELINES)}, got {name!r}")
    if type(given) is not Preprocessing:
        raise InputError(f"preprocessing {name} is for networks whose images are resized, cropped and normalised alone")
    size, stretch = given.size, name == "stretch"
    whole = size[0] if size[0] == size[1] else size
    return Preprocessing(whole if stretch else int(max(size) / 0.875), whole, given.mean, given.std, stretch=stretch)


def seen(x: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """The part of a photo that the network sees, back from the network's input ``(3, H, W)``."""
    return transforms.to_pil_image(preprocessing.colours(x))


def to_image(heatmap: Tensor, box: Box, width: int, height: int, additive: bool = True) -> np.ndarray:
    """A map ``(H, W)`` laid over its image: float32 ``(height, width)``, NaN outside the network's crop.

    The map is taken as a density, interpolated bilinearly between the centres of its pixels and constant beyond the
    outermost ones. That density has the map's own sum over ``box``; each image pixel gets its integral over the pixel,
    exactly, whatever the sizes. So the result sums to the map's sum where ``box`` lies within the image, and nothing is
    shifted by half a pixel.

    Args:
        heatmap: one map, in the coordinates of the network's input.
        box: the part of the image that the network saw.
        width: of the image, in pixels.
        height: of the image, in pixels.
        additive: each image pixel gets its share of the sum; else the mean of the map over the pixel, for maps whose
            sum means nothing.
    """
    source = heatmap.detach().to("cpu", torch.float64).numpy()
    down = _edges(height, box.top, box.bottom, source.shape[0])
    across = _edges(width, box.left, box.right, source.shape[1])
    rows, columns = (
        _seen(down, box.bottom - box.top, source.shape[0]),
        _seen(across, box.right - box.left, source.shape[1]),
    )
    laid = np.full((height, width), np.nan, dtype=np.float32)
    step = max(1, _BLOCK // max(columns.stop - columns.start, source.shape[1]))
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        edges, sides = down[start : stop + 1], across[columns.start : columns.stop + 1]
        values = np.diff(_integral(np.diff(_integral(source, edges), axis=0).T, sides), axis=0).T
        laid[start:stop, columns] = values if additive else values / np.outer(np.diff(edges), np.diff(sides))
    return laid


def _edges(pixels: int, start: float, stop: float, cells: int) -> np.ndarray:
    """The ``pixels + 1`` edges of an image's pixels in units of the map's cells, ending where the map ends."""
    return ((np.arange(pixels + 1) - start) * (cells / (stop - start))).clip(0, cells)


def _seen(edges: np.ndarray, length: float, cells: int) -> slice:
    """The pixels that the map covers by more than rounding of the box, whose ``length`` is in pixels."""
    covered = np.flatnonzero(np.diff(edges) * (length / cells) > 1e-9)
    return slice(int(covered[0]), int(covered[-1]) + 1) if covered.size else slice(0, 0)


def _integral(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """From 0 to each of ``at``, of ``values`` ``(cells, ...)`` interpolated linearly along the first axis."""
    cells = len(values)
    nodes = np.concatenate([[0.0], np.arange(cells) + 0.5, [cells]])
    heights = np.concatenate([values[:1], values, values[-1:]])
    lengths = np.diff(nodes)[:, None]
    before = np.concatenate([np.zeros_like(values[:1]), np.cumsum((heights[:-1] + heights[1:]) / 2 * lengths, axis=0)])
    piece = (at + 0.5).astype(np.int64).clip(0, cells)  # the nodes lie half a cell off the integers
    along = (at - nodes[piece])[:, None]
    slope = (heights[1:] - heights[:-1]) / lengths
    return before[piece] + along * (heights[piece] + slope[piece] * along / 2)
