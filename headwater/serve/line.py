"""The line in which the visitors' work waits: one piece at a time, first come, first served."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from headwater.methods.method import Progress

T = TypeVar("T")
_INTERVAL = 0.15  # seconds between two reports of progress


@dataclass(frozen=True)
class Standing:
    """How far a piece of work is.

    Attributes:
        place: pieces of work before it; 0 while it is being done.
        done: steps done.
        total: steps in all; 0 while that is not known.
    """

    place: int
    done: int = 0
    total: int = 0


class WorkStoppedError(Exception):
    """Raised inside a piece of work that nobody waits for any more."""


class _Ticket:
    """A piece of work in the line."""

    def __init__(self) -> None:
        self.done, self.total, self.stopped = 0, 0, False

    def progress(self, done: int, total: int) -> None:
        """Note the progress; called in the thread that works.

        Raises:
            WorkStoppedError: nobody waits for the result.
        """
        if self.stopped:
            raise WorkStoppedError
        self.done, self.total = done, total


class Line:
    """Work that keeps the whole machine busy, so that only one piece is done at a time.

    To be used from one event loop.
    """

    def __init__(self) -> None:
        self._tickets: list[_Ticket] = []
        self._moved = asyncio.Condition()
        self._worker = ThreadPoolExecutor(1, "headwater-work")

    async def run(self, work: Callable[[Progress], T], told: Callable[[Standing], Awaitable[None]]) -> T:
        """Wait for one's turn, then work in a thread.

        When the caller is cancelled, its ticket leaves the line; work that has begun ends at its next step, and only
        then is it the next one's turn.

        Args:
            work: is given a function to call after each step.
            told: called when the place changes, and with the progress.
        """
        ticket = _Ticket()
        self._tickets.append(ticket)
        try:
            await self._turn(ticket, told)
        except BaseException:
            await asyncio.shield(self._leave(ticket))
            raise
        future = asyncio.get_running_loop().run_in_executor(self._worker, work, ticket.progress)
        leaving = asyncio.create_task(self._leave_after(future, ticket))
        try:
            while not future.done():
                await told(Standing(0, ticket.done, ticket.total))
                await asyncio.wait({future}, timeout=_INTERVAL)
        except BaseException:
            ticket.stopped = True
            raise
        await leaving
        return future.result()

    def close(self) -> None:
        """Stop what is being done; nothing more can be run."""
        for ticket in self._tickets:
            ticket.stopped = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, ticket: _Ticket, told: Callable[[Standing], Awaitable[None]]) -> None:
        while place := self._tickets.index(ticket):
            await told(Standing(place))
            async with self._moved:
                await self._moved.wait_for(lambda before=place: self._tickets.index(ticket) != before)  # type: ignore[misc]

    async def _leave_after(self, future: asyncio.Future[Any], ticket: _Ticket) -> None:
        await asyncio.wait({future})
        await self._leave(ticket)
        if ticket.stopped and not future.cancelled():
            future.exception()  # seen: nobody else looks

    async def _leave(self, ticket: _Ticket) -> None:
        self._tickets.remove(ticket)
        async with self._moved:
            self._moved.notify_all()
