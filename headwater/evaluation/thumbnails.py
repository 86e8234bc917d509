"""Small pictures of what was measured, kept with the rows so that a report can show them without network and data."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional

from headwater.report.images import Style

COLUMNS = ("map", "photo")
"""Of a chunk's rows; tables of results are without them."""
_MAP_SIDE, _PHOTO_SIDE, _QUALITY = 56, 144, 80


def small_photo(photo: Image.Image) -> bytes:
    """What the network saw, as JPEG of at most 144 x 144 pixels."""
    copy, stream = photo.copy(), io.BytesIO()
    copy.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE))
    copy.save(stream, format="jpeg", quality=_QUALITY)
    return stream.getvalue()


def small_map(heatmap: Tensor) -> bytes:
    """A map ``(H, W)`` as greyscale PNG of at most 56 x 56 pixels: grey 128 is 0, 255 the range's end, 1 its negative.

    The range ends at the percentile of the sizes where drawn colours end, see :class:`~headwater.report.Style`.
    """
    values = heatmap.detach().double().cpu()[None, None]
    side = (min(heatmap.shape[0], _MAP_SIDE), min(heatmap.shape[1], _MAP_SIDE))
    reduced = functional.adaptive_avg_pool2d(values, side)[0, 0].numpy()
    top = float(np.percentile(np.abs(reduced), Style().clip)) or float(np.abs(reduced).max()) or 1.0
    levels = 128 + np.round(127 * np.clip(reduced / top, -1, 1))
    stream = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(stream, format="png")
    return stream.getvalue()
