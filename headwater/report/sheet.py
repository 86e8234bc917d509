"""Many images on one sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from headwater.errors import InputError
from headwater.report.images import as_png

_CAPTION_SIZE, _LINE = 7, 0.14  # points, and inches from line to line


def contact_sheet(
    images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 5, side: float = 2.2, caption: str = ""
) -> bytes:
    """Images in rows, each with its title, as PNG.

    Args:
        images: RGB ``(H, W, 3)``, uint8 or float in [0, 1].
        titles: one per image.
        columns: images per row.
        side: width of an image, in inches.
        caption: stands below the images, each of its lines wrapped.

    Raises:
        InputError: no images, or not as many titles.
    """
    if not images or len(images) != len(titles):
        raise InputError(f"a sheet needs images and a title for each, got {len(images)} and {len(titles)}")
    rows = -(-len(images) // columns)
    lines = wrapped(caption, side * columns)
    below = _LINE * (len(lines) + 0.5) * bool(lines)
    height = (side + 0.2) * rows + below
    canvas = Figure(figsize=(side * columns, height), dpi=110)
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image, interpolation="none")
        axis.set_title(title, fontsize=8)
    canvas.subplots_adjust(0.01, 0.01 + below / height, 0.99, 1 - 0.22 / height, 0.03, 0.14)
    write_caption(canvas, lines)
    return as_png(canvas)


def wrapped(caption: str, inches: float) -> list[str]:
    """The lines of a caption below a figure of that width."""
    letters = max(20, int(inches * 72 / (0.56 * _CAPTION_SIZE)))
    return [part for line in caption.splitlines() for part in textwrap.wrap(line, letters)]


def write_caption(canvas: Figure, lines: Sequence[str]) -> None:
    """Write a caption's lines in the lower left corner of a figure."""
    if lines:
        at = 0.05 / canvas.get_figwidth(), 0.05 / canvas.get_figheight()
        canvas.text(*at, "\n".join(lines), fontsize=_CAPTION_SIZE, color="0.25", va="bottom", parse_math=False)
