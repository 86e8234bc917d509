"""How much of a map lies on the planted place, for every method, and the tables of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.planted.data import Examples
from benchmarks.planted.methods import OURS, Maps, Method
from benchmarks.planted.training import Task, predictions
from headwater.metrics import pointing_game, relevance_mass, relevance_rank
from headwater.report.tabular import Cell, Table

Measure = Callable[[Tensor, Tensor], Tensor]
MEASURES: dict[str, Measure] = {
    "relevance mass": relevance_mass,
    "pointing": pointing_game,
    "rank accuracy": relevance_rank,
}
CHANCE = "chance: the area"
CHOOSE, REPORT = 11, 12
"""Seeds of the examples on which the best other method is chosen, and of those that are reported."""
_BATCH = 50


@dataclass(frozen=True)
class Measured:
    """One method on one task.

    Attributes:
        values: one number for each example, by the measure's name.
        elsewhere: mean part of the positive relevance at other places, by their name.
        error: the largest deviation of a map's sum from what the method promises; ``None`` without a promise.
    """

    values: Mapping[str, np.ndarray]
    elsewhere: Mapping[str, float]
    error: float | None


def correct(task: Task, network: nn.Module, count: int, seed: int) -> Examples:
    """The first ``count`` examples of a seed that the network is right about."""
    examples = task.examples(count + count // 4, seed)
    which = (predictions(network, examples) == examples.labels).nonzero()[:count, 0]
    if len(which) < count:
        raise ValueError(f"{task.name}: right about {len(which)} of {len(examples)} examples, {count} are needed")
    return examples.select(which)


def measure(method: Method, examples: Examples) -> Measured:
    """Every measure of the method's maps of the examples' classes."""
    heatmap, error = _maps(method, examples)
    values = {name: _in_row(one, heatmap, examples.mask).double().numpy() for name, one in MEASURES.items()}
    elsewhere = {name: float(_in_row(relevance_mass, heatmap, mask).mean()) for name, mask in examples.others.items()}
    return Measured(values, elsewhere, None if error is None else float(error.max()))


def chance(examples: Examples) -> Measured:
    """What a map without information reaches."""
    inside = dict.fromkeys(MEASURES, examples.area(examples.mask).double().numpy())
    elsewhere = {name: float(examples.area(mask).mean()) for name, mask in examples.others.items()}
    return Measured(inside, elsewhere, None)


def table(found: Mapping[str, Measured]) -> str:
    """A row for each method: means with 95 % intervals."""
    places = list(next(iter(found.values())).elsewhere)
    rows = []
    for name, measured in found.items():
        cells = [_mean(measured.values[m]) if name != CHANCE else f"{measured.values[m].mean():.3f}" for m in MEASURES]
        elsewhere = [f"{measured.elsewhere[place]:.3f}" for place in places]
        error = None if measured.error is None else f"{measured.error:.0e}"
        rows.append((f"`{name}`" if name in OURS else name, *cells, *elsewhere, error))
    return Table(("method", *MEASURES, *(f"on {place}" for place in places), "worst error"), rows).markdown()


def differences(chosen: Mapping[str, Measured], found: Mapping[str, Measured]) -> str:
    """Headwater's methods less the best other one, example by example; which is best is taken from ``chosen``."""
    others = [name for name in found if name not in (*OURS, CHANCE)]
    rows: list[tuple[Cell, ...]] = []
    for measure_name in MEASURES:
        best = max(others, key=lambda name: chosen[name].values[measure_name].mean())
        cells = [_mean(found[name].values[measure_name] - found[best].values[measure_name], "+") for name in OURS]
        rows.append((measure_name, best, *cells))
    return Table(("measure", "best other", *(f"`{name}` less it" for name in OURS)), rows, align="llrr").markdown()


def _mean(values: np.ndarray, sign: str = "") -> str:
    """Mean and the 95 % interval of it by the bootstrap."""
    draws = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(values[draws].mean(1), (0.025, 0.975))
    return f"{values.mean():{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _maps(method: Method, examples: Examples) -> tuple[Tensor, Tensor | None]:
    parts: list[Maps] = [method(examples.select(slice(k, k + _BATCH))) for k in range(0, len(examples), _BATCH)]
    errors = [part.error for part in parts if part.error is not None]
    return torch.cat([part.heatmap for part in parts]), torch.cat(errors) if errors else None


def _in_row(one: Measure, heatmap: Tensor, mask: Tensor) -> Tensor:
    """A measure of images' maps, for maps with any axes: their places stand in one row."""
    return one(heatmap.flatten(1)[:, None], mask.flatten(1)[:, None])
