"""Features of a table's row: a bar for each of the most relevant, and one for all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.font_manager import FontProperties

from headwater.errors import InputError
from headwater.pictures.layout import HEAD, WIDTH, add_axes, foot, numbers, style_for, text_width, titled_canvas
from headwater.report.images import Shown, Style, as_png, fitted, shown

_NAMES, _VALUES, _NUMBERS = 3.6, 1.6, 0.75  # inches at most: names with values; values; numbers beside the bars
_BAR = 0.21  # inches from bar to bar


def features_figure(
    names: Sequence[str],
    relevance: npt.ArrayLike,
    values: Sequence[object] | npt.NDArray[np.generic] | None = None,
    *,
    most: int = 20,
    title: str,
    note: str = "",
    style: Style | None = None,
) -> bytes:
    """Draw a bar for each of the most relevant features, and one for the sum of all others, as PNG.

    The numbers beside the bars sum to the relevance of all features.

    Args:
        names: of the features, F of them.
        relevance: ``(F,)``.
        values: of the features, numbers or texts, written after their names.
        most: bars of single features, at least 1.
        title: stands over the figure.
        note: stands under it; ``{sum}`` in it becomes the sum of the bars.
        style: colours and sign.

    Raises:
        InputError: other shapes, relevance that is not finite, not one name and value per feature, ``most`` below 1.

    >>> features_figure(["age", "weight"], [0.4, -0.1], [63, 71.5], title="diabetes")[1:4]
    b'PNG'
    """
    parts = numbers(relevance, "F", "the relevance")
    for given, what in ((names, "names"), (values, "values")):
        if given is not None and len(given) != len(parts):
            raise InputError(f"{len(parts)} features need as many {what}, got {len(given)}")
    view = shown(parts.astype(np.float64), style_for(len(parts), style))
    order, rest = largest_and_rest(view.values, most)
    heads = [str(names[k]) for k in order]
    tails = ["" if values is None else f" = {_short(values[k])}" for k in order]
    bars = view.values[order]
    if len(order) < len(parts):
        heads.append(f"{len(parts) - len(order)} others")
        tails.append("")
        bars = np.append(bars, rest)

    bottom = foot(note) + 0.36
    tall = _BAR * len(bars) + 0.08
    height = HEAD + tall + bottom
    canvas = titled_canvas(height, title, note, float(bars.sum()))
    texts = [fitted(head, _fitted_value(tail), _NAMES, 8) for head, tail in zip(heads, tails, strict=True)]
    left = max(text_width(text, FontProperties(size=8)) for text in texts) + 0.15
    axis = add_axes(canvas, left, bottom, WIDTH - left - 0.1, tall)
    colours = _colours(bars, view)
    drawn = axis.barh(np.arange(len(bars)), bars, height=0.78, color=colours, edgecolor="0.6", linewidth=0.4)
    if len(order) < len(parts):
        drawn[-1].set(hatch="/////", facecolor="0.85", edgecolor="0.5", linewidth=0.5)
    low, high = min(float(bars.min()), 0.0), max(float(bars.max()), 0.0)
    room = ((high - low) or 1.0) * _NUMBERS / (WIDTH - left - 0.1 - 2 * _NUMBERS)
    axis.set_xlim(low - room * (low < 0), high + room * (high > 0 or low == 0))
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.axvline(0, color="0.5", linewidth=0.5)
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(labelsize=7)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axis.set_xlabel("relevance", fontsize=8, labelpad=2)
    for k, (text, bar) in enumerate(zip(texts, bars, strict=True)):
        at = (bottom + tall * (1 - (k + 0.5) / len(bars))) / height
        canvas.text((left - 0.06) / WIDTH, at, text, fontsize=8, ha="right", va="center", parse_math=False)
        before = bar < 0
        label: dict[str, Any] = {"fontsize": 7, "color": "0.25", "ha": "right" if before else "left", "va": "center"}
        number = f"{bar:+.3g}" if bar else "0"
        axis.annotate(number, (bar, k), (-3 if before else 3, 0), textcoords="offset points", **label)
    return as_png(canvas)


def largest_and_rest(relevance: np.ndarray, most: int) -> tuple[np.ndarray, float]:
    """The features of largest size, and the sum of the others; all of them where only one would be left over.

    Args:
        relevance: ``(F,)``.
        most: features, at least 1.

    Returns:
        Their indices, the largest first, and the sum of all others.

    Raises:
        InputError: ``most`` is below 1.

    >>> largest_and_rest(np.array([1.0, -5.0, 2.0, 3.0]), 2)
    (array([1, 3]), 3.0)
    """
    if most < 1:
        raise InputError(f"most must be at least 1 feature, got {most}")
    order = np.argsort(-np.abs(relevance), kind="stable")
    kept = len(order) if len(order) <= most + 1 else most
    return order[:kept], float(relevance[order[kept:]].sum(dtype=np.float64))


def _colours(bars: np.ndarray, view: Shown) -> np.ndarray:
    """The map's colours; of a colour map from dark to light only the middle, which can be seen on white."""
    scaled = np.asarray(view.norm(bars), dtype=np.float64)
    return view.colormap(scaled if view.signed else 0.25 + 0.5 * scaled)


def _short(value: object) -> str:
    """A feature's value as text, numbers with four digits."""
    if not isinstance(value, float | np.floating):
        return str(value)
    return "missing" if np.isnan(value) else f"{float(value):.4g}"


def _fitted_value(tail: str) -> str:
    """A value in less than half of the room for names, so that something of the name is left."""
    return fitted(tail, "", _VALUES, 8)
