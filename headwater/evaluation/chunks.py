"""Which chunks of a run are still to be measured: new ones, and those whose rows are damaged or out of date."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from headwater.cluster import LOST
from headwater.data.labelled import LabelledImage
from headwater.errors import HeadwaterError
from headwater.files import is_intact

_DAMAGED, _CHANGED, _FAILED = "damaged", "changed", "failed"


def unfinished(
    paths: Sequence[Path], chunks: Sequence[Sequence[LabelledImage]], digests: Mapping[str, str]
) -> list[int]:
    """The chunks to measure; a warning says how many are measured again, and why.

    An image on which workers of a cluster died is not opened here to see whether it can be read now.

    Args:
        paths: file of each chunk's rows, with columns ``image``, ``error`` and ``digest``.
        chunks: its images.
        digests: current hash of each image file, by the image's name.
    """
    todo, again = list[int](), Counter[str]()
    for k, (path, chunk) in enumerate(zip(paths, chunks, strict=True)):
        if not path.is_file():
            todo.append(k)
        elif why := _stale(path, chunk, digests):
            todo.append(k)
            again[why] += 1
    if again:
        reasons = {
            _DAMAGED: "damaged on disk",
            _CHANGED: "of images that have changed since",
            _FAILED: "of images that could not be read before and can be now",
        }
        parts = ", ".join(f"{again[why]} {text}" for why, text in reasons.items() if again[why])
        count = f"{again.total()} of {len(paths)} files of rows in {paths[0].parent}"
        warnings.warn(f"{count} are measured again: {parts}", stacklevel=3)
    return todo


def _stale(path: Path, chunk: Sequence[LabelledImage], digests: Mapping[str, str]) -> str:
    """Why a chunk's rows cannot be used; empty if they can."""
    import pandas

    if not is_intact(path):
        return _DAMAGED
    try:
        rows = pandas.read_parquet(path, columns=["image", "error", "digest"])
    except Exception:  # a file replaced together with its checksum can make the reader raise anything
        return _DAMAGED
    if dict(zip(rows["image"], rows["digest"], strict=True)) != {p.name: digests[p.name] for p in chunk}:
        return _CHANGED
    failed = set(rows["image"][rows["error"].notna() & ~rows["error"].astype(str).str.startswith(LOST)])
    return _FAILED if any(_can_be_read(image) for image in chunk if image.name in failed) else ""


def _can_be_read(image: LabelledImage) -> bool:
    try:
        image.open()
    except HeadwaterError:
        return False
    return True
