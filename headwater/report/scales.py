"""Relevance at every scale, side by side: from where the network looked to what it saw."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from headwater.errors import InputError
from headwater.report.images import Style, as_png, overlay

_PER_ROW = 6


def scales_figure(
    image: Image.Image, maps: Mapping[str, np.ndarray], title: str = "", style: Style | None = None
) -> bytes:
    """The photo, then each scale's map laid over it, from coarse to fine, as PNG.

    Args:
        image: RGB.
        maps: by what stands over each; ``(H, W)`` in the photo's coordinates, NaN outside of what the network saw. Each
            has its own range of colours.
        title: stands over the figure.
        style: colours.

    Raises:
        InputError: there is no map.
    """
    if not maps:
        raise InputError(
            "there is no scale to draw; methods that propagate relevance, such as the composites, have some"
        )
    panels = {"": np.asarray(image.convert("RGB"))}
    panels |= {name: np.asarray(overlay(image, heatmap, style)) for name, heatmap in maps.items()}
    columns = min(_PER_ROW, len(panels))
    rows = -(-len(panels) // columns)
    side = 1.9
    tall = side * min(max(image.height / image.width, 1 / 3), 3)
    height = rows * (tall + 0.24) + 0.32
    canvas = Figure(figsize=(side * columns, height), dpi=150)
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, panel) in zip(axes.flat, panels.items(), strict=False):
        axis.imshow(panel, interpolation="none", aspect="auto")
        axis.set_title(name, fontsize=7, pad=2)
    canvas.text(0.005, 1 - 0.05 / height, title, fontsize=9, va="top", parse_math=False)
    canvas.subplots_adjust(0.005, 0.02 / height, 0.995, 1 - 0.5 / height, 0.03, 0.24 / tall)
    return as_png(canvas)
