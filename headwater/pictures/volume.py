"""Volumes: three orthogonal slices through the voxel of strongest relevance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from headwater.errors import InputError
from headwater.pictures.layout import (
    HEAD,
    WIDTH,
    add_axes,
    add_colour_bar,
    check_same,
    foot,
    laid_over,
    numbers,
    titled_canvas,
)
from headwater.report.images import Style, as_png, fitted, shown

_GAP, _RIGHT = 0.1, 1.05  # inches: between panels, and at the right for the colour bar
_TEXT = 0.36  # inches above each panel, for two lines
_HIGHEST, _LEAST = 6.0, 0.7  # of a panel, in inches
_CROSS = "#35c435"  # in neither of the default colour maps
_AXES = "DHW"


def volume_figure(
    volume: npt.ArrayLike,
    heatmap: npt.ArrayLike,
    *,
    title: str,
    note: str = "",
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    style: Style | None = None,
) -> bytes:
    """Draw the three slices through the voxel of strongest relevance, the volume in grey under its relevance, as PNG.

    A cross marks the voxel. All slices have one scale in space and one range of colours. Grey goes from black to white
    between the 1st and the 99th percentile of the volume.

    Args:
        volume: ``(D, H, W)``, one channel, in any unit.
        heatmap: relevance of each voxel, ``(D, H, W)``.
        title: stands over the figure.
        note: stands under it; ``{sum}`` in it becomes the sum of the relevance of the whole volume as drawn.
        spacing: distance of neighbouring voxels along D, H and W, in any one unit.
        style: colours.

    Raises:
        InputError: other shapes, values that are not finite, a spacing that is not three positive numbers.

    >>> volume = np.random.default_rng(0).random((8, 16, 16))
    >>> volume_figure(volume, volume**4, title="lesion", spacing=(3, 1, 1))[1:4]
    b'PNG'
    """
    grey, relevance = numbers(volume, "D, H, W", "the volume"), numbers(heatmap, "D, H, W", "the heatmap")
    check_same(relevance, grey.shape, "the volume")
    sides = np.asarray(spacing, dtype=np.float64)
    if sides.shape != (3,) or not np.all(np.isfinite(sides)) or not np.all(sides > 0):
        raise InputError(f"spacing must be three positive numbers, along D, H and W, got {spacing}")
    drawn = shown(relevance, style).values
    cross = strongest_voxel(drawn)
    low, high = np.percentile(grey, (1, 99))
    pictures = [_grey(grey.take(cross[k], axis=k), low, high) for k in range(3)]
    panels, view = laid_over(pictures, [relevance.take(cross[k], axis=k) for k in range(3)], style)

    shown_axes = ((1, 2), (0, 2), (0, 1))  # rows and columns of each panel
    extent = sides * grey.shape
    sizes, to_scale = _panel_sizes([(extent[rows], extent[columns]) for rows, columns in shown_axes])
    tall = max(rows for rows, _ in sizes)
    bottom = foot(note)
    height = HEAD + _TEXT + tall + bottom
    canvas = titled_canvas(height, title, note, float(drawn.sum(dtype=np.float64)))
    left = 0.05
    for k, ((rows, columns), panel) in enumerate(zip(sizes, panels, strict=True)):
        axis = add_axes(canvas, left, bottom + tall - rows, columns, rows)
        down, across = shown_axes[k]
        axis.imshow(panel, interpolation="antialiased", aspect="auto")
        _draw_cross(axis, cross[down], cross[across], panel.shape[0], panel.shape[1])
        heads = (f"{_AXES[k]} = {cross[k]} of 0 to {grey.shape[k] - 1}", f"{_AXES[down]} down, {_AXES[across]} across")
        for text, size, colour, above in zip(heads, (8, 7), ("black", "0.35"), (0.18, 0.04), strict=True):
            at = (bottom + tall + above) / height
            line = fitted(text, "" if to_scale or size == 8 else "; not to scale", columns + _GAP, size)
            canvas.text(left / WIDTH, at, line, fontsize=size, color=colour, va="bottom")
        left += columns + _GAP
    bar = add_axes(canvas, left, bottom, 0.13, tall)
    add_colour_bar(canvas, bar, view, "relevance per voxel")
    return as_png(canvas)


def strongest_voxel(heatmap: np.ndarray) -> tuple[int, ...]:
    """Index of the value of largest size; the first of equal ones.

    >>> strongest_voxel(np.array([[[0.1, -0.7]], [[0.2, 0.5]]]))
    (0, 0, 1)
    """
    return tuple(int(k) for k in np.unravel_index(np.argmax(np.abs(heatmap)), heatmap.shape))


def _grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """A slice as RGB, uint8: black at ``low`` and below, white at ``high`` and above."""
    scaled = (
        np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) if high > low else np.full(values.shape, 0.5)
    )
    return np.repeat((scaled * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def _panel_sizes(extents: list[tuple[float, float]]) -> tuple[list[tuple[float, float]], bool]:
    """Rows and columns of the panels in inches, and whether all have the same scale.

    They share the figure's width at one scale; a side that would be too short to see is lengthened.
    """
    room = WIDTH - _RIGHT - 0.05 - 3 * _GAP
    scale = min(room / sum(columns for _, columns in extents), _HIGHEST / max(rows for rows, _ in extents))
    sizes = [(rows * scale, columns * scale) for rows, columns in extents]
    if min(min(size) for size in sizes) >= _LEAST:
        return sizes, True
    sizes = [(max(rows, _LEAST), max(columns, _LEAST)) for rows, columns in sizes]
    shrink = min(1.0, room / sum(columns for _, columns in sizes))
    return [(rows, columns * shrink) for rows, columns in sizes], False


def _draw_cross(axis: Axes, row: int, column: int, rows: int, columns: int) -> None:
    """Lines through a voxel, from the edges of the panel up to a gap around it, so that it stays visible."""
    gap_rows, gap_columns = max(0.03 * rows, 0.8), max(0.03 * columns, 0.8)
    across = ([-0.5, column - gap_columns], [column + gap_columns, columns - 0.5])
    down = ([-0.5, row - gap_rows], [row + gap_rows, rows - 0.5])
    for ends in across:
        axis.plot(ends, [row, row], color=_CROSS, linewidth=0.8)
    for ends in down:
        axis.plot([column, column], ends, color=_CROSS, linewidth=0.8)
    axis.set_xlim(-0.5, columns - 0.5)
    axis.set_ylim(rows - 0.5, -0.5)
    axis.set_xticks([])
    axis.set_yticks([])
