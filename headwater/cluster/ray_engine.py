"""The workers of a Ray cluster as the engine of a run, on Ray Data."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import pickle
import platform
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from headwater.cluster.engine import ChunkWorker, Row, Rows
from headwater.cluster.journal import Journal, Step
from headwater.errors import ClusterError, HeadwaterError, InputError, MissingDependencyError

_KEPT = "what was finished is kept, and the same command continues after it"

_ANSWERS_WITHIN = 10.0
"""Seconds."""
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # else an error about actors that may restart, in every run
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # a worker's death is told in our own words; stdout is for results
}
"""What Ray reads when it is imported; what is set already stays."""


@dataclass(frozen=True)
class Ray:
    """The workers of a Ray cluster: the one in ``RAY_ADDRESS``, else one that is started on this machine for the run.

    Each worker is a process with its own copy of the network, which is sent to it. Ray Data hands out chunks as workers
    ask for them, replaces workers that die, and measures what they had begun again. A worker has one CPU and one
    thread, so that values do not depend on the machine's size.

    Attributes:
        workers: how many; by default as many as the cluster has GPUs, or CPUs if it has none. With more workers than
            GPUs several share one, so that one draws or decodes while another computes.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers must be at least 1, got {self.workers}")
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            importlib.import_module("ray.data")
        except ImportError as error:
            raise MissingDependencyError(
                f"the engine 'ray' needs {error.name}: pip install 'headwater[ray]'"
            ) from error

    def run(self, make: Callable[[str], ChunkWorker], chunks: Sequence[Sequence[Any]], todo: Sequence[int]) -> Rows:
        """Number and rows of each chunk to do, as workers finish them.

        Raises:
            ClusterError: the cluster cannot be reached, its workers cannot load the network, or they keep dying
                whatever the image.
            HeadwaterError: what a worker raised, as on one machine.
        """
        if not todo:
            return
        import ray

        sent = _pickled(make)
        left = set(todo)
        with _connected(self.workers), _quiet_data():
            try:
                with contextlib.closing(_pipeline(sent, [(k, chunks[k]) for k in todo], self.workers)) as results:
                    for k, rows in results:
                        if k in left:  # Ray may compute again what a machine took with it
                            left.discard(k)
                            yield k, rows
            except ray.exceptions.RayError as error:
                raise ClusterError(f"the cluster gave up ({_last_line(error)}); {_KEPT}") from error
        if left:
            raise ClusterError(f"{len(left)} of {len(todo)} chunks did not come back from the cluster; {_KEPT}")


def _pipeline(sent: bytes, work: Sequence[tuple[int, Sequence[Any]]], workers: int | None) -> Rows:
    import ray
    from ray import cloudpickle
    from ray.data import ActorPoolStrategy
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cluster = ray.cluster_resources()
    gpus = int(cluster.get("GPU", 0))
    count = workers or gpus or max(1, int(cluster.get("CPU", 1)))
    count = min(count, len(work))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    kept_alive = {"max_restarts": -1, "max_task_retries": -1}
    journal = ray.remote(Journal).options(num_cpus=0, scheduling_strategy=here, **kept_alive).remote(10 + 3 * count)
    items = [{"work": cloudpickle.dumps((k, tuple(chunk)))} for k, chunk in work]
    actor: Any = _Actor
    measured = ray.data.from_items(items, override_num_blocks=len(items)).map(
        actor,
        fn_constructor_args=(ray.put(sent), _versions(), journal, _probe(work)),
        compute=ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2),
        num_cpus=1,
        num_gpus=1 / math.ceil(count / gpus) if gpus else None,
    )
    batches: Any = measured.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
    with contextlib.closing(iter(batches)) as results:
        for batch in results:
            for result in batch.to_pylist():
                if result["failure"]:
                    raise pickle.loads(result["failure"])
                yield result["chunk"], pickle.loads(result["rows"])


class _Actor:
    """A worker's process: makes the worker once, and asks the journal before each attempt.

    What goes wrong is returned, not raised: Ray would wrap it, or begin again.
    """

    def __init__(self, sent: Any, versions: str, journal: Any, probe: Path | None) -> None:
        self.journal, self.worker, self.failure = journal, None, None
        try:
            deaths = self._asked("starts")
            if deaths:
                raise ClusterError(
                    f"{deaths} workers in a row died while they loaded the network; a machine may have too little "
                    f"memory for so many workers; {_KEPT}"
                )
            self.worker = _made(sent, versions, probe)
            self._asked("started")
        except HeadwaterError as error:
            self.failure = error

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        chunk, images = pickle.loads(item["work"])
        rows, failure = list[Row](), self.failure
        try:
            rows = [] if self.worker is None else self._rows(self.worker, chunk, images)
        except HeadwaterError as error:
            failure = error
        told = b"" if failure is None else pickle.dumps(failure)
        return {"chunk": chunk, "rows": pickle.dumps(rows), "failure": told}

    def _rows(self, worker: ChunkWorker, chunk: int, images: Sequence[Any]) -> list[Row]:
        names = [image.name for image in images]
        while True:
            step = self._asked("next", chunk, names)
            if step.stop:
                raise ClusterError(
                    f"{step.stop}; a machine may have too little memory for the network and its batch size; {_KEPT}"
                )
            if step.alone is not None:
                tried = [image for image in images if image.name == step.alone]
                rows = self._attempt(worker, chunk, tried, step)
                self._asked("survived", chunk, step.alone, pickle.dumps(rows))
                continue
            if step.kept is None:
                rows = self._attempt(worker, chunk, images, step)
            else:
                rows = []
                for image in images:
                    kept = step.kept.get(image.name)
                    rows += worker.rows([image], step.given_up) if kept is None else pickle.loads(kept)
            self._asked("done", chunk)
            return rows

    def _attempt(self, worker: ChunkWorker, chunk: int, images: Sequence[Any], step: Step) -> list[Row]:
        """The rows of the images; an error that is not of our own ends the process, as it may have broken it.

        After an error of CUDA, for one, every further call fails.
        """
        try:
            return worker.rows(images, step.given_up)
        except HeadwaterError:
            raise
        except Exception as error:
            self._asked("failed", chunk, f"{platform.node()}: {_first_line(error)}")
            os._exit(1)

    def _asked(self, question: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self.journal, question).remote(*arguments))


def _versions() -> str:
    """What values depend on, as it is installed here."""
    import torch

    from headwater import __version__

    return f"{__version__} with torch {torch.__version__}"


def _probe(work: Sequence[tuple[int, Sequence[Any]]]) -> Path | None:
    """A local file that every machine must see, if images are local files."""
    sources = (getattr(image, "source", None) for _, chunk in work for image in chunk)
    return next((source for source in sources if isinstance(source, Path) and source.is_file()), None)


def _made(sent: Any, versions: str, probe: Path | None = None) -> ChunkWorker:
    """A worker from what was sent.

    Raises:
        ClusterError: other versions are installed here, or the network, its weights or the images are not here.
        HeadwaterError: as on one machine.
    """
    import ray
    import torch

    where = f"the worker on {platform.node()}"
    if _versions() != versions:
        raise ClusterError(
            f"{where} has headwater {_versions()}, the run was started with {versions}; install the same"
        )
    if probe is not None and not probe.is_file():
        raise ClusterError(f"{where} does not see {probe}; images must be in the same place on every machine; {_KEPT}")
    torch.set_num_threads(1)
    try:
        make = pickle.loads(ray.get(sent) if isinstance(sent, ray.ObjectRef) else sent)
        worker: ChunkWorker = make("cuda" if ray.get_gpu_ids() else "cpu")
    except HeadwaterError:
        raise
    except Exception as error:
        raise ClusterError(
            f"{where} cannot load the network and its weights ({_first_line(error)}); every machine needs the Python "
            f"code of the network and the same packages; {_KEPT}"
        ) from error
    return worker


def _pickled(make: Callable[[str], ChunkWorker]) -> bytes:
    """What is sent to every worker.

    Raises:
        ClusterError: the network cannot be sent.
    """
    from ray import cloudpickle

    try:
        return cloudpickle.dumps(make)
    except Exception as error:  # of a module with an unusual attribute, anything
        raise ClusterError(
            f"the network cannot be sent to workers ({_first_line(error)}); remove what cannot be pickled from it"
        ) from error


@contextlib.contextmanager
def _connected(workers: int | None) -> Iterator[None]:
    """Inside, this process is connected to a cluster; one that was connected before stays so.

    Raises:
        ClusterError: it cannot be reached or started.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        options |= {"address": "local", "include_dashboard": False}  # not one that runs here for something else
        if workers:  # Ray itself counts the CPUs that a container may use
            options["num_cpus"] = max(os.cpu_count() or 1, workers)
    with _signals_kept():
        try:
            _check_answers(address or "")
            ray.init(**options)
        except Exception as error:  # of the connection, of a version that differs, of ports, of memory
            where = f"the Ray cluster at {address} cannot be reached" if address else "Ray cannot be started here"
            raise ClusterError(
                f"{where} ({_first_line(error)}); RAY_ADDRESS names the cluster, and without it one is started on "
                "this machine"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ask whether anything answers at a cluster's address. Ray itself would try for a quarter of an hour.

    Raises:
        OSError: nothing does.
    """
    found = urlsplit(address if "://" in address else f"//{address}")
    try:
        place = found.hostname, found.port
    except ValueError:  # no number; Ray says so
        return
    if None not in place:  # as "auto" and "local" have none
        socket.create_connection(place, timeout=_ANSWERS_WITHIN).close()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Signals are handled afterwards as before; Ray would end the process in its own way."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # only the main thread may, and Ray did not either
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


@contextlib.contextmanager
def _quiet_data() -> Iterator[None]:
    """Ray Data writes no bars and no plan of execution: the run has its own progress."""
    from ray.data import DataContext

    context = DataContext.get_current()
    names = ("enable_progress_bars", "print_on_execution_start")
    before = {name: getattr(context, name) for name in names if hasattr(context, name)}
    log = logging.getLogger("ray.data")
    level = log.level
    try:
        for name in before:
            setattr(context, name, False)
        log.setLevel(logging.CRITICAL)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        log.setLevel(level)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _last_line(error: BaseException) -> str:
    """Of an error of Ray's, whose first lines are where, and whose last is what."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
