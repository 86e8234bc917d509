"""The sweep: the network forward, keeping what the rules need, and relevance back, one rule per step.

The network runs, and its values are kept, in its own precision. Relevance and all that it is divided by are at least
float32: what a rule reads, values, weights and the output, is widened when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor

from headwater.engine.account import Account
from headwater.engine.inputs import Inputs
from headwater.engine.plan import Plan
from headwater.engine.schedule import segments
from headwater.engine.seed import Seed
from headwater.engine.steps import Step
from headwater.engine.weights import widened


class Values:
    """The values of one run by name, and the shapes of all that there were."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def wide(self, name: str) -> Tensor:
        """A value in at least single precision."""
        return widened(self._tensors[name])

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._tensors[name], self._shapes[name] = value, value.shape

    def drop(self, names: Iterable[str]) -> None:
        """Let go of values; their shapes stay known."""
        for name in names:
            self._tensors.pop(name, None)

    def shape(self, name: str) -> torch.Size:
        """The shape of a value, which may have been dropped."""
        return self._shapes[name]

    def blank(self, name: str, like: Tensor) -> Tensor:
        """An uninitialised tensor of a value's shape, for rules that need the shape alone."""
        shape = self._shapes[name]
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def sweep(
    plan: Plan, inputs: Inputs, begin: Callable[[Tensor], Seed], account: Account, recompute: bool = False
) -> tuple[Seed, tuple[Tensor, ...]]:
    """Run the network on its inputs and send relevance back to them.

    Args:
        plan: the network's steps, each with its rule.
        inputs: what the network is called with.
        begin: from the network's output to the seed.
        account: told what arrives where.
        recompute: keep one value per segment, and compute a segment's others again when relevance arrives there.

    Returns:
        The seed, and the relevance of each source of the graph, shaped as it, both at least float32.
    """
    values = Values()
    given = zip(plan.graph.inputs, inputs.tensors, strict=True)
    sources = {source.name: tensor for source, tensor in given if source.carries}
    for name, tensor in sources.items():
        values[name] = tensor
    *earlier, last = segments(plan.steps, plan.graph.shapes) if recompute else (plan.steps,)
    kept = {*sources, *(steps[-1].output for steps in earlier)}
    for steps in earlier:
        forward(plan, steps, values, kept)
        values.drop({step.output for step in steps} - kept)
    forward(plan, last, values)

    seed = begin(values.wide(plan.graph.output))
    relevance = {plan.graph.output: seed.relevance}
    back(plan, last, values, relevance, seed, account)
    for steps in reversed(earlier):
        forward(plan, steps, values)
        back(plan, steps, values, relevance, seed, account)
    found = [
        relevance[name] if name in relevance else seed.relevance.new_zeros(tensor.shape)
        for name, tensor in sources.items()
    ]
    for name, arrived in zip(sources, found, strict=True):
        account.arrived(name, arrived)
    return seed, tuple(found)


def forward(plan: Plan, steps: Iterable[Step], values: Values, kept: Collection[str] = ()) -> None:
    """Run the steps, dropping each value after its last use unless it is in ``kept``."""
    for step in steps:
        values[step.output] = step.run([values[name] for name in step.inputs])
        if step.layer.operation.beside:
            plan.bindings.note(step.output, values[step.output])
        values.drop(name for name in step.drops if name not in kept)


def back(
    plan: Plan, steps: Sequence[Step], values: Values, relevance: dict[str, Tensor], seed: Seed, account: Account
) -> None:
    """Send the relevance of the last step's output to the value that enters the first."""
    with plan.bindings.widening():
        for step in reversed(steps):
            arriving = relevance.pop(step.output, None)
            if arriving is None or step.rule is None:
                account.missed(step, values.shape(step.output), seed.relevance)
            else:
                account.arrived(step.output, arriving, step.batch)
                read = values.wide if step.rule.needs_inputs else lambda name: values.blank(name, seed.relevance)
                shares = step.rule(step.layer, plan.prepared(step), [read(name) for name in step.inputs], arriving)
                account.divided(step, shares)
                for name, share in zip(step.inputs, shares, strict=True):
                    if share is not None:
                        relevance[name] = relevance[name].add_(share) if name in relevance else share
            values.drop(step.forgets)
