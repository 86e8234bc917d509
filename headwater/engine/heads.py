"""A softmax or sigmoid at a network's end: what enters it are the logits, and what leaves it are the probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headwater.engine.graph import Activation, Graph, Operation, Value, rebuild

_HEADS = {
    "softmax": "softmax",
    "_softmax": "softmax",
    "log_softmax": "log_softmax",
    "_log_softmax": "log_softmax",
    "sigmoid": "sigmoid",
}
_RESHAPES = frozenset(
    ("flatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous", "clone", "alias", "to", "_to_copy", "dropout")
)


def without_head(graph: Graph) -> Graph:
    """The graph up to what enters a softmax (over the classes), log-softmax or sigmoid that ends it.

    Only reshaping may come after it. The operation itself stays in the list where something else uses its value.
    """
    producers = {operation.name: operation for operation in graph.operations}
    after: list[Operation] = []
    operation = producers.get(graph.output)
    while operation is not None and operation.kind in _RESHAPES and len(operation.inputs) == 1:
        after.append(operation)
        operation = producers.get(operation.inputs[0])
    head = None if operation is None else _HEADS.get(operation.kind)
    if operation is None or head is None or len(operation.inputs) != 1:
        return graph
    shape = graph.shapes.get(operation.name, ())
    if head != "sigmoid":
        dim = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim")
        classes = (1, len(shape) - 1) if _is_dense(producers.get(operation.inputs[0])) else (1,)  # last, as for tokens
        if len(shape) < 2 or not isinstance(dim, int) or dim % len(shape) not in classes:
            return graph
    moved = {operation.name: operation.inputs[0]}  # from what the chain takes to what it is to take
    added, shapes = [], dict(graph.shapes)
    for step in reversed(after):
        name = f"{step.name}_of_logits"
        inputs = tuple(moved[given] for given in step.inputs)
        added.append(replace(step, name=name, args=rebuild(step.args, partial(_renamed, moved)), inputs=inputs))
        shapes[name] = shapes[step.name]
        moved = {step.name: name}
    (output,) = moved.values()
    return replace(graph, operations=(*graph.operations, *added), output=output, head=head, shapes=shapes)


def with_probabilities(graph: Graph, returned: Tensor) -> Graph:
    """The graph, told that the network returns probabilities where it does so without a softmax or sigmoid at its end.

    Those are averages, selections and other functions of probabilities, and whatever is never negative and sums to one.

    Args:
        graph: of a network without a head that was recognised.
        returned: what the network returns, the classes in dimension 1.
    """
    if graph.head is not None or not returned.numel() or returned.min() < 0 or returned.max() > 1:
        return graph
    if returned.ndim > 1 and returned.shape[1] > 1 and (returned.sum(1) - 1).abs().max() < 1e-3:
        return replace(graph, head="probabilities")
    return replace(graph, head="chances") if _made_of_probabilities(graph) else graph


def _made_of_probabilities(graph: Graph) -> bool:
    """Whether a softmax or sigmoid is all that the output is made of, without a layer with weights after it."""
    producers = {operation.name: operation for operation in graph.operations}
    waiting, found = [graph.output], False
    while waiting:
        operation = producers.get(waiting.pop())
        if operation is None:
            return False
        if operation.kind in _HEADS or operation.kind == "hardsigmoid":
            found = True
        elif operation.kind in _OF_PROBABILITIES and not operation.weights:
            waiting += operation.inputs
        else:
            return False
    return found


_OF_PROBABILITIES = _RESHAPES | {
    *("mean", "sum", "amax", "amin", "max", "min", "clamp", "clamp_min", "clamp_max", "select", "slice", "index"),
    *("mul", "div", "add", "sub", "rsub", "stack", "cat", "permute", "transpose", "prod", "movedim"),
}


def _renamed(names: Mapping[str, str], leaf: Any) -> Any:
    return Value(names[leaf.name]) if isinstance(leaf, Value) and leaf.name in names else leaf


def with_classes_second(graph: Graph) -> Graph:
    """The graph with its output's classes in dimension 1, where a dense layer gives them last, as for each token."""
    shape = graph.shapes[graph.output]
    producer = next((o for o in graph.operations if o.name == graph.output), None)
    if len(shape) < 3 or not _is_dense(producer):
        return graph
    name = f"{graph.output}_classes_second"
    turned = Operation(name, torch.ops.aten.movedim.int, (Value(graph.output), -1, 1), {}, (), (graph.output,))
    shapes = {**graph.shapes, name: (shape[0], shape[-1], *shape[1:-1])}
    return replace(graph, operations=(*graph.operations, turned), output=name, shapes=shapes, classes_last=True)


def _is_dense(operation: Operation | None) -> bool:
    return operation is not None and operation.kind in ("linear", "matmul")


def with_head(logits: Tensor, graph: Graph) -> Tensor:
    """What the network returns for its output without the head."""
    if graph.head == "sigmoid":
        logits = logits.sigmoid()
    elif graph.head in ("softmax", "log_softmax"):
        logits = logits.softmax(1) if graph.head == "softmax" else logits.log_softmax(1)
    return logits.movedim(1, -1) if graph.classes_last else logits


def probabilities(logits: Tensor, activation: Activation) -> Tensor:
    """The probability of each class, for logits ``(N, K, ...)``."""
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)


def returned_probabilities(output: Tensor, head: str | None, activation: Activation) -> Tensor:
    """The probability of each class, ``(N, K, ...)``, from what a network with that head returns."""
    if head is None:
        return probabilities(output, activation)
    return output.exp() if head == "log_softmax" else output


def logits_before(output: Tensor, head: str | None) -> Tensor:
    """Logits of the output that a sweep begins at: the output itself, unless the network has none but probabilities."""
    tiny = torch.finfo(output.dtype).tiny
    if head == "probabilities":
        return output.clamp(min=tiny).log()
    return torch.logit(output, eps=torch.finfo(output.dtype).eps) if head == "chances" else output


def activation_of(head: str | None, asked: Activation | None) -> Activation:
    """What makes probabilities of the logits: as asked, as the network ends, or else the softmax."""
    if head is not None:
        return "sigmoid" if head in ("sigmoid", "chances") else "softmax"
    return asked or "softmax"
