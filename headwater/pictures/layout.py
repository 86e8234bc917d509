"""Checks of arrays, titles, notes and colour bars that all pictures share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from headwater.errors import InputError
from headwater.report.images import Shown, Style, fitted, overlay, shown

WIDTH = 10.0
"""Width of every figure, in inches; as :func:`headwater.report.images.figure`."""
DPI = 150
HEAD = 0.3
"""Inches above the panels, for the title."""
_EXTEND = {(False, False): "neither", (True, False): "max", (False, True): "min", (True, True): "both"}
_BRIGHTNESS = np.array([0.2126, 0.7152, 0.0722])  # of linear red, green and blue (sRGB)


def as_array(values: npt.ArrayLike, name: str) -> np.ndarray:
    """What numpy makes of ``values``.

    Raises:
        InputError: it cannot: rows of different lengths, say, or a tensor on a GPU.
    """
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be an array, and numpy cannot make one of it: {error}") from error


def numbers(values: npt.ArrayLike, axes: str, name: str) -> np.ndarray:
    """An array as float32 or float64, checked to have these axes and only finite values.

    Args:
        values: whatever numpy takes as an array.
        axes: their letters, such as ``"C, L"``.
        name: what the array is called in errors.

    Raises:
        InputError: other axes, an empty axis, values that are no real numbers or not finite.
    """
    array = as_array(values, name)
    count = len(axes.split(","))
    wanted = f"({axes},)" if count == 1 else f"({axes})"
    if array.ndim != count or not array.size:
        raise InputError(f"{name} must have the shape {wanted} and at least one value, got shape {array.shape}")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold real numbers, got {array.dtype}")
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    broken = array.size - np.count_nonzero(np.isfinite(array))
    if broken:
        raise InputError(f"{name} has {broken} values that are NaN or infinite; all must be finite")
    return array


def check_same(heatmap: np.ndarray, shape: tuple[int, ...], of: str) -> None:
    """Check that a heatmap has the shape of its input.

    Raises:
        InputError: it has another.
    """
    if heatmap.shape != shape:
        raise InputError(f"the heatmap must have the shape {shape} of {of}, got {heatmap.shape}")


def percent_scale(values: np.ndarray) -> float | None:
    """Factor from relevance to percent of its sum; ``None`` where the sum is zero, or all but cancels.

    A sum below a millionth of the values' sizes is one that rounding in float32 can make.

    >>> percent_scale(np.array([3.0, -1.0]))
    50.0
    """
    total = float(values.sum(dtype=np.float64))
    return 100 / total if abs(total) > 1e-6 * float(np.abs(values).sum(dtype=np.float64)) else None


def style_for(count: int, style: Style | None) -> Style:
    """The style given, or the usual one; of fewer than 200 values its percentile would cut off the largest alone."""
    return style or (Style(clip=100.0) if count < 200 else Style())


def text_width(text: str, font: FontProperties) -> float:
    """Width of a line of text, in inches."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        # At the resolution of the figure: hinting makes letters wider or narrower at another.
        across, _, _ = RendererAgg(1, 1, DPI).get_text_width_height_descent(text, font, False)
    return float(across) / DPI


def foot(note: str) -> float:
    """Inches below the panels, for the note."""
    return 0.27 if note else 0.08


def titled_canvas(height: float, title: str, note: str, total: float) -> Figure:
    """An empty figure with its title above and its note below.

    Args:
        height: in inches.
        title: shortened where it does not fit.
        note: likewise; ``{sum}`` in it becomes ``total``.
        total: sum of the values drawn.
    """
    canvas = Figure(figsize=(WIDTH, height), dpi=DPI)
    FigureCanvasAgg(canvas)
    texts = ((title, 9, "black", height - 0.22), (note.replace("{sum}", f"{total:.4g}"), 8, "0.35", 0.07))
    for text, size, colour, at in texts:
        line = fitted(text, "", WIDTH - 0.1, size)
        canvas.text(0.005, at / height, line, fontsize=size, color=colour, va="bottom", parse_math=False)
    return canvas


def add_axes(canvas: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches from the lower left corner."""
    across, up = canvas.get_size_inches()
    return canvas.add_axes((left / across, bottom / up, width / across, height / up))


def add_colour_bar(canvas: Figure, axis: Axes, view: Shown, unit: str) -> None:
    """Draw the colours and their range into ``axis``; an arrow marks an end beyond which values lie."""
    drawn = ScalarMappable(norm=view.norm, cmap=view.colormap)
    canvas.colorbar(drawn, cax=axis, extend=_EXTEND[view.clipped, view.below]).set_label(unit, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.ticklabel_format(axis="y", scilimits=(-2, 3))
    axis.yaxis.get_offset_text().set_fontsize(7)


def zero_colour(view: Shown) -> tuple[float, float, float]:
    """The colour of zero relevance, on which what has relevance stands out."""
    red, green, blue, _ = view.colormap(float(view.norm(0.0)))
    return red, green, blue


def is_dark(colour: npt.ArrayLike) -> bool:
    """Whether white text is easier to read on an RGB colour than black text, by the contrast ratio of WCAG 2."""
    red_green_blue = np.asarray(colour, dtype=np.float64)[:3]
    linear = np.where(red_green_blue <= 0.04045, red_green_blue / 12.92, ((red_green_blue + 0.055) / 1.055) ** 2.4)
    return float(linear @ _BRIGHTNESS) < 0.179


def laid_over(
    pictures: Sequence[np.ndarray], maps: Sequence[np.ndarray], style: Style | None
) -> tuple[list[np.ndarray], Shown]:
    """Lay maps over their pictures, all with one range of colours.

    Args:
        pictures: RGB, uint8, each ``(H, W, 3)`` with its own size.
        maps: ``(H, W)``, one per picture.
        style: colours.

    Returns:
        The mixed pictures, and the range of colours they have in common.
    """
    # overlay() mixes pixel by pixel, so one long row of all pixels gives all pictures the same range.
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures])
    values = np.concatenate([heatmap.reshape(-1) for heatmap in maps])
    mixed = np.asarray(overlay(Image.fromarray(pixels[None]), values[None], style))[0]
    ends = np.cumsum([heatmap.size for heatmap in maps])[:-1]
    parts = [part.reshape((*heatmap.shape, 3)) for part, heatmap in zip(np.split(mixed, ends), maps, strict=True)]
    return parts, shown(values, style)
