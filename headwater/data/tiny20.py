"""Images of the bundled network's classes, all of one size, held in memory for training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headwater.data.labelled import load_labelled
from headwater.errors import DataError, ImageError


@dataclass(frozen=True)
class ImageSet:
    """Images held in memory: ``images`` uint8 ``(N, 3, H, W)``, ``labels`` long ``(N,)``, ``names`` of N files."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]


def load_tiny20(root: str | Path, split: str) -> ImageSet:
    """Read one split (``"train"`` or ``"val"``) of tiny20 below ``root``, sorted by name.

    ``root`` holds ``classes.csv`` (columns ``index``, ``wnid``, ``name``) and, for each split, either ``<split>.tar``
    or a directory ``<split>``, with one folder per class inside.

    Raises:
        DataError: a part is missing, unreadable, or names an unknown class.
    """
    root = Path(root)
    if not (root / "classes.csv").is_file():
        raise DataError(
            f"{root}: no classes.csv; expected classes.csv with train.tar and val.tar, or folders train/ val/"
        )
    found = load_labelled(root, split).images
    try:
        images = [torch.from_numpy(np.array(image.open())).permute(2, 0, 1) for image in found]
    except ImageError as error:
        raise DataError(f"{root}/{split}: {error}") from error
    labels = torch.tensor([image.label for image in found])
    return ImageSet(torch.stack(images), labels, tuple(image.name for image in found))
