"""What a map costs beside a forward pass: operations, time and memory per image, as both papers print it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from headwater.engine.copies import shared_copy
from headwater.methods import load_method
from headwater.report.tabular import Cell, Table

Run = Callable[[], object]
SECONDS = 10.0
"""Longest time spent on one median."""


@dataclass(frozen=True)
class Cost:
    """What one run takes.

    Attributes:
        seconds: median of several runs.
        operations: multiply-accumulates of convolutions and matrix products, half of what
            ``torch.utils.flop_counter`` counts.
        memory: most bytes that its tensors took at once, without the network and the image.
    """

    seconds: float
    operations: float
    memory: int


@dataclass(frozen=True)
class Printed:
    """A cost that a paper prints.

    Attributes:
        label: of what.
        seconds: of one image; ``None`` where it is not printed.
        operations: multiply-accumulates, likewise.
    """

    label: str
    seconds: float | None = None
    operations: float | None = None


@dataclass(frozen=True)
class CostExperiment:
    """A cost that a paper prints, and the methods that stand for it.

    Attributes:
        name: of the experiment.
        title: what it is.
        methods: measured.
        printed: rows as printed; ratios are to the first with a time.
        parameters: of the network, as printed; ``None`` where they are not.
        note: how the printed numbers came about.
    """

    name: str
    title: str
    methods: tuple[str, ...]
    printed: tuple[Printed, ...]
    parameters: float | None = None
    note: str = ""


COSTS: Mapping[str, CostExperiment] = {
    cost.name: cost
    for cost in (
        CostExperiment(
            "otsuki2024-timing",
            "Otsuki et al. 2024, Sec. A: time of a forward pass and of a map",
            ("otsuki2024-published", "otsuki2024", "otsuki2024+hq"),
            (Printed("forward pass", 4.66e-3), Printed("forward pass and map", 40.7e-3)),
            note="Printed: GeForce RTX 3080, one image of noise, mean of 100 runs, without quantization "
            "(visualize.py, lines 270 to 300, of the authors' code). Only the ratio of the two times travels.",
        ),
        CostExperiment(
            "doublet2024-cost",
            "Doublet et al., Sec. 4.2: parameters, operations and time",
            ("doublet2024", "c3-lrp"),
            (Printed("the proposed method", 0.1, 65.4e9),),
            parameters=23.9e6,
            note="Printed: GeForce 3090. What the 0.1 s include is not stated. The authors' later code prints the "
            "operations of a forward pass on a batch of 16 (torchinfo's summary; visualize.py, lines 427 to 430 and "
            "511); compare the printed operations over those of a forward pass here.",
        ),
    )
}


def measure_cost(run: Run, device: torch.device) -> Cost:
    """Operations, time and memory of ``run``, which is called several times.

    On a CPU, memory is that of the tensors that operations return, without what a kernel needs inside of itself; on a
    GPU it is the allocator's peak.

    Args:
        run: what is measured.
        device: where it runs.
    """
    run()  # what is computed once and kept is none of a map's cost
    with FlopCounterMode(display=False) as counter:
        run()
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    seconds = timer.adaptive_autorange(min_run_time=min(0.2, SECONDS), max_run_time=SECONDS).median
    return Cost(seconds, counter.get_total_flops() / 2, _peak(run, device))


def cost_markdown(experiment: CostExperiment, model: nn.Module, x: Tensor) -> str:
    """Printed costs above measured ones, each with its ratio to a forward pass, as Markdown.

    Args:
        experiment: what is printed, and the methods.
        model: the network.
        x: one image, as the network takes it, ``(1, C, H, W)``.
    """
    network = shared_copy(model)

    def forward() -> Tensor:
        with torch.no_grad():
            return network(x)

    measured = {"forward pass": measure_cost(forward, x.device)}
    for name in experiment.methods:
        method = load_method(name, model)
        measured[f"`{name}`: forward pass and map"] = measure_cost(partial(method, x), x.device)
    base = measured["forward pass"]
    first = next((p.seconds for p in experiment.printed if p.seconds), None) if len(experiment.printed) > 1 else None
    rows: list[list[Cell]] = []
    for printed in experiment.printed:
        ratio = printed.seconds / first if printed.seconds and first else None
        over = printed.operations / base.operations if printed.operations else None
        rows.append([f"printed: {printed.label}", *_cells(printed.seconds, ratio, printed.operations, over, None)])
    for label, cost in measured.items():
        ratios = cost.seconds / base.seconds, cost.operations / base.operations
        rows.append([label, *_cells(cost.seconds, ratios[0], cost.operations, ratios[1], cost.memory)])
    columns = ("", "time, ms", "over a forward pass", "G multiply-accumulates", "over a forward pass here", "MiB")
    count = sum(parameter.numel() for parameter in model.parameters())
    said = [
        Table(columns, rows).markdown(),
        "",
        f"Parameters: {count / 1e6:.1f} M"
        + (f" (printed: {experiment.parameters / 1e6:.1f} M)." if experiment.parameters else "."),
        f"Measured: one image of {x.shape[2]} x {x.shape[3]}, {_machine(x.device)}, {x.dtype}, medians; MiB: tensors "
        "at once, without network and image.",
        experiment.note,
    ]
    return "\n".join(said)


def _cells(*values: float | None) -> list[Cell]:
    """Seconds as ms, ratio, operations as G, ratio, bytes as MiB."""
    units = (1e3, 1.0, 1e-9, 1.0, 2**-20)
    formats = (".3g", ".2f", ".2f", ".2f", ".0f")
    pairs = zip(values, units, formats, strict=True)
    return [None if value is None else format(value * unit, form) for value, unit, form in pairs]


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()}, {torch.get_num_threads()} threads"


def _peak(run: Run, device: torch.device) -> int:
    """Most bytes that tensors made by ``run`` take at once."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with _Living() as living:
        run()
    return living.peak


class _Living(TorchDispatchMode):
    """Sums the storages of the tensors that operations return while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), given)
        return out

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        """A storage that an operation made; views and what is changed in place are those of its arguments."""
        key = storage._cdata
        if key in given or key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
