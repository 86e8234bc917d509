"""What was begun and not ended, so that an image on which workers die costs a row and not the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LOST = "workers died on this image"
"""Beginning of the error of an image that is given up for that."""
_TOGETHER, _ALONE = 2, 2
"""Deaths before a chunk's images are tried one by one, and before one of them is given up."""


@dataclass(frozen=True)
class Step:
    """What a worker does next with a chunk.

    Attributes:
        alone: name of the one image to try; ``None`` for the rest of the chunk together.
        given_up: images that are not tried, and why.
        kept: what each image gave alone, where the rest together has failed; then nothing is left to measure.
        stop: why the whole run is given up, or empty.
    """

    alone: str | None = None
    given_up: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, bytes] | None = None
    stop: str = ""


@dataclass
class _Record:
    """What happened to a chunk so far: how often its images were begun, together and each alone."""

    together: int = 0
    remainder: int = 0
    alone: dict[str, int] = field(default_factory=dict)
    kept: dict[str, bytes] = field(default_factory=dict)
    reason: str = "out of memory, or a crash in a library"


class Journal:
    """What workers begin and end.

    A worker asks for the next step *before* each attempt, so a step that was begun and not ended is a death. A chunk is
    tried twice as a whole, as on one machine. If workers die both times, its images are tried one by one; an image on
    which two more workers die is given up. The others are then measured together, as if that image could not be read.

    Args:
        patience: attempts that may begin in a row, without one that ends, before the run is given up: then it is not
            the images. Attempts with one image alone count once for each image.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.in_vain, self.starting = patience, 0, 0
        self._records: dict[int, _Record] = {}

    def next(self, chunk: int, names: Sequence[str]) -> Step:
        """The next step of a chunk; it counts as begun.

        >>> journal = Journal(patience=10)
        >>> [journal.next(0, ["a", "b"]).alone for _ in range(4)]
        [None, None, 'a', 'a']
        >>> journal.survived(0, "b", b"rows")
        >>> journal.next(0, ["a", "b"]).given_up
        {'a': 'workers died on this image 2 times (out of memory, or a crash in a library); it was left out'}
        """
        record = self._records.setdefault(chunk, _Record())
        self.in_vain += 1
        if self.in_vain > self.patience:
            return Step(stop=f"{self.patience} attempts in a row ended in the death of a worker ({record.reason})")
        if record.together < _TOGETHER:
            record.together += 1
            return Step()
        for name in names:
            if name not in record.kept and record.alone.get(name, 0) < _ALONE:
                record.alone[name] = record.alone.get(name, 0) + 1
                self.in_vain -= record.alone[name] > 1  # each image counts once: bad ones lie together in a folder
                return Step(alone=name)
        why = f"{LOST} {_ALONE} times ({record.reason}); it was left out"
        given_up = {name: why for name in names if name not in record.kept}
        if record.remainder:
            return Step(given_up=given_up, kept=dict(record.kept))
        record.remainder += 1
        return Step(given_up=given_up)

    def starts(self) -> int:
        """A worker is about to load the network. How many have died at that in a row, if too many to go on, else 0."""
        self.starting += 1
        return self.starting - 1 if self.starting > self.patience else 0

    def started(self) -> None:
        """A worker has loaded the network."""
        self.starting = 0

    def survived(self, chunk: int, name: str, rows: bytes) -> None:
        """An image was tried alone, and the worker lives."""
        self.in_vain = 0
        self._records.setdefault(chunk, _Record()).kept[name] = rows

    def failed(self, chunk: int, reason: str) -> None:
        """Why the worker is about to die."""
        if chunk in self._records:
            self._records[chunk].reason = reason

    def done(self, chunk: int) -> None:
        """The chunk is measured."""
        self.in_vain = 0
        self._records.pop(chunk, None)
