"""A visitor's photo, in memory alone."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import headwater as hw
from headwater.data.images import read_image
from headwater.errors import ImageError, InputError

MAX_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # no others are decoded: some start other programs
ACCEPTED = f"JPEG, PNG, WebP, TIFF, BMP or GIF, up to {MAX_BYTES // 10**6} MB and {MAX_PIXELS // 10**6} megapixels"
_SHOWN = 1024  # the longest side of what the page shows; its figures are drawn from it
_EXAMPLES = ("tabby.jpg", "espresso.jpg")


@dataclass(frozen=True)
class Photo:
    """A photo as it was uploaded, and as the page shows it.

    Attributes:
        content: the file. It is decoded again for every network, so that a large photo takes little memory in between.
        path: what it is called in figures. No file of that name is read or written.
        shown: RGB, upright, the longest side at most 1,024 pixels.
        width: of the whole photo, in pixels.
        height: of the whole photo, in pixels.
        animated: whether it has further frames.
    """

    content: bytes
    path: Path
    shown: Image.Image
    width: int
    height: int
    animated: bool

    @classmethod
    def read(cls, content: bytes, name: str = "photo") -> Photo:
        """Decode an upload.

        Raises:
            ImageError: it is empty, too large, or no image; the message says what is accepted.
        """
        if len(content) > MAX_BYTES:
            raise ImageError(f"the file has {len(content) / 1e6:.1f} MB; accepted: {ACCEPTED}")
        image = _decoded(content)
        width, height = image.size
        image.thumbnail((_SHOWN, _SHOWN))
        with Image.open(io.BytesIO(content), formats=_FORMATS) as file:
            animated = bool(getattr(file, "is_animated", False))
        return cls(content, Path(name), image, width, height, animated)

    def decoded(self) -> Image.Image:
        """The whole photo, RGB."""
        return _decoded(self.content)

    def jpeg(self) -> bytes:
        """What the page shows."""
        stream = io.BytesIO()
        self.shown.save(stream, "jpeg", quality=90)
        return stream.getvalue()


def _decoded(content: bytes) -> Image.Image:
    try:
        return read_image(io.BytesIO(content), "the file", MAX_PIXELS, _FORMATS)
    except ImageError as error:
        raise ImageError(f"{error}. Accepted: {ACCEPTED}") from error


def examples() -> list[str]:
    """Names of the photographs that come with Headwater."""
    return [name for name in _EXAMPLES if (_folder() / name).is_file()]


def example(name: object) -> bytes:
    """The file of an example.

    Raises:
        InputError: there is no such example.
    """
    if name not in examples():
        raise InputError(f"there is no example {name!r}; there are {', '.join(examples())}")
    return (_folder() / str(name)).read_bytes()


def _folder() -> Path:
    """In an installed package beside this one's modules, in a clone at its root."""
    package = Path(hw.__file__).parent
    return next((f for f in (package / "examples", package.parent / "examples") if f.is_dir()), package)
