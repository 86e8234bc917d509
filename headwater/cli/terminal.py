"""What commands write on the terminal: results, errors, warnings and progress."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headwater.cli.interruption import WORK

console = Console(highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """Write an error as one line on stderr."""
    print(f"headwater: error: {message}", file=sys.stderr)


def progress_bar(label: str, *columns: TextColumn, transient: bool = False) -> Progress:
    """A progress bar with count and time left, drawn on a terminal only."""
    parts = (TextColumn(label), BarColumn(), MofNCompleteColumn(), *columns, TimeRemainingColumn())
    return Progress(*parts, console=console, transient=transient, disable=not console.is_terminal)


@contextmanager
def evaluation_progress() -> Iterator[Callable[[int, int, float], None]]:
    """Progress with rate and time left: a bar on a terminal, plain lines elsewhere; warnings are one line each."""
    with progress_bar("evaluating", TextColumn("{task.fields[rate]}")) as bar, warnings.catch_warnings():
        task = bar.add_task("", total=None, rate="")

        def say(message: Warning | str, *_: Any) -> None:
            print(f"headwater: warning: {message}", file=sys.stderr)

        def progress(done: int, total: int, seconds: float) -> None:
            WORK.done, WORK.total = done, total
            rate = f"{done / seconds:.2f} images/s" if seconds else ""
            bar.update(task, completed=done, total=total, rate=rate)
            if not console.is_terminal:
                left = seconds / done * (total - done)
                console.print(f"{done} of {total} images, {rate}, {left:.0f} s left", markup=False)

        warnings.showwarning = say  # type: ignore[assignment]  # without the place in the code
        yield progress
