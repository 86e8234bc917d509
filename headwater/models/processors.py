"""From an image processor of ``transformers`` to how images are prepared, and to what of an image the network sees."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headwater.data.preprocessing import Box, NoImages, Preprocessing
from headwater.errors import InputError

_LEVELS = 255
_ROUNDING = 3.0
"""Levels of 8 bits by which two resized images may differ: torch and Pillow round after each of two passes."""
_GREYS = (64, 192)
"""Range of the images that are compared: bicubic resizing leaves them within 8 bits, so that nothing is clipped."""
_SHAPES = ((1.31, 1.77), (1.94, 1.22), (0.7, 0.6))
"""Height and width of the images that are compared, in parts of the network's input: wide, high, and small."""
_BANDS = (0.4, 0.2, 0.1)
"""Half width of the bands by which places are measured, in parts of the short side; less where an image is cropped."""
_PROBED = 512  # pixels, the largest input that they are a part of: larger ones would take seconds


def from_processor(processor: Any) -> Preprocessing:
    """How a processor prepares images.

    A :class:`Preprocessing` if its settings say all that it does, which is checked on images. Pixel values are then the
    same for a processor that resizes with Pillow. One that resizes with torchvision rounds otherwise, by a level or two
    of 255; by more only where bicubic resizing goes beyond black or white, since the two clip in another order.
    Otherwise a :class:`ByProcessor`, which calls it.

    Args:
        processor: as ``AutoImageProcessor.from_pretrained`` returns it.

    Returns:
        A preprocessing; a :class:`NoImages` if the processor makes something else of an image than its three colours in
        rows and columns.
    """
    try:
        stated = _as_stated(processor)
        if stated is not None and _agree(stated, processor):
            return stated
        return ByProcessor.of(processor)
    except InputError as error:
        return NoImages(str(error))


def _as_stated(p: Any) -> Preprocessing | None:
    """What a processor's settings say; ``None`` where they do not have the usual names."""

    def on(name: str) -> bool:
        return bool(getattr(p, name, False))

    try:
        resize, crop = (_sides(p.size) if on("do_resize") else None), None
        if on("do_center_crop"):
            crop = _sides(p.crop_size)
        if isinstance(resize, int) and getattr(p, "crop_pct", None) is not None and crop is None:
            # ConvNeXt's: below 384 the centre is cut out of a larger image, from there on images are stretched.
            resize, crop = (int(resize / p.crop_pct), resize) if resize < 384 else ((resize, resize), None)
        scale = _LEVELS * (p.rescale_factor if on("do_rescale") else 1)
        mean, std = (p.image_mean, p.image_std) if on("do_normalize") else (0, 1)
        return Preprocessing(
            resize,
            crop,
            tuple(float(v) / scale for v in _by_channel(mean)),
            tuple(float(v) / scale for v in _by_channel(std)),
            Image.Resampling(int(p.resample)).name.lower() if on("do_resize") else "bilinear",
            corner="down",
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _sides(size: Any) -> int | tuple[int, int]:
    """A size as transformers writes it: the short side, or height and width."""
    given = dict(size)
    if set(given) == {"shortest_edge"}:
        return int(given["shortest_edge"])
    if set(given) != {"height", "width"}:
        raise ValueError(f"a size is shortest_edge, or height and width; got {given}")
    return int(given["height"]), int(given["width"])


def _by_channel(values: Any) -> tuple[float, ...]:
    return (values,) * 3 if isinstance(values, (int, float)) else tuple(values)


def _agree(stated: Preprocessing, processor: Any) -> bool:
    """Whether both prepare images alike: of noise, a shift by one pixel would differ by far more than rounding does."""
    generator = np.random.default_rng(0)
    side = min(_PROBED, max(stated.size)) if stated.is_sized else _PROBED
    levels = torch.tensor(stated.std)[:, None, None] * _LEVELS
    for down, across in _SHAPES:
        shape = (int(side * down) | 1, int(side * across) | 1, 3)
        image = Image.fromarray(generator.integers(*_GREYS, shape, dtype=np.uint8))
        theirs, ours = _processed(processor, image), stated(image)
        if theirs.shape != ours.shape or ((theirs - ours).abs() * levels).max() > _ROUNDING:
            return False
    return True


def _processed(processor: Any, image: Image.Image) -> Tensor:
    """An image as the processor prepares it, float32 ``(3, H, W)``.

    Raises:
        InputError: it fails, or makes something else.
    """
    name = type(processor).__name__
    try:
        values = processor(images=image, return_tensors="pt")["pixel_values"]
    except Exception as error:  # whatever a processor raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name} cannot prepare an image of {image.size} pixels: {reason}") from error
    if not isinstance(values, Tensor) or values.ndim != 4 or values.shape[:2] != (1, 3):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"{name} makes {shape} of an image, not (1, 3, height, width); prepare the input yourself and call "
            "headwater.LRP(model)(input)"
        )
    return values[0].float()


@dataclass(frozen=True)
class ByProcessor(Preprocessing):
    """A processor that does what :class:`Preprocessing` has no words for; it is called for every image.

    What it does to colours and to places is measured: colours on plain images, places on bright bands.

    Attributes:
        processor: of ``transformers``.
        order: the image's channel that each of the network's is.
        settings: digest of the processor's settings, which tells two of them apart.
    """

    processor: Any = field(default=None, repr=False, compare=False)
    order: tuple[int, ...] = (0, 1, 2)
    settings: str = ""

    @classmethod
    def of(cls, processor: Any) -> ByProcessor:
        """Measure a processor.

        Raises:
            InputError: it does not make an image's three colours in rows and columns, each by itself.
        """
        wide, high = (_processed(processor, Image.new("RGB", shape)).shape for shape in ((640, 400), (300, 500)))
        plain = [_middle(processor, tuple(_LEVELS * (k == c) for k in range(3))) for c in (None, 0, 1, 2)]
        gains = torch.stack(plain[1:], 1) - plain[0][:, None]  # of the network's channels by the image's
        order = gains.abs().argmax(1)
        gain = gains.gather(1, order[:, None])[:, 0]
        alone = torch.zeros_like(gains).scatter(1, order[:, None], gain[:, None])
        if len(set(order.tolist())) < 3 or (gain <= 0).any() or not torch.allclose(gains, alone, atol=1e-4):
            raise InputError(f"{type(processor).__name__} mixes an image's colours; prepare the input yourself")
        settings = str(processor.to_dict() if hasattr(processor, "to_dict") else processor)
        return cls(
            None,
            (wide[1], wide[2]) if wide == high else None,
            tuple((0.0 - plain[0] / gain).tolist()),
            tuple((1 / gain).tolist()),
            processor=processor,
            order=tuple(order.tolist()),
            settings=hashlib.sha256(settings.encode()).hexdigest()[:12],
        )

    def described(self) -> str:
        return f"by transformers' {type(self.processor).__name__}"

    def __call__(self, image: Image.Image) -> Tensor:
        return _processed(self.processor, image)

    def colours(self, x: Tensor) -> Tensor:
        places = [self.order.index(c) for c in range(3)]
        return super().colours(x)[places]

    def box(self, width: int, height: int) -> Box:
        return _measured_box(self, width, height)


def _middle(processor: Any, colour: tuple[int, ...]) -> Tensor:
    """What a processor makes of the middle of a plain image, ``(3,)``."""
    values = _processed(processor, Image.new("RGB", (512, 512), colour))
    return values[:, values.shape[1] // 2, values.shape[2] // 2]


@lru_cache(maxsize=256)
def _measured_box(prepare: ByProcessor, width: int, height: int) -> Box:
    """Where a processor's output lies in an image, from what it makes of bright bands through the middle.

    A band's area in the output gives the scale, its centre of mass the place. Bands have soft edges, so that resizing
    without a filter finds the same. That is right to some hundredths of an output pixel; a side within a thousandth of
    the image's is taken to be the image's.

    Raises:
        InputError: the middle of the image is not in the output.
    """
    for part in _BANDS:
        half = part * min(width, height)
        columns, rows = (_profile(prepare, width, height, half, axis) for axis in (1, 0))
        if all(max(p[0], p[-1]) < 0.05 * p.max() for p in (columns, rows)):  # none is cut off
            left, right = _span(columns, half, width)
            top, bottom = _span(rows, half, height)
            return Box(left, top, right, bottom)
    raise InputError(
        f"{type(prepare.processor).__name__} does not show the network the middle of an image of {width} x {height} "
        "pixels, so nothing can be laid over it"
    )


def _profile(prepare: ByProcessor, width: int, height: int, half: float, axis: int) -> np.ndarray:
    """How bright the output is along an axis, in [0, 1], for a band of that half width through the image's middle."""
    length = (height, width)[axis]
    away = np.abs(np.arange(length) + 0.5 - length / 2) / half
    band = np.where(away < 1, (1 + np.cos(np.pi * away.clip(0, 1))) / 2, 0)
    grey = np.broadcast_to(band if axis == 1 else band[:, None], (height, width))
    values = np.repeat((grey * _LEVELS).round().astype(np.uint8)[..., None], 3, axis=2)
    dark = prepare(Image.new("RGB", (width, height)))
    seen = ((prepare(Image.fromarray(values)) - dark) * torch.tensor(prepare.std)[:, None, None]).mean(0)
    across = seen if axis == 1 else seen.T
    return across[across.sum(1).argmax()].double().numpy()  # the line through the middle, whatever is padded


def _span(profile: np.ndarray, half: float, length: int) -> tuple[float, float]:
    """First and last place of an image's side that the network sees, from the profile of a band of that half width."""
    area = float(profile.sum())
    scale = half / area  # the area under the cosine is half its width
    first = length / 2 - scale * float((np.arange(len(profile)) + 0.5) @ profile / area)
    last, slack = first + scale * len(profile), length / 1000
    return (0.0 if abs(first) < slack else first), (float(length) if abs(last - length) < slack else last)
