"""Many pictures on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from headwater.errors import InputError
from headwater.report.pictures import as_png


def contact_sheet(pictures: Sequence[np.ndarray], titles: Sequence[str], columns: int = 5, side: float = 2.2) -> bytes:
    """Pictures in rows, each with its title, as PNG.

    Args:
        pictures: RGB ``(H, W, 3)``, uint8 or float in [0, 1].
        titles: one a picture.
        columns: pictures in a row.
        side: width of a picture, in inches.

    Raises:
        InputError: no pictures, or not as many titles.
    """
    if not pictures or len(pictures) != len(titles):
        raise InputError(f"a sheet needs pictures and a title for each, got {len(pictures)} and {len(titles)}")
    rows = -(-len(pictures) // columns)
    canvas = Figure(figsize=(side * columns, (side + 0.2) * rows), dpi=110)
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture, interpolation="none")
        axis.set_title(title, fontsize=8)
    canvas.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.22 / canvas.get_figheight(), 0.03, 0.14)
    return as_png(canvas)
