"""Signals: every channel as a line in the colours of its relevance, and the relevance along the axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.ticker import MaxNLocator

from headwater.errors import InputError
from headwater.pictures.layout import (
    DPI,
    HEAD,
    WIDTH,
    add_axes,
    add_colour_bar,
    as_array,
    foot,
    is_dark,
    numbers,
    titled_canvas,
    zero_colour,
)
from headwater.report.images import Shown, Style, as_png, fitted, shown

_LEFT, _RIGHT = 1.05, 0.95  # inches beside the panels: names and ticks, colour bar
_COLUMNS = int((WIDTH - _LEFT - _RIGHT) * DPI)  # pixels from left to right
_PROFILE = 1.1  # height of the panel of relevance, in inches
_SHORT = 0.4  # inches; lines less high than that have no ticks
_MOST_CHANNELS = 64


def signal_figure(
    signal: npt.ArrayLike,
    heatmap: npt.ArrayLike,
    *,
    title: str,
    note: str = "",
    channel_names: Sequence[str] | None = None,
    sampling_rate: float | None = None,
    style: Style | None = None,
) -> bytes:
    """Draw a signal whose lines are coloured by relevance, and below it the relevance along the axis, as PNG.

    A signal longer than the figure is wide is drawn as the range of its values in every pixel column, in the colour
    of the relevance that these samples sum to: no peak and no relevance is left out. Each channel has its own scale.

    Args:
        signal: ``(C, L)``, in any unit.
        heatmap: relevance of the signal, ``(L,)``, which colours all channels alike; or ``(C, L)``, which colours each
            by its own, with the sum over the channels in the lower panel.
        title: stands over the figure.
        note: stands under it; ``{sum}`` in it becomes the sum of the relevance drawn.
        channel_names: one per channel; their numbers if not given.
        sampling_rate: samples per second, for an axis in seconds; an axis in samples if not given.
        style: colours.

    Raises:
        InputError: other shapes, values that are not finite, not one name per channel, a sampling rate that is not
            positive.

    >>> signal = np.sin(np.arange(200) / 9)[None]
    >>> signal_figure(signal, signal[0] ** 2, title="heart beat", sampling_rate=100)[1:4]
    b'PNG'
    """
    lines, relevance = numbers(signal, "C, L", "the signal"), as_array(heatmap, "the heatmap")
    relevance = numbers(relevance, "L" if relevance.ndim < 2 else "C, L", "the heatmap")
    channels, length = lines.shape
    if relevance.shape not in ((length,), (channels, length)):
        raise InputError(
            f"the heatmap of a signal {lines.shape} must have the shape ({length},) or {lines.shape}, "
            f"got {relevance.shape}"
        )
    names = [f"channel {k}" for k in range(channels)] if channel_names is None else list(channel_names)
    if len(names) != channels:
        raise InputError(f"a signal of {channels} channels needs as many channel names, got {len(names)}")
    if sampling_rate is not None and not 0 < sampling_rate < np.inf:
        raise InputError(f"the sampling rate must be positive, in samples per second, got {sampling_rate}")

    columns, size = summed_per_column(relevance, _COLUMNS)
    view = shown(columns, style)
    along = shown(columns if columns.ndim == 1 else columns.sum(0, dtype=np.float64), style)
    drawn = _drawn_channels(columns, channels)
    if len(drawn) < channels:
        note = f"{note}  Lines: {len(drawn)} of {channels} channels.".strip()
    step = 1 / (sampling_rate or 1.0)
    tall = float(np.clip(3.6 / len(drawn), 0.25, 1.6))
    bottom = foot(note) + 0.36
    height = HEAD + tall * len(drawn) + 0.1 + _PROFILE + bottom
    canvas = titled_canvas(height, title, note, along.sum)
    across = WIDTH - _LEFT - _RIGHT
    below = add_axes(canvas, _LEFT, bottom, across, _PROFILE)
    _draw_profile(below, along, size, step, length)
    below.set_ylabel("relevance" if columns.ndim == 1 else "relevance,\nall channels", fontsize=8)
    below.set_xlabel("sample" if sampling_rate is None else "time in s", fontsize=8, labelpad=2)
    below.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=sampling_rate is None))
    for row, channel in enumerate(drawn):
        at = bottom + _PROFILE + 0.1 + tall * (len(drawn) - 1 - row)
        axis = add_axes(canvas, _LEFT, at, across, tall)
        _draw_line(axis, lines[channel], view, view.values if columns.ndim == 1 else view.values[channel], size, step)
        axis.set_xlim(below.get_xlim())
        axis.set_xticks([])
        axis.tick_params(labelsize=6)
        if tall < _SHORT:
            axis.set_yticks([])
        name = fitted(names[channel], "", _LEFT - (0.1 if tall < _SHORT else 0.45), 8)
        canvas.text(0.005, (at + tall / 2) / height, name, fontsize=8, va="center", parse_math=False)
    each = "sample" if size == 1 else f"{size} samples"
    each += "" if sampling_rate is None or size == 1 else f"\n({size * step:.3g} s)"
    bar = add_axes(canvas, WIDTH - _RIGHT + 0.08, bottom + _PROFILE + 0.1, 0.13, tall * len(drawn))
    add_colour_bar(canvas, bar, view, f"relevance per {each}")
    return as_png(canvas)


def summed_per_column(values: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Sum neighbours so that at most ``most`` columns are left; their sum is that of all values.

    Args:
        values: ``(..., L)``.
        most: columns.

    Returns:
        ``(..., P)`` in float64, and how many values each column sums; the last may have fewer.

    >>> summed_per_column(np.arange(5), 2)
    (array([3., 7.]), 3)
    """
    size = -(-values.shape[-1] // most)
    starts = np.arange(0, values.shape[-1], size)
    return np.add.reduceat(values.astype(np.float64), starts, axis=-1), size


def _drawn_channels(columns: np.ndarray, channels: int) -> list[int]:
    """The channels that are drawn, in their order: all, or the first 64, or the 64 with the strongest relevance."""
    if channels <= _MOST_CHANNELS or columns.ndim == 1:
        return list(range(min(channels, _MOST_CHANNELS)))
    return sorted(np.argsort(-np.abs(columns).sum(-1), kind="stable")[:_MOST_CHANNELS].tolist())


def _draw_line(axis: Axes, line: np.ndarray, view: Shown, values: np.ndarray, size: int, step: float) -> None:
    """One channel: every column's part of the line in the colour of the column's relevance."""
    place, level = _column_points(line, size)
    middle = np.stack([place, level], -1) * (step, 1.0)
    half_way = (middle[:-1, -1:] + middle[1:, :1]) / 2
    parts = np.concatenate(
        [np.concatenate([middle[:1, :1], half_way]), middle, np.concatenate([half_way, middle[-1:, -1:]])], axis=1
    )
    strength = np.abs(np.clip(values / (view.norm.vmax or 1.0), -1.0 if view.signed else 0.0, 1.0))
    background = zero_colour(view)
    plain = 0.78 if is_dark(background) else 0.45
    mix = np.sqrt(strength)[:, None]
    colours = (1 - mix) * plain + mix * view.colormap(view.norm(values))[:, :3]
    order = np.argsort(strength, kind="stable")  # the strongest on top
    widths = 0.8 + (2.2 if size == 1 else 0.7) * strength  # where columns are pixels, they stay apart
    axis.add_collection(
        LineCollection(list(parts[order]), colors=colours[order], linewidths=widths[order], capstyle="round"),
        autolim=False,
    )
    if len(line) == 1:
        axis.plot(place[0], level[0], ".", color=colours[0])
    axis.set_facecolor(background)
    axis.spines[:].set(color="0.5", linewidth=0.5)
    low, high = float(line.min()), float(line.max())
    room = 0.08 * (high - low) or 1.0
    axis.set_ylim(low - room, high + room)
    axis.set_yticks(sorted({low, high}), [f"{level:.3g}" for level in sorted({low, high})])


def _column_points(line: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Place and level of the first, smallest, largest and last sample of every column, in their order: ``(P, 4)``.

    A line through them covers the same pixels as one through all samples (Jugel et al. 2014, M4).
    """
    padded = np.pad(line, (0, -len(line) % size), mode="edge").reshape(-1, size)
    count = len(padded)
    chosen = np.stack([np.zeros(count, int), padded.argmin(1), padded.argmax(1), np.full(count, size - 1)], axis=1)
    chosen.sort(axis=1)
    place = np.minimum(chosen + size * np.arange(count)[:, None], len(line) - 1)
    return place.astype(np.float64), np.take_along_axis(padded, chosen, axis=1)


def _draw_profile(axis: Axes, along: Shown, size: int, step: float, length: int) -> None:
    """The relevance of every column as a bar from zero."""
    edges = (np.minimum(np.arange(len(along.values) + 1) * size, length) - 0.5) * step
    left, right, zero = edges[:-1], edges[1:], np.zeros(len(along.values))
    corners = [np.stack(corner, -1) for corner in ((left, zero), (left, along.values), (right, along.values))]
    bars = np.stack([*corners, np.stack([right, zero], -1)], axis=1)
    colours = along.colormap(along.norm(along.values))
    edge = 0.8 if len(bars) > 400 else 0.3  # points: a bar of one pixel needs an edge to have its full colour
    collection = PolyCollection(list(bars), facecolors=colours, edgecolors=colours, linewidths=edge)
    axis.add_collection(collection, autolim=False)
    axis.set_facecolor(zero_colour(along))
    axis.axhline(0, color="0.5", linewidth=0.5)
    low, high = min(float(along.values.min()), 0.0), max(float(along.values.max()), 0.0)
    room = 0.06 * (high - low) or 1.0
    axis.set_ylim(low - room * (low < 0), high + room * (high > 0 or low == 0))
    axis.set_xlim(edges[0], edges[-1])
    axis.tick_params(labelsize=7)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
