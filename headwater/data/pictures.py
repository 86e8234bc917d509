"""Pictures from files, made RGB, upright and safe to decode."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from headwater.errors import PictureError

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: 10,000 x 10,000."""


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture as RGB, upright as its EXIF orientation says.

    Transparent parts become white, 16-bit pictures are scaled to 8 bits, greyscale and CMYK are converted.

    Raises:
        PictureError: the file is missing, not a readable picture, cut off, or larger than ``MAX_PIXELS``.
    """
    path = Path(path)
    if path.is_dir():
        raise PictureError(f"{path} is a folder; name the pictures in it")
    if not path.is_file():
        raise PictureError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise PictureError(f"{path} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter than none
            with Image.open(path) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise PictureError(
                        f"{path} has {width} x {height} pixels, more than the {MAX_PIXELS:,} that are accepted; "
                        "make it smaller first"
                    )
                picture.load()
                return _rgb(ImageOps.exif_transpose(picture))
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path} is too large to decode safely ({error})") from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{path} is not a picture that can be read (JPEG, PNG, WebP, TIFF, BMP, GIF, ...)"
        ) from error
    except Exception as error:  # decoders raise whatever they like on broken files
        raise PictureError(f"{path} cannot be read: {error}") from error


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        top = 255.0 if values.size == 0 or values.max() <= 255 else 65535.0
        return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return picture.convert("RGB")
