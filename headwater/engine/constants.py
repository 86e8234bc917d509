"""Values that are the same whatever the input, although they are cut out of values that are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from headwater.engine.graph import Graph, Operation
from headwater.engine.guards.modes import computing
from headwater.engine.inputs import Inputs
from headwater.engine.interpreter import values_of
from headwater.engine.weights import live_tensors


def without_constants(graph: Graph, model: nn.Module, inputs: Inputs) -> Graph:
    """The graph in which such values count as constants, where rows of the batch are cut out.

    TimeSformer takes the class tokens of its first N rows, which are frames of the first video, for those of its N
    videos: all are the same, but relevance would go back to the first video. Two examples are run that differ
    everywhere, and again as NaN: what is equal for both, and a number, does not depend on the input.

    Args:
        graph: the operations.
        model: whose weights they use.
        inputs: what it is called with; the first example is taken.
    """
    if not any(_cuts_rows(operation) for operation in graph.operations):
        return graph
    tensors = live_tensors(model, graph.weights)
    count = 2 if graph.batch is None else graph.batch
    carrying = {given.name for given in graph.sources}
    example = inputs.map(lambda t: t[:1].detach().repeat(count, *[1] * (t.ndim - 1)))

    def run(times: float, plus: float) -> Iterator[tuple[str, Tensor]]:
        """The values that can carry relevance, every input (and embedding of ids) changed."""
        given = tuple(
            t * times + plus if source.name in carrying and t.is_floating_point() else t
            for source, t in zip(graph.inputs, example.tensors, strict=True)
        )
        for operation, value in values_of(graph, tensors, Inputs(given, example.keys, example.alone)):
            if operation.inputs and isinstance(value, Tensor) and value.is_floating_point():
                if operation.embeds:
                    value.copy_(value * times + plus)
                yield operation.name, value

    with computing(inputs.floating):
        free = {name for name, value in run(1.0, torch.nan) if not value.isnan().any()}
        kept = {name: value.clone() for name, value in run(1.0, 0.0) if name in free}
        constant = {name for name, value in run(2.0, 1.0) if name in free and torch.equal(value, kept[name])}
    if not constant or graph.output in constant:
        return graph
    operations = []
    for operation in graph.operations:
        if operation.name in constant:
            operation = replace(operation, beside=True)
        elif not operation.beside:
            operation = replace(operation, inputs=tuple(n for n in operation.inputs if n not in constant))
        operations.append(operation)
    return replace(graph, operations=tuple(operations))


def _cuts_rows(operation: Operation) -> bool:
    """Whether an operation takes some rows along the first dimension."""
    if not operation.inputs or operation.kind not in ("slice", "narrow") or len(operation.args) < 4:
        return False
    _, dim, start, end = operation.args[:4]
    return dim == 0 and not (start in (0, None) and (end is None or (isinstance(end, int) and end >= 2**62)))
