"""Many images on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from headwater.errors import InputError
from headwater.report.images import as_png


def contact_sheet(images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 5, side: float = 2.2) -> bytes:
    """Images in rows, each with its title, as PNG.

    Args:
        images: RGB ``(H, W, 3)``, uint8 or float in [0, 1].
        titles: one per image.
        columns: images per row.
        side: width of an image, in inches.

    Raises:
        InputError: no images, or not as many titles.
    """
    if not images or len(images) != len(titles):
        raise InputError(f"a sheet needs images and a title for each, got {len(images)} and {len(titles)}")
    rows = -(-len(images) // columns)
    canvas = Figure(figsize=(side * columns, (side + 0.2) * rows), dpi=110)
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image, interpolation="none")
        axis.set_title(title, fontsize=8)
    canvas.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.22 / canvas.get_figheight(), 0.03, 0.14)
    return as_png(canvas)
