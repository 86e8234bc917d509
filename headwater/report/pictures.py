"""Pictures that a paper could print: the photo, its map, and the map laid over the photo."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal, get_args

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from headwater.errors import InputError

Sign = Literal["auto", "positive", "absolute", "signed"]


@dataclass(frozen=True)
class Style:
    """How maps become colours.

    Attributes:
        colormap: any of matplotlib's names; ``None`` for ``"inferno"``, or ``"RdBu_r"`` around 0 for signed maps.
            ``"jet"`` matches the papers.
        sign: ``"positive"`` shows negative relevance as none, ``"absolute"`` its size, ``"signed"`` both around 0;
            ``"auto"`` is signed where negative relevance has more than a hundredth of the mass.
        clip: percentile of the map's size at which the colours end, so that single pixels don't hide the rest.
        opacity: of the map laid over the photo where it is strongest, in [0, 1].
    """

    colormap: str | None = None
    sign: Sign = "auto"
    clip: float = 99.5
    opacity: float = 0.85

    def __post_init__(self) -> None:
        if self.sign not in get_args(Sign):
            raise InputError(f"sign must be one of {', '.join(get_args(Sign))}, got {self.sign!r}")
        if self.colormap is not None and self.colormap not in matplotlib.colormaps:
            raise InputError(
                f"matplotlib has no colour map {self.colormap!r}; inferno, viridis, jet, RdBu_r, ... are some"
            )
        if not 0 < self.clip <= 100 or not 0 <= self.opacity <= 1:
            raise InputError(f"clip must be in (0, 100] and opacity in [0, 1], got {self.clip} and {self.opacity}")


@dataclass(frozen=True)
class Shown:
    """A map ready to be coloured: values, their range, the colour map, and whether the range ends before the values."""

    values: np.ndarray
    norm: Normalize
    colormap: Colormap
    signed: bool
    clipped: bool

    def colours(self) -> np.ndarray:
        """RGB in [0, 1], ``(H, W, 3)``; NaN as zero relevance."""
        return self.colormap(self.norm(np.nan_to_num(self.values)))[..., :3]

    def strength(self) -> np.ndarray:
        """How far each value is from none, in [0, 1], ``(H, W)``."""
        top = self.norm.vmax or 1.0
        return np.clip(np.abs(np.nan_to_num(self.values)) / top, 0, 1)


def shown(heatmap: np.ndarray, style: Style | None = None) -> Shown:
    """Choose range and colours for a map ``(H, W)``, NaN where the network did not look."""
    style = style or Style()
    known = heatmap[np.isfinite(heatmap)]
    negative = -known[known < 0].sum()
    signed = style.sign == "signed" or (style.sign == "auto" and negative > 0.01 * np.abs(known).sum())
    values = np.abs(heatmap) if style.sign == "absolute" else heatmap
    if not signed:
        values = np.maximum(values, 0)
    sizes = np.abs(values[np.isfinite(values)])
    top = float(np.percentile(sizes, style.clip)) if sizes.size else 0.0
    largest = float(sizes.max(initial=0.0))
    top = top if top > 0 else largest or 1.0
    norm = Normalize(-top if signed else 0.0, top, clip=True)
    colormap = matplotlib.colormaps[style.colormap or ("RdBu_r" if signed else "inferno")]
    return Shown(values, norm, colormap, signed, largest > top)


def overlay(picture: Image.Image, heatmap: np.ndarray, style: Style | None = None) -> Image.Image:
    """The map laid over its photo, in the photo's size; what the network did not see is dimmed.

    Args:
        picture: RGB, ``(W, H)`` pixels.
        heatmap: ``(H, W)`` in the photo's coordinates, NaN where the network did not look.
        style: colours.
    """
    style = style or Style()
    photo = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255
    if heatmap.shape != photo.shape[:2]:
        raise InputError(f"the map is {heatmap.shape}, the picture {photo.shape[:2]} (rows, columns)")
    view = shown(heatmap, style)
    grey = photo @ np.array([0.299, 0.587, 0.114])
    base = 0.55 * grey[..., None] + 0.25 * photo  # muted, so that the map's colours are the only strong ones
    alpha = (style.opacity * np.sqrt(view.strength()))[..., None]
    mixed = (1 - alpha) * base + alpha * view.colours()
    mixed = np.where(np.isfinite(heatmap)[..., None], mixed, 0.35 * base + 0.65)
    return Image.fromarray((mixed.clip(0, 1) * 255).round().astype(np.uint8))


def figure(
    picture: Image.Image,
    heatmap: np.ndarray,
    title: str,
    caption: str = "",
    style: Style | None = None,
    width: float = 10,
) -> bytes:
    """Photo, map with colour bar, and overlay side by side, as PNG.

    Args:
        picture: RGB.
        heatmap: ``(H, W)`` in the photo's coordinates.
        title: stands over the photo, such as the predicted class with its probability.
        caption: stands over the map, such as the method.
        style: colours.
        width: of the figure, in inches.
    """
    view = shown(heatmap, style)
    rows, columns = heatmap.shape
    panel = (width - 1.3) / 3
    height = panel * rows / columns + 0.45
    canvas = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(canvas)
    top, bottom = 1 - 0.38 / height, 0.04 / height
    axes = [
        canvas.add_axes((0.005 + k * (panel + 0.08) / width, bottom, panel / width, top - bottom)) for k in range(3)
    ]
    axes[0].imshow(np.asarray(picture), interpolation="none")
    drawn = axes[1].imshow(view.values, norm=view.norm, cmap=view.colormap, interpolation="none")
    axes[1].set_facecolor("0.85")
    axes[2].imshow(np.asarray(overlay(picture, heatmap, style)), interpolation="none")
    for axis, text in zip(axes, (title, caption, "overlay"), strict=True):
        axis.set_title(text, fontsize=9, loc="left", pad=4)
        axis.set_xticks([])
        axis.set_yticks([])
    bar = canvas.add_axes((0.005 + 3 * (panel + 0.08) / width, bottom, 0.13 / width, top - bottom))
    extend = ("both" if view.signed else "max") if view.clipped else "neither"
    colorbar = canvas.colorbar(drawn, cax=bar, extend=extend)
    colorbar.set_label("relevance per pixel", fontsize=8)
    bar.ticklabel_format(axis="y", scilimits=(-2, 2))
    bar.tick_params(labelsize=7)
    bar.yaxis.get_offset_text().set_fontsize(7)
    return as_png(canvas)


def as_png(canvas: Figure) -> bytes:
    """A figure as PNG."""
    stream = io.BytesIO()
    canvas.savefig(stream, format="png")
    return stream.getvalue()
