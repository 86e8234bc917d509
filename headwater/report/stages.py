"""How C3 chooses a region, stage by stage."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from headwater.errors import InputError
from headwater.heatmaps import above_threshold, c3, largest_component, largest_contour, reduced_map
from headwater.report.images import Style, as_png, shown


def c3_figure(heatmap: Tensor, size: int = 28, threshold: float | None = None, style: Style | None = None) -> bytes:
    """A map, its reduced version, both masks, their AND, the product and the enlarged result, side by side, as PNG.

    Args:
        heatmap: one map ``(H, W)``.
        size: side of the reduced map.
        threshold: pixels above it count; ``None`` for the reduced map's mean.
        style: colours of the maps.

    Raises:
        InputError: not one map, or one that is not finite.

    >>> import torch
    >>> c3_figure(torch.rand(64, 64))[1:4]
    b'PNG'
    """
    if heatmap.ndim != 2:
        raise InputError(f"c3_figure draws one map (H, W), got {tuple(heatmap.shape)}; call it once per map")
    result = c3(heatmap, size, threshold).cpu().numpy()
    values = heatmap.detach().float().cpu().numpy()
    reduced = reduced_map(values, size)
    above = above_threshold(reduced, threshold)
    contour, component = largest_contour(above), largest_component(above)
    stages = {
        "map": values,
        f"reduced to {size} x {size}": reduced,
        "inside of the\nlargest contour": contour,
        "largest\ncomponent": component,
        "AND": contour & component,
        "product": reduced * (contour & component),
        "enlarged": result,
    }
    canvas = Figure(figsize=(1.75 * len(stages), 2.2), dpi=130)
    FigureCanvasAgg(canvas)
    for axis, (title, stage) in zip(canvas.subplots(1, len(stages)), stages.items(), strict=True):
        if stage.dtype == np.bool_:
            axis.imshow(stage, cmap="gray", vmin=0, vmax=1, interpolation="none")
        else:
            view = shown(stage, style)
            axis.imshow(view.values, norm=view.norm, cmap=view.colormap, interpolation="none")
        axis.set_title(title, fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    canvas.subplots_adjust(0.005, 0.02, 0.995, 0.8, 0.06)
    return as_png(canvas)
