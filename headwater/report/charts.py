"""Line and interval charts as SVG without scripts; the page around them has the colours, for dark and light."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

from headwater.metrics.statistics import Summary

COLOURS = 10
"""Colours of lines, CSS classes ``c0`` to ``c9``; further lines have the same colours, dashed (``d1`` to ``d3``)."""
_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 40
_ROW = 22


def colour_class(place: int) -> str:
    """The CSS classes of the line at that place."""
    return f"c{place % COLOURS} d{place // COLOURS % 4}"


def line_chart(lines: Mapping[str, Sequence[float]], description: str, x_label: str, y_label: str) -> Markup:
    """Lines over evenly spaced points from 0 to 1.

    Args:
        lines: values by name; a line's colour goes by its place.
        description: the alternative text.
        x_label: below the horizontal axis.
        y_label: at the vertical axis.
    """
    known = [v for values in lines.values() for v in values if math.isfinite(v)]
    ticks = _ticks(min([*known, 0.0]), max([*known, 0.0]))
    low, high = ticks[0], ticks[-1]

    def x(part: float) -> float:
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(0):.1f}" x2="{x(1):.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{x(0) - 6:.1f}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<text x="{x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    for place, (name, values) in enumerate(lines.items()):
        last = max(1, len(values) - 1)
        points = " ".join(f"{x(k / last):.1f},{y(v):.1f}" for k, v in enumerate(values) if math.isfinite(v))
        title = f"<title>{escape(name)}</title>"
        parts.append(f'<polyline class="line {colour_class(place)}" points="{points}">{title}</polyline>')
    parts.append(f'<text x="{x(0.5):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    turned = f'transform="rotate(-90 12 {middle:.1f})" text-anchor="middle"'
    parts.append(f'<text x="12" y="{middle:.1f}" {turned}>{escape(y_label)}</text>')
    return _svg(parts, _WIDTH, _HEIGHT, description)


def interval_chart(intervals: Mapping[str, Summary], description: str, x_label: str) -> Markup:
    """A dot at the mean and a line over the 95 % interval, a row for each name.

    Args:
        intervals: summaries by name; NaN means are left out.
        description: the alternative text.
        x_label: below the axis.
    """
    rows = {name: s for name, s in intervals.items() if math.isfinite(s.mean)}
    ends = [v for s in rows.values() for v in (s.low, s.high, s.mean) if math.isfinite(v)]
    ticks = _ticks(min([*ends, 0.0]), max([*ends, 0.0]))
    low, high = ticks[0], ticks[-1]
    left = 16 + 9 * max((len(name) for name in rows), default=0)
    width, height = left + 420, _TOP + _ROW * len(rows) + _BOTTOM

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - 20)

    bottom, parts = height - _BOTTOM, []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for place, (name, s) in enumerate(rows.items()):
        y = _TOP + _ROW * (place + 0.5)
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        if math.isfinite(s.high):
            parts.append(f'<line class="interval" x1="{x(s.low):.1f}" x2="{x(s.high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="mean" cx="{x(s.mean):.1f}" cy="{y}" r="4"/>')
    parts.append(
        f'<text x="{(left + width - 20) / 2:.1f}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return _svg(parts, width, height, description)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from below ``low`` to above ``high``."""
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high if high > low else low + 1)]


def _svg(parts: Sequence[str], width: float, height: float, description: str) -> Markup:
    head = f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(description)}">'
    return Markup("\n".join([head, *parts, "</svg>"]))
