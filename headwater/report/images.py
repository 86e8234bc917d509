"""Figures for publication: the photo, its map, and the map laid over the photo."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import ScalarFormatter
from PIL import Image

from headwater.errors import InputError

Sign = Literal["auto", "positive", "absolute", "signed"]

_LONGEST_PANEL = 3.0
"""Largest ratio of the sides of a panel."""
_DPI = 150
_BRIGHTNESS = np.array([0.299, 0.587, 0.114])  # of red, green and blue (Rec. 601)
_CHUNK = 2**20  # pixels of an overlay at a time, so that memory stays bounded


@dataclass(frozen=True)
class Style:
    """How maps become colours.

    Attributes:
        colormap: any of matplotlib's names; ``None`` for ``"inferno"``, or ``"RdBu_r"`` around 0 for signed maps.
            ``"jet"`` matches the papers.
        sign: ``"positive"`` shows negative relevance as 0, ``"absolute"`` its size, ``"signed"`` both around 0;
            ``"auto"`` is signed where negative relevance has more than a thousandth of the mass.
        clip: percentile of the map's size at which the colours end, so that single pixels don't hide the rest; of maps
            of which more than half is at or above it, they end at the largest.
        clip_by: what the percentile counts: ``"pixels"``, or ``"mass"``: the value below which pixels hold that part of
            the relevance.
        opacity: of the map laid over the photo where it is strongest, in [0, 1].
        even: lay the map over the photo in its own colours, with the same opacity everywhere.
    """

    colormap: str | None = None
    sign: Sign = "auto"
    clip: float = 99.5
    clip_by: Literal["pixels", "mass"] = "pixels"
    opacity: float = 0.85
    even: bool = False

    def __post_init__(self) -> None:
        if self.sign not in get_args(Sign):
            raise InputError(f"sign must be one of {', '.join(get_args(Sign))}, got {self.sign!r}")
        if self.colormap is not None and self.colormap not in matplotlib.colormaps:
            raise InputError(
                f"matplotlib has no colour map {self.colormap!r}; inferno, viridis, jet, RdBu_r, ... are some"
            )
        if self.clip_by not in ("pixels", "mass"):
            raise InputError(f"clip_by must be pixels or mass, got {self.clip_by!r}")
        if not 0 < self.clip <= 100 or not 0 <= self.opacity <= 1:
            raise InputError(f"clip must be in (0, 100] and opacity in [0, 1], got {self.clip} and {self.opacity}")


@dataclass(frozen=True)
class Shown:
    """A map ready to be coloured.

    Attributes:
        values: what is drawn, NaN outside of what the network saw; the map itself for the signs ``"auto"`` and
            ``"signed"``, so that its sum is the map's.
        norm: the range of the colours.
        colormap: the colours.
        signed: the range is symmetric around 0.
        clipped: some values are above the range, and get its last colour.
        below: some are below it.
    """

    values: np.ndarray
    norm: Normalize
    colormap: Colormap
    signed: bool
    clipped: bool
    below: bool = False

    def colours(self) -> np.ndarray:
        """RGB in [0, 1], ``(H, W, 3)``; NaN as zero relevance."""
        return self.colormap(self.norm(np.nan_to_num(self.values)))[..., :3]

    def strength(self) -> np.ndarray:
        """Size of each value as a part of the range, in [0, 1], ``(H, W)``."""
        top = self.norm.vmax or 1.0
        return np.abs(np.clip(np.nan_to_num(self.values) / top, -1.0 if self.signed else 0.0, 1))

    @property
    def sum(self) -> float:
        """Of all values drawn."""
        return float(np.nansum(self.values, dtype=np.float64))


def shown(heatmap: np.ndarray, style: Style | None = None) -> Shown:
    """Choose range and colours for a map ``(H, W)``, NaN outside of what the network saw."""
    style = style or Style()
    known = heatmap[np.isfinite(heatmap)]
    negative = -known[known < 0].sum()
    signed = style.sign == "signed" or (style.sign == "auto" and negative > 0.001 * np.abs(known).sum())
    values = {"absolute": np.abs(heatmap), "positive": np.maximum(heatmap, 0)}.get(style.sign, heatmap)
    finite = values[np.isfinite(values)]
    sizes = np.abs(finite) if signed else np.maximum(finite, 0)
    top = _top(sizes, style) if sizes.size else 0.0
    largest = float(sizes.max(initial=0.0))
    if np.count_nonzero(sizes >= top) > sizes.size / 2:  # as in quantized maps whose background is one level
        top = largest
    top = top if top > 0 else largest or 1.0
    norm = Normalize(-top if signed else 0.0, top, clip=True)
    colormap = matplotlib.colormaps[style.colormap or ("RdBu_r" if signed else "inferno")]
    below = bool(finite.min(initial=0.0) < (-top if signed else 0.0))
    return Shown(values, norm, colormap, signed, bool(finite.max(initial=0.0) > top), below)


def _top(sizes: np.ndarray, style: Style) -> float:
    """Where the colours end, of sizes that are not negative."""
    if style.clip_by == "pixels":
        return float(np.percentile(sizes, style.clip))
    ordered = np.sort(sizes, axis=None)
    held = np.cumsum(ordered, dtype=np.float64)
    return float(ordered[min(np.searchsorted(held, held[-1] * style.clip / 100), len(ordered) - 1)])


def overlay(image: Image.Image, heatmap: np.ndarray, style: Style | None = None) -> Image.Image:
    """The map laid over its photo, in the photo's size; what the network did not see is dimmed.

    Args:
        image: RGB, ``(W, H)`` pixels.
        heatmap: ``(H, W)`` in the photo's coordinates, NaN outside of what the network saw.
        style: colours.
    """
    style = style or Style()
    photo = np.asarray(image.convert("RGB"))
    if heatmap.shape != photo.shape[:2]:
        raise InputError(f"the map is {heatmap.shape}, the image {photo.shape[:2]} (rows, columns)")
    view, laid = shown(heatmap, style), np.empty_like(photo)
    pixels, values, result = photo.reshape(-1, 3), view.values.reshape(-1), laid.reshape(-1, 3)
    for start in range(0, len(pixels), _CHUNK):
        part = slice(start, start + _CHUNK)
        result[part] = _mixed(pixels[part], replace(view, values=values[part]), style)
    return Image.fromarray(laid)


def _mixed(photo: np.ndarray, view: Shown, style: Style) -> np.ndarray:
    """Pixels ``(N, 3)`` of a photo with those of its map laid over them, uint8.

    Where the map's colour is dark, the mix is lightened until it is half as bright as the photo, which stays visible.
    An even mix, as the authors drew it, is not lightened.
    """
    photo = photo / 255
    if style.even:
        mixed = (1 - style.opacity) * photo + style.opacity * view.colours()
        mixed = np.where(np.isfinite(view.values)[:, None], mixed, 0.35 * photo + 0.65)
        return (mixed.clip(0, 1) * 255).round().astype(np.uint8)
    grey = photo @ _BRIGHTNESS
    base = 0.7 * grey[:, None] + 0.3 * photo  # muted, so that the map's colours are the only strong ones
    alpha = (style.opacity * view.strength())[:, None]
    mixed = (1 - alpha) * base + alpha * view.colours()
    brightness = mixed @ _BRIGHTNESS
    missing = np.maximum(0.5 * grey - brightness, 0) / np.maximum(1 - brightness, 0.5)
    mixed += missing[:, None] * (1 - mixed)
    mixed = np.where(np.isfinite(view.values)[:, None], mixed, 0.35 * base + 0.65)
    return (mixed.clip(0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class Labels:
    """The texts of a figure; each is shortened where it does not fit.

    Attributes:
        title: stands over the photo, such as the explained class; ``probability`` follows it.
        probability: as text, never shortened.
        image: under the title, such as the file's name.
        method: stands over the map.
        model: under the method.
        unit: of the colour bar.
        note: stands under the panels; ``{sum}`` in it becomes the sum of the values drawn.
    """

    title: str
    probability: str = ""
    image: str = ""
    method: str = ""
    model: str = ""
    unit: str = "relevance per\nimage pixel"
    note: str = "The values drawn sum to {sum}."


def figure(
    image: Image.Image,
    heatmap: np.ndarray,
    labels: Labels,
    style: Style | None = None,
    width: float = 10,
    levels: np.ndarray | None = None,
) -> bytes:
    """Photo, map with colour bar, and overlay side by side, as PNG.

    Of an image longer than three times its short side, the part around what the network saw is shown, so that the
    figure's size is bounded; what the network saw is always shown whole.

    Args:
        image: RGB.
        heatmap: ``(H, W)`` in the photo's coordinates, NaN outside of what the network saw.
        labels: its texts.
        style: colours.
        width: of the figure, in inches.
        levels: the values of a quantized map, ascending; its colours then come in as many steps.
    """
    style = style or Style()
    view = shown(heatmap, style if levels is None else replace(style, clip=100.0))
    norm, colormap = (view.norm, view.colormap) if levels is None else _stepped(view, levels, style)
    part = _window(np.isfinite(heatmap))
    rows, columns = heatmap[part].shape
    panel = (width - 1.3) / 3
    tall = panel * min(max(rows / columns, 1 / _LONGEST_PANEL), _LONGEST_PANEL)
    height = 0.27 + tall + 0.52
    canvas = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(canvas)
    low, high = 0.27 / height, tall / height
    axes = [canvas.add_axes((0.005 + k * (panel + 0.08) / width, low, panel / width, high)) for k in range(3)]
    laid = overlay(image, heatmap, style)
    axes[0].imshow(_reduced(image, part, panel), interpolation="none", aspect="auto")
    drawn = axes[1].imshow(view.values[part], norm=norm, cmap=colormap, interpolation="none", aspect="auto")
    axes[1].set_facecolor("0.85")
    axes[2].imshow(_reduced(laid, part, panel), interpolation="none", aspect="auto")
    whole = (rows, columns) == heatmap.shape
    shown_part = "" if whole else f"{columns} x {rows} of {heatmap.shape[1]} x {heatmap.shape[0]} pixels"
    if max(rows, columns) > _LONGEST_PANEL * min(rows, columns):
        shown_part = f"{columns} x {rows} pixels, not to scale"
    third = ("overlay", shown_part)
    heads = ((labels.title, labels.image), (labels.method, labels.model), third)
    for k, (axis, (head, below)) in enumerate(zip(axes, heads, strict=True)):
        left = 0.005 + k * (panel + 0.08) / width
        tail = f"  {labels.probability}" if k == 0 and labels.probability else ""
        for text, end, size, colour, above in ((head, tail, 9, "black", 0.24), (below, "", 8, "0.35", 0.07)):
            line = fitted(text, end, panel, size)
            at = low + high + above / height
            canvas.text(left, at, line, fontsize=size, color=colour, va="bottom", parse_math=False)
        axis.set_xticks([])
        axis.set_yticks([])
    note = fitted(labels.note.replace("{sum}", f"{view.sum:.4g}"), "", width - 0.1, 8)
    canvas.text(0.005, 0.07 / height, note, fontsize=8, color="0.35", va="bottom", parse_math=False)
    bar = canvas.add_axes((0.005 + 3 * (panel + 0.08) / width, low, 0.13 / width, high))
    extend = ("both" if view.below else "max") if view.clipped else ("min" if view.below else "neither")
    if levels is None:
        colorbar = canvas.colorbar(drawn, cax=bar, extend=extend)
    else:
        ticks = norm.boundaries[:-1] / 2 + norm.boundaries[1:] / 2  # type: ignore[attr-defined]
        colorbar = canvas.colorbar(drawn, cax=bar, ticks=ticks[:: -(-len(ticks) // 8)], format=ScalarFormatter())
        bar.minorticks_off()
    colorbar.set_label(labels.unit, fontsize=8)
    bar.ticklabel_format(axis="y", scilimits=(-2, 2))
    bar.tick_params(labelsize=7)
    bar.yaxis.get_offset_text().set_fontsize(7)
    return as_png(canvas)


def _stepped(view: Shown, levels: np.ndarray, style: Style) -> tuple[BoundaryNorm, ListedColormap]:
    """Colours of a map that has these values alone, each from half-way below it to half-way above it."""
    drawn = {"absolute": np.abs(levels), "positive": np.maximum(levels, 0)}.get(style.sign, levels)
    values = np.unique(drawn)
    if len(values) < 2:
        values = np.array([0.0, *values]) if values[0] > 0 else np.array([*values, values[0] + 1])
    middle = (values[:-1] + values[1:]) / 2
    edges = [2 * values[0] - middle[0], *middle, 2 * values[-1] - middle[-1]]
    return BoundaryNorm(edges, len(values)), ListedColormap(view.colormap(view.norm(values)))


def _window(known: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that a figure shows: all, or of a long image the part around what is known, and all of that."""
    parts = []
    for axis, side in enumerate(known.shape):
        seen = np.flatnonzero(known.any(axis=1 - axis))
        first, last = (int(seen[0]), int(seen[-1]) + 1) if seen.size else (0, side)
        length = min(side, max(last - first, int(_LONGEST_PANEL * known.shape[1 - axis])))
        start = min(max((first + last - length) // 2, 0), side - length)
        parts.append(slice(start, start + length))
    return parts[0], parts[1]


def _reduced(image: Image.Image, part: tuple[slice, slice], inches: float) -> np.ndarray:
    """A part of a photo in no more pixels than its panel can show; a figure of a large photo takes less time."""
    rows, columns = part
    factor = max(1, min(rows.stop - rows.start, columns.stop - columns.start) // int(2 * inches * _DPI))
    return np.asarray(image.convert("RGB").reduce(factor, (columns.start, rows.start, columns.stop, rows.stop)))


def fitted(text: str, tail: str, inches: float, size: float) -> str:
    """``text`` and ``tail`` on one line of that width; a text that is too long loses its middle."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    renderer = RendererAgg(1, 1, 72)

    def fits(shortened: str) -> bool:
        with _quiet_about_glyphs():
            across, _, _ = renderer.get_text_width_height_descent(shortened + tail, FontProperties(size=size), False)
        return across <= 72 * inches

    if fits(text):
        return text + tail
    # The longest that fits, by bisection: more letters never take less room.
    least, most = 0, len(text)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(_shortened(text, middle)) else (least, middle)
    return _shortened(text, least) + tail


def _shortened(text: str, letters: int) -> str:
    """The first and the last letters of a text, ``letters`` in all."""
    end = letters // 2
    return f"{text[: letters - end]}…{text[len(text) - end :]}"


@contextmanager
def _quiet_about_glyphs() -> Iterator[None]:
    """Silence matplotlib's warning about letters that the font lacks; they are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def as_png(canvas: Figure) -> bytes:
    """A figure as PNG."""
    return encoded(canvas, "png")


def encoded(canvas: Figure, kind: str, metadata: Mapping[str, str] | None = None) -> bytes:
    """A figure as a file of that kind: ``"pdf"``, ``"svg"``, ``"png"``; the same figure is the same file.

    Text stays text, in fonts that publishers take (no Type 3).
    """
    stream = io.BytesIO()
    undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    settings: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "headwater"}
    with _quiet_about_glyphs(), matplotlib.rc_context(settings):
        canvas.savefig(stream, format=kind, metadata={**undated, **(metadata or {})})
    return stream.getvalue()
