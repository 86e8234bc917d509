"""Videos: a strip of frames under their relevance, and the relevance of every frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator
from PIL import Image

from headwater.errors import InputError
from headwater.pictures.layout import (
    DPI,
    HEAD,
    WIDTH,
    add_axes,
    add_colour_bar,
    as_array,
    check_same,
    foot,
    laid_over,
    numbers,
    percent_scale,
    titled_canvas,
)
from headwater.report.images import Style, as_png, shown

_PER_ROW = 8
_GAP, _RIGHT, _LEFT = 0.06, 0.95, 0.65  # inches: between frames, for the colour bar, for the ticks of the chart
_TEXT = 0.38  # inches below each frame, for its number and its share
_CHART = 0.9  # height of the chart, in inches
_LARGEST = 3.5  # side of a frame, in inches
_MARK = "#2c8a2c"  # of the frame with most positive relevance


def video_figure(
    frames: npt.ArrayLike,
    heatmap: npt.ArrayLike,
    *,
    title: str,
    note: str = "",
    most: int = 8,
    style: Style | None = None,
) -> bytes:
    """Draw some frames under their relevance, and a chart of the relevance of all frames, as PNG.

    Frames are chosen evenly, and the one with most positive relevance is always among them; it has a green border.
    Under each stands its part of the video's relevance. In the chart, a frame's positive relevance goes up and its
    negative relevance down. Where a video's relevance sums to zero, sums are written instead of parts.

    Args:
        frames: RGB, uint8, ``(T, H, W, 3)``.
        heatmap: relevance of each pixel, ``(T, H, W)``.
        title: stands over the figure.
        note: stands under it; ``{sum}`` in it becomes the sum of the relevance of all frames as drawn.
        most: frames drawn, at least 1.
        style: colours; all frames have one range.

    Raises:
        InputError: other shapes, frames that are not uint8, relevance that is not finite, ``most`` below 1.

    >>> frames = np.zeros((12, 18, 32, 3), np.uint8)
    >>> heatmap = np.random.default_rng(0).random((12, 18, 32))
    >>> video_figure(frames, heatmap, title="archery", most=4)[1:4]
    b'PNG'
    """
    photos, relevance = as_array(frames, "frames"), numbers(heatmap, "T, H, W", "the heatmap")
    if photos.dtype != np.uint8 or photos.ndim != 4 or photos.shape[-1] != 3:
        raise InputError(f"frames must be RGB, uint8, (T, H, W, 3), got {photos.dtype} of shape {photos.shape}")
    check_same(relevance, photos.shape[:3], "the frames")
    up, down = frame_parts(shown(relevance, style).values)
    sums = up + down
    chosen = chosen_frames(up, most)
    laid, view = laid_over([photos[k] for k in chosen], [relevance[k] for k in chosen], style)
    percent = percent_scale(sums)
    scale = 1.0 if percent is None else percent

    columns = min(_PER_ROW, len(chosen))
    rows = -(-len(chosen) // columns)
    side = min((WIDTH - _RIGHT - _GAP * columns) / columns, _LARGEST)
    tall = side * min(max(photos.shape[1] / photos.shape[2], 1 / 3), 3.0)
    chart = foot(note) + 0.36
    strip = rows * (tall + _TEXT)
    height = HEAD + strip + 0.1 + _CHART + chart
    canvas = titled_canvas(height, title, note, float(sums.sum()))
    for place, (frame, panel) in enumerate(zip(chosen, laid, strict=True)):
        row, column = divmod(place, columns)
        left, bottom = 0.05 + column * (side + _GAP), height - HEAD - row * (tall + _TEXT) - tall
        axis = add_axes(canvas, left, bottom, side, tall)
        axis.imshow(_reduced(panel, side), interpolation="antialiased", aspect="auto")
        axis.set_xticks([])
        axis.set_yticks([])
        if up[frame] > 0 and frame == int(np.argmax(up)):
            axis.spines[:].set(color=_MARK, linewidth=2)
        share = f"{sums[frame]:.3g}" if percent is None else f"{sums[frame] * percent:.1f} %"
        texts = ((f"frame {frame}", 7, "0.35"), (share, 8, "black"))
        for line, (text, size, colour) in enumerate(texts):
            at = (bottom - 0.05 - 0.13 * line) / height
            canvas.text((left + side / 2) / WIDTH, at, text, fontsize=size, color=colour, ha="center", va="top")
    bar = add_axes(canvas, 0.05 + columns * (side + _GAP) + 0.02, height - HEAD - strip + _TEXT, 0.13, strip - _TEXT)
    add_colour_bar(canvas, bar, view, "relevance per\npixel")
    axis = add_axes(canvas, _LEFT, chart, WIDTH - _LEFT - _RIGHT, _CHART)
    _draw_chart(axis, up * scale, down * scale, chosen)
    axis.set_ylabel("relevance" if percent is None else "% of all\nrelevance", fontsize=8)
    return as_png(canvas)


def frame_parts(heatmap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the positive and of the negative relevance of each frame; both together sum to the heatmap's sum.

    Args:
        heatmap: ``(T, H, W)``.

    Returns:
        Two arrays ``(T,)`` in float64; the second has no value above zero.
    """
    up = np.maximum(heatmap, 0).sum(axis=(1, 2), dtype=np.float64)
    return up, np.minimum(heatmap, 0).sum(axis=(1, 2), dtype=np.float64)


def chosen_frames(positive: np.ndarray, most: int) -> list[int]:
    """Frames spread evenly from the first to the last; the nearest one gives way to that of most positive relevance.

    Args:
        positive: sum of the positive relevance of each frame, ``(T,)``.
        most: frames chosen, at least 1.

    Raises:
        InputError: ``most`` is below 1.

    >>> chosen_frames(np.array([0, 0, 0, 0, 0, 0, 0, 5, 0, 0]), 4)
    [0, 3, 7, 9]
    """
    if most < 1:
        raise InputError(f"most must be at least 1 frame, got {most}")
    best = int(np.argmax(positive))
    frames = np.linspace(0, len(positive) - 1, min(most, len(positive))).round().astype(int)
    frames[np.argmin(np.abs(frames - best))] = best
    return [int(k) for k in frames]


def _reduced(panel: np.ndarray, inches: float) -> np.ndarray:
    """A frame in no more pixels than its panel can show."""
    factor = max(1, min(panel.shape[:2]) // int(2 * inches * DPI))
    return np.asarray(Image.fromarray(panel).reduce(factor))


def _draw_chart(axis: Axes, up: np.ndarray, down: np.ndarray, chosen: list[int]) -> None:
    """Bars of all frames; those drawn above are darker."""
    drawn = np.isin(np.arange(len(up)), chosen)
    best = int(np.argmax(up))
    colours = [_MARK if k == best and up[k] > 0 else "0.35" if drawn[k] else "0.72" for k in range(len(up))]
    for part in (up, down):
        axis.bar(np.arange(len(up)), part, width=0.85 if len(up) < 150 else 1.0, color=colours)
    axis.axhline(0, color="0.5", linewidth=0.5)
    axis.set_xlim(-0.6, max(len(up), 8) - 0.4)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=7)
    axis.xaxis.set_major_locator(FixedLocator(range(len(up))) if len(up) <= 24 else MaxNLocator("auto", integer=True))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axis.set_xlabel("frame", fontsize=8, labelpad=2)
