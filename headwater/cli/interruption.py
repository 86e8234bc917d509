"""What happens when a command is interrupted (Ctrl-C) or asked to end (SIGTERM): one line, whatever it is doing.

While the program is still loading, no file and no terminal setting has been touched: the line is written, and the
process ends. Once work has begun, an exception unwinds it, so that progress bars restore the terminal and no file is
left half written.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedWork(BaseException):
    """Raised in the main thread by a signal while work is being done.

    No ``KeyboardInterrupt``, which libraries that are called on the way catch and report in their own words.

    Attributes:
        status: exit status, 128 and the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


class Work:
    """What a command is doing, for the line that is written if it is interrupted."""

    def __init__(self) -> None:
        self.begun = False
        self.done, self.total = 0, 0
        self.out: Path | None = None

    def begin(self, out: Path, total: int = 0) -> None:
        """From here on an interruption unwinds what is under way."""
        self.begun, self.done, self.total, self.out = True, 0, total, out

    def __str__(self) -> str:
        if not self.begun or self.out is None:
            return "interrupted; nothing was begun"
        count = f"{self.done} of {self.total} done, in {self.out}" if self.total else f"what is done is in {self.out}"
        return f"interrupted; {count}"


WORK = Work()


@contextmanager
def handled() -> Iterator[None]:
    """Handle both signals while the block runs; only in the process and the thread that a signal reaches."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process, seen = os.getpid(), list[int]()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a worker that was forked: its parent says what there is to say
            os._exit(128 + number)
        if WORK.begun and not seen:
            seen.append(number)
            raise InterruptedWork(number)
        os.write(2, b"" if seen else f"headwater: {WORK}\n".encode(errors="replace"))
        os._exit(128 + number)

    before = [signal.signal(number, handle) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
