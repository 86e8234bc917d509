"""One fuzz case: its random choices, its outcome, and how much was compared."""

from __future__ import annotations

import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from headwater.errors import HeadwaterError

Kind = Literal["ok", "refused", "wrong", "traceback", "hang", "crash"]
KINDS: tuple[Kind, ...] = ("ok", "refused", "wrong", "traceback", "hang", "crash")
"""How a case can end; all but the first two are failures."""
T = TypeVar("T")


class WrongError(Exception):
    """A wrong result, or an error message that is not one clear line."""


@dataclass
class Draw:
    """The random choices of one case, and notes that describe its input.

    Attributes:
        rng: fixed by seed, area and case.
        folder: an empty folder for this case alone.
        notes: descriptions of the input, for the report.
        maps: maps that were compared with a fresh explanation, or with a reference of the fuzzer's own.
    """

    rng: np.random.Generator
    folder: Path
    notes: list[str] = field(default_factory=list)
    maps: int = 0

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def one(self, choices: Sequence[T]) -> T:
        return choices[int(self.rng.integers(len(choices)))]

    def some(self, choices: Sequence[T], most: int | None = None) -> list[T]:
        """A random subset of the choices, possibly empty, in random order."""
        count = self.whole(0, min(len(choices), most if most is not None else len(choices)))
        return [choices[int(k)] for k in self.rng.permutation(len(choices))[:count]]

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def seed(self) -> int:
        return self.whole(0, 2**31 - 1)

    def bytes(self, count: int) -> bytes:
        return self.rng.bytes(count)

    def note(self, text: str) -> None:
        self.notes.append(text)


def draw_for(seed: int, area: str, case: int, folder: Path) -> Draw:
    """The random choices of a case; torch's global generator is seeded too."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(area.encode()), case])
    rng = np.random.default_rng(sequence)
    torch.manual_seed(int(rng.integers(2**31)))
    return Draw(rng, folder)


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        kind: see :data:`KINDS`.
        what: the input, in words.
        detail: the message, or what is wrong.
        maps: see :class:`Draw`.
        seconds: of wall-clock time.
    """

    kind: Kind
    what: str = ""
    detail: str = ""
    maps: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.kind not in ("ok", "refused")


Area = Callable[[Draw], None]
"""Makes an input, runs it and checks the result. It returns if the result is correct, lets a ``HeadwaterError`` that
refuses the input through, and raises :class:`WrongError` otherwise. Any other exception is a failure too."""


def run_area(area: Area, draw: Draw) -> Outcome:
    """Run one case and return its outcome."""
    kind: Kind = "ok"
    detail = ""
    try:
        area(draw)
    except WrongError as error:
        kind, detail = "wrong", str(error)
    except HeadwaterError as error:
        kind, detail = "refused", str(error)
        problem = unclear(detail)
        if problem:
            kind, detail = "wrong", f"{problem}: {detail!r}"
    except BaseException as error:  # any other exception is a finding
        kind, detail = "traceback", f"{type(error).__name__}: {_first_line(error)} ({where(error)})"
    return Outcome(kind, "; ".join(draw.notes), detail, draw.maps)


def unclear(message: str) -> str | None:
    """Why an error message is not one clear line; ``None`` if it is."""
    if not message.strip():
        return "an error without a message"
    if "\n" in message.strip():
        return "an error message of several lines"
    if len(message) > 2000:
        return "an error message of more than 2000 characters"
    return None


def where(error: BaseException) -> str:
    """The innermost frame of the package in an exception's traceback, as file, line and function."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/headwater/" in f.filename] or list(frames)
    last = ours[-1] if ours else None
    return f"{Path(last.filename).name}:{last.lineno} in {last.name}" if last else "nowhere"


def must(condition: Any, problem: str) -> None:
    """Raise :class:`WrongError` unless the condition holds."""
    if not condition:
        raise WrongError(problem)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:300]
