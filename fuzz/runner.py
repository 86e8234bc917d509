"""Run cases in several processes, each with a time limit; a hang or a crash is a failure like any other."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from fuzz.case import Outcome, draw_for, run_area

LIMIT = 120.0  # seconds per case; the slowest takes a tenth of that on an idle machine
_LIFE = 400  # cases per process, so that cached traces do not accumulate
_SHARES = {"images": 40, "checkpoints": 14, "tables": 14, "options": 7, "networks": 7, "measures": 18}
"""Cases of each area per 100, chosen so that the costly areas take about as long as the cheap ones."""


@dataclass(frozen=True)
class Case:
    area: str
    number: int


@dataclass
class _Worker:
    process: ForkServerProcess
    connection: Connection
    case: Case
    since: float
    done: int = 0


def plan(count: int) -> list[Case]:
    """``count`` cases with each area's share of them, interleaved; a longer plan begins with the shorter one."""
    given = dict.fromkeys(_SHARES, 0)
    cases = []
    for k in range(1, count + 1):
        area = max(_SHARES, key=lambda name: _SHARES[name] * k / 100 - given[name])
        cases.append(Case(area, given[area]))
        given[area] += 1
    return cases


def areas() -> dict[str, Callable[..., None]]:
    """Every area by name; importing them imports all of Headwater."""
    from fuzz.checkpoints import checkpoints
    from fuzz.images import images
    from fuzz.measures import measures
    from fuzz.networks import networks
    from fuzz.options import options
    from fuzz.tables import tables

    found = (images, checkpoints, tables, options, networks, measures)
    return {area.__name__: area for area in found}


def run_case(case: Case, seed: int, folder: Path) -> Outcome:
    """One case in this process, in a new folder below ``folder``."""
    place = folder / "case"
    place.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    warnings.simplefilter("ignore")
    outcome = run_area(areas()[case.area], draw_for(seed, case.area, case.number, place))
    shutil.rmtree(place, ignore_errors=True)
    return replace(outcome, seconds=time.monotonic() - began)


def run(cases: list[Case], seed: int, workers: int, limit: float = LIMIT) -> Iterator[tuple[Case, Outcome]]:
    """The outcome of each case, in the order in which they end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fuzz.preload"])
    left = iter(cases)
    running: list[_Worker] = []
    root = Path(tempfile.mkdtemp(prefix="headwater-fuzz-"))

    def start(case: Case) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, seed, str(root)))
        process.start()
        theirs.close()
        ours.send(case)
        running.append(_Worker(process, ours, case, time.monotonic()))

    def stop(worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        running.remove(worker)

    try:
        for case in [next(left, None) for _ in range(workers)]:
            if case is not None:
                start(case)
        while running:
            wait([w.connection for w in running], timeout=min(1.0, limit))
            for worker in list(running):
                outcome: Outcome | None = None
                if worker.connection.poll():
                    try:
                        outcome = worker.connection.recv()
                        worker.done += 1
                    except (EOFError, OSError):
                        worker.process.join(10)
                        outcome = Outcome("crash", detail=f"the process ended with {worker.process.exitcode}")
                        worker.done = _LIFE
                elif time.monotonic() - worker.since > limit:
                    outcome = Outcome("hang", detail=f"no end after {limit:.0f} s", seconds=limit)
                    worker.done = _LIFE
                if outcome is None:
                    continue
                yield worker.case, outcome
                following = next(left, None)
                if following is None or worker.done >= _LIFE:
                    stop(worker)
                    if following is not None:
                        start(following)
                else:
                    worker.case, worker.since = following, time.monotonic()
                    worker.connection.send(following)
    finally:
        for worker in list(running):
            stop(worker)
        shutil.rmtree(root, ignore_errors=True)


def quiet() -> None:
    """Silence the logs and warnings of libraries."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _serve(connection: Connection, seed: int, root: str) -> None:
    """Run the cases that the parent sends until it closes the connection."""
    import torch

    from fuzz.options import prepare as prepare_options

    torch.set_num_threads(1)
    quiet()
    prepare_options()
    faulthandler.enable(open(os.devnull, "w"))  # noqa: SIM115, PTH123 - open as long as the process lives
    folder = Path(root, str(os.getpid()))
    tempfile.tempdir = str(folder)
    folder.mkdir(parents=True)
    with contextlib.suppress(EOFError, OSError):
        while True:
            case = connection.recv()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                outcome = run_case(case, seed, folder)
            connection.send(outcome)
    sys.exit(0)
