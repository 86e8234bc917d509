from __future__ import annotations

import asyncio
import threading

import pytest

from headwater.serve.queue import JobQueue, JobState


async def unreported(_: JobState) -> None:
    pass


def test_one_job_at_a_time_in_the_order_of_coming():
    running, most, order = 0, 0, list[int]()

    def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(number)
        running -= 1
        return number

    async def scene() -> list[int]:
        queue = JobQueue()
        return await asyncio.gather(*(queue.run(lambda _, k=k: work(k), unreported) for k in range(8)))

    assert asyncio.run(scene()) == order == list(range(8))
    assert most == 1


def test_places_are_reported_and_fall():
    gate = threading.Event()

    async def scene() -> list[int]:
        queue, places, waits = JobQueue(), list[int](), asyncio.Event()

        async def report(state: JobState) -> None:
            places.append(state.place)
            if state.place == 2:
                waits.set()

        first = asyncio.create_task(queue.run(lambda _: gate.wait(30), unreported))
        second = asyncio.create_task(queue.run(lambda _: None, unreported))
        third = asyncio.create_task(queue.run(lambda _: None, report))
        await waits.wait()
        gate.set()
        await asyncio.gather(first, second, third)
        return list(dict.fromkeys(places))

    assert asyncio.run(scene()) == [2, 1, 0]


def test_who_is_cancelled_leaves_the_queue_and_work_ends_at_its_next_step():
    begun, steps, ended = threading.Event(), 0, False

    def endless(progress) -> None:
        nonlocal steps, ended
        begun.set()
        try:
            while True:
                steps += 1
                progress(steps, 0)
        finally:
            ended = True

    async def scene() -> str:
        queue = JobQueue()
        first = asyncio.create_task(queue.run(endless, unreported))
        second = asyncio.create_task(queue.run(lambda _: pytest.fail("was cancelled while it waited"), unreported))
        third = asyncio.create_task(queue.run(lambda _: "done", unreported))
        await asyncio.to_thread(begun.wait, 30)
        second.cancel()
        first.cancel()
        for task in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await task
        return await third

    assert asyncio.run(scene()) == "done"
    assert ended


def test_an_error_is_the_callers_and_the_queue_goes_on():
    def fails(_: object) -> None:
        raise ValueError("no")

    async def scene() -> int:
        queue = JobQueue()
        with pytest.raises(ValueError, match="no"):
            await queue.run(fails, unreported)
        return await queue.run(lambda _: 3, unreported)

    assert asyncio.run(scene()) == 3


def test_progress_is_reported():
    gate = threading.Event()

    def work(progress) -> None:
        progress(2, 5)
        gate.wait(30)

    async def scene() -> None:
        async def report(state: JobState) -> None:
            if state == JobState(0, 2, 5):
                gate.set()

        await JobQueue().run(work, report)

    asyncio.run(scene())
    assert gate.is_set()


def test_a_visitor_who_does_not_read_holds_up_nobody():
    gate = threading.Event()

    async def scene() -> str:
        queue = JobQueue()

        async def stuck(state: JobState) -> None:
            await asyncio.sleep(3600)

        first = asyncio.create_task(queue.run(lambda _: gate.wait(30), unreported))
        second = asyncio.create_task(queue.run(lambda _: None, unreported))
        third = asyncio.create_task(queue.run(lambda _: None, stuck))
        fourth = asyncio.create_task(queue.run(lambda _: "done", unreported))
        gate.set()
        async with asyncio.timeout(30):
            await asyncio.gather(first, second)
            result = await fourth
        third.cancel()
        return result

    assert asyncio.run(scene()) == "done"
