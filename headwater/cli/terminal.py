"""What commands write on the terminal: results, errors, warnings and progress."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headwater.cli.interruption import WORK

if TYPE_CHECKING:
    from headwater.evaluation import Estimate

console = Console(highlight=False, soft_wrap=True)
messages = Console(highlight=False, soft_wrap=True, stderr=True)
"""For what is no result."""


def complain(message: str) -> None:
    """Write an error as one line on stderr."""
    print(f"headwater: error: {message}", file=sys.stderr)


def progress_bar(label: str, *columns: TextColumn, transient: bool = False, on: Console = console) -> Progress:
    """A progress bar with count and time left, drawn on a terminal only."""
    parts = (TextColumn(label), BarColumn(), MofNCompleteColumn(), *columns, TimeRemainingColumn())
    return Progress(*parts, console=on, transient=transient, disable=not on.is_terminal)


def say_estimate(devices: int, estimate: Estimate, images: int) -> None:
    """Write how long so many images will take on so many devices."""
    messages.print(f"estimated: {estimate.line(images, devices)}", markup=False)


@contextmanager
def evaluation_progress(
    images: int, chunk: int, label: str = "evaluating"
) -> Iterator[Callable[[int, int, float], None]]:
    """Progress with rate and time left on stderr: a bar on a terminal, plain lines elsewhere; from the start.

    The time left is estimated from what this call has measured. Warnings are one line each.

    Args:
        images: to be measured, at most.
        chunk: images between two calls.
        label: what is done.
    """
    rate_column = TextColumn("{task.fields[rate]}")
    with progress_bar(label, rate_column, on=messages) as bar, warnings.catch_warnings():
        task, before = bar.add_task("", total=images, rate="estimating"), 0
        last: int | None = None

        def say(message: Warning | str, *_: Any) -> None:
            print(f"headwater: warning: {message}", file=sys.stderr)

        def plain(line: str) -> None:
            if not messages.is_terminal:
                messages.print(line, markup=False)

        def progress(done: int, total: int, seconds: float) -> None:
            nonlocal before, last
            if last is None or done <= last:  # a run has just begun, perhaps with what an earlier call has measured
                before = max(0, done - chunk)
            last = done
            WORK.done, WORK.total = done, total
            rate = (done - before) / max(seconds, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:.2f} images/s")
            plain(f"{done} of {total} images, {rate:.2f} images/s, {(total - done) / rate:.0f} s left")

        warnings.showwarning = say  # type: ignore[assignment]  # without the place in the code
        doing = "measuring" if label == "evaluating" else label
        plain(f"{doing} up to {images} images, {min(chunk, images)} at a time")
        yield progress
