"""Flow figure of a network: at every join, how much relevance took the skip and how much the branch."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from headwater.engine.flow import Flow, JoinFlow
from headwater.errors import InputError
from headwater.report.images import as_png

_PER_ROW = 16
_COLOURS = {"skip": "#2a7fb8", "branch": "#e08a2e", "trunk": "#8fa3ad"}


def flow_figure(flow: Flow, title: str = "") -> bytes:
    """Draw the mean over the images of ``flow``, from the image's end (left) to the prediction (right), as PNG.

    Every join is a fork: the upper ribbon is the skip, the lower the branch, their thickness the relevance that went
    through them, as parts of the largest relevance at a join. The numbers are percent of the join's own relevance.

    Raises:
        InputError: the network has no join.
    """
    if not flow.joins:
        raise InputError("the network has no join that relevance passes; there is no flow to draw")
    rows = [flow.joins[k : k + _PER_ROW] for k in range(0, len(flow.joins), _PER_ROW)]
    largest = max(float(join.relevance.mean(0).sum()) for join in flow.joins) or 1.0
    longest = max(len(row) for row in rows)
    canvas = Figure(figsize=(max(4.5, 0.85 * longest + 0.6), 2.3 * len(rows) + 0.5), dpi=150)
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, row in zip(axes, rows, strict=True):
        for position, join in enumerate(row):
            _fork(axis, position, join, largest)
        axis.set_xlim(-0.35, longest + 0.1)
        axis.set_ylim(-1.25, 1.2)
        axis.axis("off")
    handles = [Patch(color=_COLOURS[kind], label=kind) for kind in ("skip", "branch")]
    axes[0].legend(handles=handles, loc="upper right", ncols=2, fontsize=8, frameon=False, borderaxespad=0)
    axes[0].set_title(title, fontsize=9, loc="left")
    canvas.subplots_adjust(0.01, 0.02, 0.99, 1 - 0.3 / canvas.get_figheight(), hspace=0.05)
    return as_png(canvas)


def _fork(axis: Axes, position: int, join: JoinFlow, largest: float) -> None:
    """One join: the ribbon splits at the left, where the branches begin, and merges at the right, at the sum."""
    parts = join.relevance.mean(0).double().cpu().numpy()
    total = parts.sum()
    # Skips on top; thickness of the ribbons, their sum is the join's.
    order = sorted(range(len(parts)), key=lambda k: join.branches[k] != "skip")
    width = 0.8 * total / largest
    x = np.linspace(0, 1, 60)
    bulge = np.sin(np.pi * x) ** 2
    top = width / 2
    spread = np.linspace(0.45, -0.45, len(parts)) if len(parts) > 1 else np.zeros(1)
    for place, k in enumerate(order):
        thickness = width * parts[k] / total if total else 0.0
        upper = top + spread[place] * bulge
        colour = _COLOURS[join.branches[k]]
        axis.fill_between(position + 0.12 + 0.76 * x, upper, upper - thickness, color=colour, lw=0)
        middle = upper[30] + 0.09 if place == 0 else upper[30] - thickness - 0.09
        share = 100 * parts[k] / total if total else 0.0
        axis.text(position + 0.5, middle, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour)
        top -= thickness
    for start, length in ((0.0, 0.12), (0.88, 0.12)):
        axis.fill_between(
            [position + start, position + start + length], width / 2, -width / 2, color=_COLOURS["trunk"], lw=0
        )
    axis.text(position + 0.5, -1.2, join.module or "(model)", ha="center", va="bottom", fontsize=6, color="0.35")
