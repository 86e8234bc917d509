"""What is noted while relevance is sent back: sums at checkpoints, shares at joins, maps at cuts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headwater.engine.explanation import Conservation
from headwater.engine.flow import Flow, JoinFlow
from headwater.engine.plan import Plan
from headwater.engine.scales import Layout
from headwater.engine.steps import Step


@dataclass
class Account:
    """What the sweep is asked to note, and what it has noted.

    Attributes:
        plan: whose steps are noted.
        count: number of images, N.
        places: value of each checkpoint, by the checkpoint's name.
        layouts: values whose maps are noted, channels summed, and where their rows and columns are.
        keep: whether the relevance at checkpoints is kept, not only its sum.
        relevance: relevance at the checkpoints' values, by name of the value, where it is kept.
        totals: its sums per image, each ``(N,)``.
        maps: maps of the values in ``layouts``, each ``(N, h, w)``.
        joins: for each join that relevance reached, the sums of its shares, ``(N, inputs)``.
    """

    plan: Plan
    count: int
    places: Mapping[str, str]
    keep: bool
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    relevance: dict[str, Tensor] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    joins: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._noted: Collection[str] = set(self.places.values())

    def arrived(self, name: str, relevance: Tensor, batch: int = 0) -> None:
        """Note the relevance of a value, which may be written over afterwards; ``batch`` is its batch dimension."""
        if name in self._noted:
            if self.keep:
                self.relevance[name] = relevance.clone()
            self.totals[name] = total(relevance.movedim(batch, 0), self.count)
        if name in self.layouts:
            self.maps[name] = self.layouts[name].summed(relevance, batch)

    def missed(self, step: Step, shape: torch.Size, like: Tensor) -> None:
        """Note that no relevance arrived at a step: a branch that was left out, or a gate's."""
        if step.output in self._noted and self.keep:
            self.arrived(step.output, like.new_zeros(shape), step.batch)

    def divided(self, step: Step, shares: Sequence[Tensor | None]) -> None:
        """Note how a join has divided what reached it."""
        if not step.branches:
            return
        like = next(share for share in shares if share is not None)
        none = like.new_zeros(self.count)
        sums = [none if s is None else _per_image(s.movedim(step.batch, 0), self.count, s.dtype) for s in shares]
        self.joins[step.output] = torch.stack(sums, 1)

    def checkpoints(self) -> dict[str, Tensor]:
        """Relevance at each checkpoint, by its name."""
        return {place: self.relevance[name] for place, name in self.places.items() if name in self.relevance}

    def conservation(self, seed: Tensor, inputs: Sequence[Tensor], size: Tensor | None = None) -> Conservation:
        """The account of one sweep.

        Args:
            seed: relevance that it began with, ``(N,)``.
            inputs: relevance that arrived at each input, ``(N, ...)``.
            size: what errors are parts of, ``(N,)``; the seed's size if not given.
        """
        totals = {place: self.totals[name] for place, name in self.places.items() if name in self.totals}
        cuts = tuple(place for place in totals if self.places[place] in self.plan.cuts)
        size = None if size is None else total(size[:, None], self.count)
        arrived = torch.stack([total(relevance, self.count) for relevance in inputs]).sum(0)
        return Conservation(total(seed[:, None], self.count), arrived, totals, cuts, size)

    def coarse(self) -> dict[str, Tensor]:
        """The maps at cuts by name, from the output to the image."""
        names = [name for name in reversed(list(self.layouts)) if name in self.maps]
        return {name: self.maps[name] for name in names if len(self.maps[name]) == self.count}

    def flow(self) -> Flow:
        """How relevance divided, at the joins that it reached."""
        return Flow(
            tuple(
                JoinFlow(step.output, step.layer.operation.module, step.branches, self.joins[step.output])
                for step in self.plan.steps
                if step.output in self.joins
            )
        )


def total(relevance: Tensor, count: int) -> Tensor:
    """Sum over each of ``count`` images, in double precision so that the summing adds no error of its own."""
    return _per_image(relevance, count, torch.float64 if relevance.device.type != "mps" else torch.float32)


def _per_image(values: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Sums of values ``(N, ...)``, or ``(N * k, ...)`` where an image's k windows are counted with the images.

    Over dimensions as they lie: flattening a channels-last tensor would copy it.
    """
    dimensions = list(range(1, values.ndim))
    sums = values.sum(dimensions, dtype=dtype) if dimensions else values.to(dtype)
    return sums if sums.shape[0] == count else sums.view(count, -1).sum(1)
