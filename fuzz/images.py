"""Image files: every mode and format, odd sizes, orientations, transparency, frames, and damage of all kinds."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import headwater as hw
from fuzz.case import Draw, must
from fuzz.damage import damaged
from fuzz.subjects import compare, kept_residual, write
from headwater.data import open_image
from headwater.errors import HeadwaterError, ImageError
from headwater.explanations import explain_files

_ORIENTATION = 0x0112
_LOSSLESS = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "bmp": ("1", "L", "P", "RGB"),
    "gif": ("L", "P"),
    "webp": ("RGB", "RGBA"),
    "ppm": ("1", "L", "RGB", "I;16"),
}
_LOSSY = {"jpeg": ("L", "RGB", "CMYK"), "webp": ("RGB", "RGBA"), "avif": ("RGB", "RGBA")}
_ANIMATED = ("png", "tiff", "gif", "webp")
_SUFFIX = {"jpeg": "jpg", "tiff": "tif"}


@dataclass(frozen=True)
class File:
    """An image file and the expected result of reading it.

    Attributes:
        content: its bytes.
        format: as Pillow calls it, in lower case.
        size: width and height, upright.
        expected: the image ``(H, W, 3)``, uint8; ``None`` where the format is lossy.
        refused: why it must be refused; empty if it must be read.
        slack: largest allowed difference of a value, for conversions that may round either way.
    """

    content: bytes
    format: str
    size: tuple[int, int]
    expected: np.ndarray | None
    refused: str = ""
    slack: int = 0


def images(draw: Draw) -> None:
    """Read an image and compare it with the fuzzer's own conversion; sometimes explain and save it."""
    if draw.chance(0.03):
        _no_file(draw)
        return
    file = _file(draw)
    broken = draw.chance(0.35)
    suffix = f".{_SUFFIX.get(file.format, file.format)}"
    if draw.chance(0.1):
        suffix = draw.one((".png", ".jpg", ".txt", "", ".PNG", ".tif"))
        draw.note(f"called {suffix or 'nothing'}")
    name = draw.one(("image", "image", "an image", "Bild é", "猫", "-x", "a.b", "x" * 200))
    path = write(draw.folder / f"{name}{suffix}", damaged(draw, file.content) if broken else file.content)
    if not broken:
        _check_reading(path, file)
    if draw.chance(0.04 if broken else 0.08):
        _explain(draw, path)
    elif broken:
        image = open_image(path)
        must(image.mode == "RGB" and min(image.size) > 0, f"a broken file gave {image.mode} {image.size}")


def _check_reading(path: Path, file: File) -> None:
    try:
        image = open_image(path)
    except ImageError as error:
        must(file.refused, f"a valid image was refused: {error}")
        raise
    must(not file.refused, f"{file.refused}, but it was read, with values up to {np.asarray(image).max()}")
    must(image.mode == "RGB", f"the image is {image.mode}")
    must(image.size == file.size, f"the image is {image.size}, not {file.size}")
    if file.expected is not None:
        off = np.abs(np.asarray(image).astype(int) - file.expected.astype(int)).max()
        must(off <= file.slack, f"values are off by {off} of 255")


def _file(draw: Draw) -> File:
    lossy = draw.chance(0.15)
    formats = _LOSSY if lossy else _LOSSLESS
    kind = draw.one(tuple(formats))
    mode = draw.one(formats[kind])
    width, height = _size(draw)
    draw.note(f"{kind} {mode} {width}x{height}{' lossy' if lossy else ''}")
    image, expected, slack = _content(draw, mode, width, height)
    options: dict[str, Any] = {}
    refused = ""
    if mode in ("F", "I"):
        image, expected, refused, options = _deep(draw, mode, image, kind)
    if kind == "webp":
        options["lossless"] = not lossy
    if kind == "gif":
        options["optimize"] = draw.chance(0.5)
    if kind == "tiff" and mode not in ("F", "I") and draw.chance(0.4):
        options["compression"] = draw.one(("tiff_lzw", "tiff_adobe_deflate", "packbits"))
    if kind == "png" and mode in ("L", "P", "RGB") and draw.chance(0.3):
        assert expected is not None
        expected, options["transparency"] = _transparent(draw, mode, image, expected)
    if kind in ("png", "tiff", "webp", "jpeg", "avif") and draw.chance(0.25):
        orientation = draw.whole(1, 8) if kind == "tiff" else draw.whole(0, 9)  # Pillow writes no other into a TIFF
        draw.note(f"orientation {orientation}")
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        options["exif"] = exif
        expected = _upright(expected, orientation)
    elif kind in _ANIMATED and mode in ("RGB", "P", "RGBA") and "transparency" not in options and draw.chance(0.15):
        draw.note("several frames")
        options |= {"save_all": True, "append_images": _more_frames(draw, image)}
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    size = (expected.shape[1], expected.shape[0])
    return File(stream.getvalue(), kind, size, None if lossy else expected, refused, slack)


def _more_frames(draw: Draw, image: Image.Image) -> list[Image.Image]:
    others = [Image.new(image.mode, image.size, k) for k in range(draw.whole(1, 3))]
    for other in others:
        if image.mode == "P":
            other.putpalette(image.getpalette() or [])
    return others


def _size(draw: Draw) -> tuple[int, int]:
    way = draw.rng.random()
    if way < 0.15:
        return (1, draw.whole(1, 1200)) if draw.chance(0.5) else (draw.whole(1, 1200), 1)
    if way < 0.25:
        return draw.whole(100, 300), draw.whole(1, 300)
    return draw.whole(1, 40), draw.whole(1, 40)


def _content(draw: Draw, mode: str, width: int, height: int) -> tuple[Image.Image, np.ndarray, int]:
    """A random image, its expected RGB values on white, and how much conversions may differ."""
    shape = (height, width)
    if mode in ("1", "L"):
        grey = draw.rng.integers(0, 256, shape, dtype=np.uint8)
        if mode == "1":
            grey = np.where(grey > 127, np.uint8(255), np.uint8(0))
        image = Image.fromarray(grey)
        return (image.convert("1", dither=Image.Dither.NONE) if mode == "1" else image), _grey(grey), 0
    if mode == "I;16":
        deep = draw.rng.integers(0, draw.one((2, 200, 256, 5000, 65536)), shape, dtype=np.uint16)
        return Image.fromarray(deep), _grey((deep / 257.0).round().astype(np.uint8)), 0
    if mode in ("I", "F"):
        return Image.new("L", (width, height)), np.zeros((*shape, 3), np.uint8), 0
    if mode == "P":
        palette = draw.rng.integers(0, 256, (256, 3), dtype=np.uint8)
        indices = draw.rng.integers(0, draw.one((2, 16, 256)), shape, dtype=np.uint8)
        image = Image.fromarray(indices, "L")
        image.putpalette(palette.tobytes())
        return image, palette[indices], 0
    values = draw.rng.integers(0, 256, (*shape, len(Image.new(mode, (1, 1)).getbands())), dtype=np.uint8)
    if mode == "RGB":
        return Image.fromarray(values), values, 0
    image = Image.frombytes(mode, (width, height), values.tobytes())
    if mode == "CMYK":
        ink, key = values[..., :3].astype(float), values[..., 3:].astype(float)
        return image, ((255 - ink) * (255 - key) / 255).round().astype(np.uint8), 1
    colour, alpha = values[..., :-1].astype(float), values[..., -1:].astype(float)
    laid = (colour * alpha + 255 * (255 - alpha)) / 255
    return image, np.broadcast_to(laid.round().astype(np.uint8), (*shape, 3)), 1


def _deep(draw: Draw, mode: str, image: Image.Image, kind: str) -> tuple[Image.Image, np.ndarray, str, dict[str, Any]]:
    """32 bits per value: floats must be in [0, 1]; whole numbers are refused, since their white is unknown."""
    shape = (image.height, image.width)
    if mode == "I":
        whole = draw.rng.integers(0, draw.one((2, 256, 65536, 2**31 - 1)), shape, dtype=np.int32)
        return (
            Image.fromarray(whole),
            np.zeros((*shape, 3), np.uint8),
            "the white of 32-bit integers is unknown",
            {},
        )
    values = draw.rng.random(shape).astype(np.float32)
    kind = draw.one(("unit", "unit", "large", "negative", "nan", "inf"))
    draw.note(f"floats: {kind}")
    refused = "" if kind == "unit" else f"floats are {kind}"
    if kind != "unit":
        values.flat[draw.whole(0, values.size - 1)] = {"large": 300.0, "negative": -3.0, "nan": np.nan, "inf": np.inf}[
            kind
        ]
    scaled = np.nan_to_num(values.astype(np.float64)).clip(0, 1) * 255
    return Image.fromarray(values), _grey(scaled.round().astype(np.uint8)), refused, {}


def _transparent(draw: Draw, mode: str, image: Image.Image, expected: np.ndarray) -> tuple[np.ndarray, Any]:
    """One value, colour or index of the palette is transparent: it becomes white."""
    values = np.asarray(image)
    chosen = values[draw.whole(0, image.height - 1), draw.whole(0, image.width - 1)]
    draw.note("with a transparent colour")
    clear = (values == chosen) if mode != "RGB" else (values == chosen).all(-1)
    expected = np.where(clear[..., None], np.uint8(255), expected)
    return expected, tuple(int(v) for v in chosen) if mode == "RGB" else int(chosen)


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """EXIF 2.3: where row 0 and column 0 of the stored image are in the scene."""
    return {
        2: lambda v: v[:, ::-1],
        3: lambda v: v[::-1, ::-1],
        4: lambda v: v[::-1],
        5: lambda v: v.transpose(1, 0, 2),
        6: lambda v: v.transpose(1, 0, 2)[:, ::-1],
        7: lambda v: v.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda v: v.transpose(1, 0, 2)[::-1],
    }.get(orientation, lambda v: v)(values)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def _no_file(draw: Draw) -> None:
    """A path that is not an image file."""
    path = draw.folder / "image.png"
    kind = draw.one(("folder", "missing", "dangling link", "loop", "pipe", "device", "NUL", "text", "unreadable"))
    draw.note(f"no file: {kind}")
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(draw.folder / "nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "NUL":
        path = Path("image\0.png")
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "unreadable":
        path.write_bytes(b"\x89PNG")
        path.chmod(0)
    open_image(path)
    must(False, "it was read")


def _explain(draw: Draw, path: Path) -> None:
    """Explain the file, save the result, and compare map and files with a fresh explanation of the same pixels."""
    model = kept_residual()
    (result,) = explain_files([path], model)
    if isinstance(result, HeadwaterError):
        raise result
    card = hw.ModelCard("small", "random", hw.Preprocessing(16, 16))
    x = card.preprocessing(open_image(path))[None]
    fresh = hw.LRP(model)(x)
    compare(draw, result, fresh, "the explanation of a file")
    assert result.conservation is not None
    must(result.conservation.error.item() < 1e-5, f"conservation error {result.conservation.error.item():.1e}")
    if not draw.chance(0.4):
        return
    draw.note("saved twice")
    out = draw.folder / "out"
    first, again = result.save(out), result.save(out)
    must(first == again, "the same result made again has other names")
    (other,) = explain_files([path], model, target=(int(result.target) + 1) % 4)
    assert not isinstance(other, HeadwaterError)
    second = other.save(out, stem=first[2].stem)
    must(not {*first} & {*second}, f"another target's files took the place of the first's: {second}")
    for files, e in ((first, result), (second, other)):
        must(all(f.is_file() for f in files), "a file is missing")
        stored = np.load(next(f for f in files if f.suffix == ".npy"))
        must(np.array_equal(stored, e.heatmap[0].numpy()), "the saved map is not the explained one")
        record = json.loads(next(f for f in files if f.suffix == ".json").read_text())
        must(record["target"]["index"] == int(e.target), "the saved record has another target")
