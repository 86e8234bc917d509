"""Images from files, as upright RGB, decoded safely."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from headwater.data.storage import StoragePath, as_path
from headwater.errors import HeadwaterError, ImageError
from headwater.files import is_file

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded: 10,000 x 10,000."""
_CONNECTIONS = 16
"""Objects of a storage that are read at a time."""
_S_MIN_SAMPLE_VALUE, _S_MAX_SAMPLE_VALUE = 340, 341  # TIFF 6.0, section 19: the values that are black and white
_SIGNED = 2  # of the TIFF tag SampleFormat
_WHITE_IS_ZERO = 0  # of the TIFF tag PhotometricInterpretation


def open_image(path: str | Path | StoragePath) -> Image.Image:
    """Read an image file as RGB, see :func:`read_image`; also from an address such as ``s3://bucket/photo.jpg``.

    Raises:
        ImageError: the file is missing or empty, or cannot be read safely.
        StorageError: object storage denies access, or cannot be reached.
    """
    path = as_path(path)
    if isinstance(path, StoragePath):
        return read_image(io.BytesIO(path.read_bytes()), str(path))
    if path.is_dir():
        raise ImageError(f"{path} is a folder; name the images in it")
    if not is_file(path):
        raise ImageError(f"{path} does not exist")
    try:
        # By its stream, not its name: Pillow maps a named TIFF into memory without its rotation, and scrambles it.
        with path.open("rb") as file:
            return read_image(file, str(path))
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error}") from error


def opened(openers: Sequence[Callable[[], Image.Image]], remote: bool) -> list[Image.Image | HeadwaterError]:
    """What each function opens, or its error; all at the same time if they are ``remote``, where each has to wait."""

    def one(opener: Callable[[], Image.Image]) -> Image.Image | HeadwaterError:
        try:
            return opener()
        except HeadwaterError as error:
            return error

    if not remote:
        return [one(opener) for opener in openers]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return list(pool.map(one, openers))


def read_image(
    file: BinaryIO, name: str, most: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Read an image as RGB, upright as its EXIF orientation says.

    Transparent parts become white, greyscale and CMYK are converted; of several frames the first is read. Deeper
    images are scaled to 8 bits by the range that the *file* has, never by the values that happen to be in it: 16-bit
    images by 65535 (a 12-bit TIFF by 4095), floating-point images by the range 0 to 1, or by the TIFF tags
    SMinSampleValue and SMaxSampleValue where the file has them.

    Args:
        file: at its beginning.
        name: what it is called in errors.
        most: pixels; a larger image is refused before it is decoded.
        formats: that are read, as Pillow calls them; ``None`` for all that it knows.

    Raises:
        ImageError: the file is empty, not a readable image, cut off, or too large; or it holds floating-point values
            outside the range, values that are not finite, or signed or 32-bit integers without those tags, whose white
            value is unknown.
    """
    if not file.read(1):
        raise ImageError(f"{name} is empty (0 bytes)")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter than none
            with Image.open(file, formats=formats) as image:
                return to_rgb(image, name, most)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is too large to decode safely ({error}); {most:,} pixels are accepted") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that can be read (JPEG, PNG, WebP, TIFF, BMP, GIF, ...; TIFFs with 8 or 16 bits "
            "per sample, or one channel of 32-bit floating point)"
        ) from error
    except Exception as error:  # on broken files decoders raise exceptions of any type
        raise ImageError(f"{name} cannot be read: {error}") from error


def to_rgb(image: Image.Image, name: str, most: int = MAX_PIXELS) -> Image.Image:
    """An image of Pillow's as :func:`read_image` returns it; arguments and errors are those."""
    width, height = image.size
    if width * height > most:
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than the {most:,} that are accepted; make it smaller first"
        )
    try:
        image.load()
        return _rgb(image, name)
    except ImageError:
        raise
    except Exception as error:  # on broken files decoders raise exceptions of any type
        raise ImageError(f"{name} cannot be read: {error}") from error


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        black, white = _range(image, name)
        values = np.asarray(ImageOps.exif_transpose(image), dtype=np.float64)
        scaled = np.clip((values - black) * (255.0 / (white - black)), 0, 255)
        return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
    if isinstance(image, TiffImageFile) and _first(image.tag_v2.get(SAMPLEFORMAT, 1)) == _SIGNED:
        raise ImageError(f"{name} holds signed 8-bit integers, whose white value is unknown; save it unsigned")
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "transparency" in image.info:
        layered = image.convert("RGBA")
        white_layer = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white_layer, layered).convert("RGB")
    return image.convert("RGB")


def _range(image: Image.Image, name: str) -> tuple[float, float]:
    """The black and the white value of a greyscale image of more than 8 bits, as its file states them."""
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    values = np.asarray(image)
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise ImageError(f"{name} holds {bad:,} values that are not finite (NaN or infinite); replace them first")
    low, high = float(values.min()), float(values.max())
    kind = "floating-point values" if image.mode == "F" else "integers"
    if image.mode.startswith("I;16"):
        black, white, source = 0.0, float(2 ** int(_first(tags.get(BITSPERSAMPLE, 16))) - 1), "its bits per sample"
    elif image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow's older name for 16 bits
        black, white, source = 0.0, 65535.0, "its 16 bits"
    elif _S_MAX_SAMPLE_VALUE in tags:
        black = float(_first(tags.get(_S_MIN_SAMPLE_VALUE, 0)))
        white, source = float(_first(tags[_S_MAX_SAMPLE_VALUE])), "its tags SMinSampleValue and SMaxSampleValue"
        if not (np.isfinite([black, white]).all() and black < white):
            raise ImageError(f"{name} states a range of {black:g} to {white:g} in {source}; that is no range")
    elif image.mode == "F":
        black, white, source = 0.0, 1.0, "what is accepted of floating point"
    else:
        raise ImageError(
            f"{name} holds signed or 32-bit integers ({low:g} to {high:g}), and does not say which value is white; "
            "save it with 8 or 16 bits, as floating point from 0 to 1, or with the TIFF tag SMaxSampleValue"
        )
    rounding = 4 * float(np.finfo(np.float32).eps) * (white - black)  # of whatever scaled the values
    if low < black - rounding or high > white + rounding:
        raise ImageError(
            f"{name} holds {kind} from {low:g} to {high:g}, outside {black:g} to {white:g} ({source}); scale them first"
        )
    inverted = tags.get(PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO  # Pillow inverts these for 8 bits only
    return (white, black) if inverted else (black, white)


def _first(value: float | tuple[float, ...]) -> float:
    """A TIFF tag's value, of which there may be one per channel."""
    return value[0] if isinstance(value, tuple) else value
