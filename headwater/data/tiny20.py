"""Pictures of the bundled network's classes, read from ImageFolder directories or tar files of that layout."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from headwater.errors import DataError


@dataclass(frozen=True)
class PictureSet:
    """Pictures held in memory: ``pictures`` uint8 ``(N, 3, H, W)``, ``labels`` long ``(N,)``, ``names`` of N files."""

    pictures: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]


def load_tiny20(root: str | Path, split: str) -> PictureSet:
    """Read one split (``"train"`` or ``"val"``) of tiny20 below ``root``.

    ``root`` holds ``classes.csv`` (columns ``index``, ``wnid``) and, for each split, either ``<split>.tar`` or a
    directory ``<split>``, with one folder a class inside.

    Raises:
        DataError: a part is missing, unreadable, or names an unknown class.
    """
    root = Path(root)
    table = root / "classes.csv"
    if not table.is_file():
        raise DataError(
            f"{root}: no classes.csv; expected classes.csv with train.tar and val.tar, or folders train/ val/"
        )
    with table.open(newline="") as file:
        index = {row["wnid"]: int(row["index"]) for row in csv.DictReader(file)}
    pictures, labels, names = [], [], []
    for name, content in _files(root, split):
        wnid = Path(name).parts[-2]
        if wnid not in index:
            raise DataError(f"{root}/{split}: picture {name} lies in folder {wnid}, which classes.csv does not list")
        try:
            picture = Image.open(io.BytesIO(content)).convert("RGB")
        except OSError as error:
            raise DataError(f"{root}/{split}: {name} is not a readable picture ({error})") from error
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
        labels.append(index[wnid])
        names.append(name)
    if not pictures:
        raise DataError(f"{root}/{split}: no JPEG picture found")
    return PictureSet(torch.stack(pictures), torch.tensor(labels), tuple(names))


def _files(root: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of each JPEG of a split, sorted by name, so that the order never depends on the storage."""
    folder, archive = root / split, root / f"{split}.tar"
    if folder.is_dir():
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg")):
            yield str(path.relative_to(root)), path.read_bytes()
    elif archive.is_file():
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if m.isfile() and m.name.lower().endswith((".jpeg", ".jpg"))]
            for member in sorted(members, key=lambda m: m.name):
                stream = tar.extractfile(member)
                if stream is not None:
                    yield member.name, stream.read()
    else:
        raise DataError(f"{root}: neither {split}/ nor {split}.tar found")
