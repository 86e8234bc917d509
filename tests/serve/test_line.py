from __future__ import annotations

import asyncio
import threading

import pytest

from headwater.serve.line import Line, Standing


async def untold(_: Standing) -> None:
    pass


def test_one_piece_at_a_time_in_the_order_of_coming():
    running, most, order = 0, 0, list[int]()

    def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(number)
        running -= 1
        return number

    async def scene() -> list[int]:
        line = Line()
        return await asyncio.gather(*(line.run(lambda _, k=k: work(k), untold) for k in range(8)))

    assert asyncio.run(scene()) == order == list(range(8))
    assert most == 1


def test_places_are_told_and_fall():
    gate = threading.Event()

    async def scene() -> list[int]:
        line, places, waits = Line(), list[int](), asyncio.Event()

        async def told(standing: Standing) -> None:
            places.append(standing.place)
            if standing.place == 2:
                waits.set()

        first = asyncio.create_task(line.run(lambda _: gate.wait(30), untold))
        second = asyncio.create_task(line.run(lambda _: None, untold))
        third = asyncio.create_task(line.run(lambda _: None, told))
        await waits.wait()
        gate.set()
        await asyncio.gather(first, second, third)
        return list(dict.fromkeys(places))

    assert asyncio.run(scene()) == [2, 1, 0]


def test_who_is_cancelled_leaves_the_line_and_work_ends_at_its_next_step():
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
        line = Line()
        first = asyncio.create_task(line.run(endless, untold))
        second = asyncio.create_task(line.run(lambda _: pytest.fail("was cancelled while it waited"), untold))
        third = asyncio.create_task(line.run(lambda _: "done", untold))
        await asyncio.to_thread(begun.wait, 30)
        second.cancel()
        first.cancel()
        for task in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await task
        return await third

    assert asyncio.run(scene()) == "done"
    assert ended


def test_an_error_is_the_callers_and_the_line_goes_on():
    def fails(_: object) -> None:
        raise ValueError("no")

    async def scene() -> int:
        line = Line()
        with pytest.raises(ValueError, match="no"):
            await line.run(fails, untold)
        return await line.run(lambda _: 3, untold)

    assert asyncio.run(scene()) == 3


def test_progress_is_told():
    gate = threading.Event()

    def work(progress) -> None:
        progress(2, 5)
        gate.wait(30)

    async def scene() -> None:
        async def told(standing: Standing) -> None:
            if standing == Standing(0, 2, 5):
                gate.set()

        await Line().run(work, told)

    asyncio.run(scene())
    assert gate.is_set()
