"""One network explained: how well relevance is conserved, or why it is not."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter

import torch
import transformers
from torch import Tensor, nn

import headwater as hw

from .configurations import Entry, build

METHODS = ("otsuki2024", "headwater")
LIMIT = 1e-5


@dataclass(frozen=True)
class Row:
    """What one architecture gave.

    Attributes:
        parameters, operations: how many the small network has.
        errors: for each of ``METHODS`` the worst relative error of the batch, at the input, at a cut and of the map.
        problem: why the network could not be built or explained, in one line.
        seconds: the whole row took.
    """

    parameters: int = 0
    operations: int = 0
    errors: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""
    seconds: float = 0.0

    def conserved(self, method: str) -> bool:
        return not self.problem and self.errors[method] <= LIMIT


def measure(entry: Entry) -> Row:
    """Explain two inputs of noise by each of ``METHODS``."""
    started = perf_counter()
    torch.set_num_threads(1)
    parameters = operations = 0
    errors: dict[str, float] = {}
    problem = ""
    try:
        model, inputs = build(entry)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        operations = sum(hw.LRP(model).graph(inputs).counts().values())
        for method in METHODS:
            errors[method] = worst_error(model, inputs, method)
    except Exception as error:
        problem = reason(error)
    return Row(parameters, operations, errors, problem, round(perf_counter() - started, 1))


def worst_error(model: nn.Module, inputs: Mapping[str, Tensor], method: str) -> float:
    """The worst relative error of the batch: of the relevance at the input and at every cut, and of the map's sum."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lost relevance, say, which is what is measured
        e = hw.load_method(method, model)(inputs, checkpoints="cuts")
    assert e.conservation is not None
    maps = e.heatmap.values() if isinstance(e.heatmap, Mapping) else [e.heatmap]
    total = torch.stack([h.double().flatten(1).sum(1) for h in maps]).sum(0)
    of_map = (total - e.conservation.seed).abs() / e.conservation.begun
    errors = torch.stack([of_map, e.conservation.error, *e.conservation.checkpoint_errors.values()])
    if not errors.isfinite().all():
        raise ArithmeticError("relevance is not finite")
    return float(errors.max())


def reason(error: Exception) -> str:
    """The first sentence of an error."""
    text = " ".join(str(error).split())
    if "GuardOnDataDependent" in text:
        return "not traced: its forward runs other operations depending on its inputs' values"
    text = re.sub(r"^\w+ could not be traced for inputs of shape [^:]*: ", "not traced: ", text)
    sentence = re.split(r"[;.] ", text)[0][:300].rstrip(".")
    if isinstance(error, ImportError):
        needed = re.search(r"requires the (\S+) library", text)
        return f"it needs {needed[1]}, which is not installed" if needed else sentence
    return sentence if isinstance(error, hw.HeadwaterError) else f"{type(error).__name__}: {sentence}"


def measure_apart(entry: Entry, limit: float) -> Row:
    """Like :func:`measure`, in a process of its own, which may crash, and is ended after ``limit`` seconds."""
    receiver, sender = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_send, args=(entry, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(limit):
            row = receiver.recv()
            process.join(5)
            return row
        return Row(problem=f"no result within {limit:g} s", seconds=limit)
    except EOFError:
        process.join()
        return Row(problem=f"its process ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        receiver.close()


_processes = get_context("forkserver")
_processes.set_forkserver_preload(["transformers.modeling_utils", "torchvision", "headwater.engine.lrp", __name__])


def _send(entry: Entry, connection: Connection) -> None:
    transformers.logging.set_verbosity_error()
    connection.send(measure(entry))
