"""The queue of the visitors' work: one job at a time, first come, first served."""

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
class JobState:
    """How far a job is.

    Attributes:
        place: jobs before it; 0 while it is being done.
        done: steps done.
        total: steps in all; 0 while that is not known.
    """

    place: int
    done: int = 0
    total: int = 0


Report = Callable[[JobState], Awaitable[None]]


class JobCancelledError(Exception):
    """Raised inside a job that nobody waits for any more."""


class _Job:
    """A job in the queue."""

    def __init__(self) -> None:
        self.done, self.total, self.cancelled = 0, 0, False

    def progress(self, done: int, total: int) -> None:
        """Note the progress; called in the thread that works.

        Raises:
            JobCancelledError: nobody waits for the result.
        """
        if self.cancelled:
            raise JobCancelledError
        self.done, self.total = done, total


class JobQueue:
    """Jobs that keep the whole machine busy, so that only one is done at a time.

    To be used from one event loop.
    """

    def __init__(self) -> None:
        self._jobs: list[_Job] = []
        self._moved = asyncio.Condition()
        self._worker = ThreadPoolExecutor(1, "headwater-work")

    async def run(self, work: Callable[[Progress], T], report: Report) -> T:
        """Wait for one's turn, then work in a thread.

        When the caller is cancelled, its job leaves the queue; work that has begun ends at its next step, and only
        then is it the next one's turn.

        Args:
            work: is given a function to call after each step.
            report: called when the place changes, and with the progress. Nobody else waits for a slow one.
        """
        job = _Job()
        self._jobs.append(job)
        try:
            await self._turn(job, report)
        except BaseException:
            await asyncio.shield(self._leave(job))
            raise
        future = asyncio.get_running_loop().run_in_executor(self._worker, work, job.progress)
        leaving = asyncio.create_task(self._leave_after(future, job))
        try:
            while not future.done():
                await report(JobState(0, job.done, job.total))
                await asyncio.wait({future}, timeout=_INTERVAL)
        except BaseException:
            job.cancelled = True
            raise
        await leaving
        return future.result()

    def close(self) -> None:
        """Stop what is being done; nothing more can be run."""
        for job in self._jobs:
            job.cancelled = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, job: _Job, report: Report) -> None:
        while place := self._jobs.index(job):
            reporting = asyncio.gather(report(JobState(place)), return_exceptions=True)
            try:
                async with self._moved:
                    await self._moved.wait_for(lambda before=place: self._jobs.index(job) != before)  # type: ignore[misc]
            finally:
                reporting.cancel()

    async def _leave_after(self, future: asyncio.Future[Any], job: _Job) -> None:
        await asyncio.wait({future})
        await self._leave(job)
        if job.cancelled and not future.cancelled():
            future.exception()  # seen: nobody else looks

    async def _leave(self, job: _Job) -> None:
        self._jobs.remove(job)
        async with self._moved:
            self._moved.notify_all()
