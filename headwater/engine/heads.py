"""A softmax or sigmoid at a network's end: what enters it are the logits, and what leaves it are the probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from headwater.engine.graph import Activation, Graph, Operation, Value, leaves, rebuild

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
    last = False
    if head != "sigmoid":
        dim = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim")
        if len(shape) < 2 or not isinstance(dim, int) or dim % len(shape) not in (1, len(shape) - 1):
            return graph
        last = dim % len(shape) != 1  # as for tokens
    moved = {operation.name: operation.inputs[0]}  # from what the chain takes to what it is to take
    added, shapes = [], dict(graph.shapes)
    for step in reversed(after):
        name = f"{step.name}_of_logits"
        inputs = tuple(moved[given] for given in step.inputs)
        added.append(replace(step, name=name, args=rebuild(step.args, partial(_renamed, moved)), inputs=inputs))
        shapes[name] = shapes[step.name]
        moved = {step.name: name}
    (output,) = moved.values()
    return replace(
        graph, operations=(*graph.operations, *added), output=output, head=head, shapes=shapes, classes_last=last
    )


def with_probabilities(graph: Graph, returned: Tensor) -> Graph:
    """The graph, told that the network returns probabilities where it does so without a softmax or sigmoid at its end.

    Those are averages, selections and other functions of probabilities that stay between 0 and 1 whatever the input,
    and what is never negative and sums to one.

    Args:
        graph: of a network without a head that was recognised.
        returned: what the network returns, the classes in dimension 1.
    """
    if graph.head is not None or not returned.numel():
        return graph
    classes = returned.shape[1] if returned.ndim > 1 else 1
    rounding = max(1e-3, 4 * torch.finfo(returned.dtype).eps * classes**0.5)
    if classes > 1 and returned.min() >= 0 and ((returned.sum(1) - 1).abs() < rounding).all():
        return replace(graph, head="probabilities")
    bounds = _bounds(graph)
    return replace(graph, head="chances") if bounds is not None and bounds[0] >= 0 and bounds[1] <= 1 else graph


Bounds = tuple[float, float]


def _bounds(graph: Graph) -> Bounds | None:
    """Between which numbers the output lies whatever the input, as far as the last operations tell."""
    producers = {operation.name: operation for operation in graph.operations}

    known: dict[str, Bounds | None] = {}

    def of(argument: Any) -> Bounds | None:
        if isinstance(argument, (int, float)):
            return (float(argument), float(argument))
        operation = producers.get(argument.name) if isinstance(argument, Value) else None
        if operation is not None and operation.name not in known:
            known[operation.name] = after(operation)
        return None if operation is None else known[operation.name]

    def after(operation: Operation) -> Bounds | None:
        kind = operation.kind
        if kind in _RANGES:
            return _RANGES[kind]
        found = [of(argument) for argument in leaves(operation.args[:2] if kind in _TWO else operation.args[:1])]
        given = [bounds for bounds in found if bounds is not None]
        if len(given) != len(found) or not given:
            return None
        if kind in _SELECTIONS:
            return min(low for low, _ in given), max(high for _, high in given)
        if kind == "reciprocal":
            return _quotient((1.0, 1.0), given[0])
        if kind == "neg":
            return -given[0][1], -given[0][0]
        if kind in _TWO and len(given) == 2:
            return _TWO[kind](*given)
        return None

    return of(Value(graph.output))


def _quotient(a: Bounds, b: Bounds) -> Bounds | None:
    if b[0] <= 0:
        return None
    return min(a[0] / b[0], a[0] / b[1]), max(a[1] / b[0], a[1] / b[1])


def _product(a: Bounds, b: Bounds) -> Bounds | None:
    if any(abs(end) == math.inf for end in (*a, *b)):
        return None
    ends = [x * y for x in a for y in b]
    return min(ends), max(ends)


_RANGES: dict[str, Bounds] = {
    **dict.fromkeys((*_HEADS, "hardsigmoid", "_safe_softmax"), (0.0, 1.0)),
    **dict.fromkeys(("log_softmax", "_log_softmax"), (-math.inf, 0.0)),
    "tanh": (-1.0, 1.0),
    "exp": (0.0, math.inf),
}
_SELECTIONS = _RESHAPES | {
    *(
        "mean",
        "amax",
        "amin",
        "max",
        "min",
        "clamp",
        "clamp_min",
        "clamp_max",
        "select",
        "slice",
        "index",
        "stack",
        "cat",
    ),
    *("permute", "transpose", "movedim"),
}
_TWO: dict[str, Callable[[Bounds, Bounds], Bounds | None]] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "rsub": lambda a, b: (b[0] - a[1], b[1] - a[0]),
    "mul": _product,
    "div": _quotient,
}


def _renamed(names: Mapping[str, str], leaf: Any) -> Any:
    return Value(names[leaf.name]) if isinstance(leaf, Value) and leaf.name in names else leaf


def with_classes_second(graph: Graph) -> Graph:
    """The graph with its output's classes in dimension 1, where a dense layer gives them last, as for each token."""
    shape = graph.shapes[graph.output]
    producer = next((o for o in graph.operations if o.name == graph.output), None)
    dense = producer is not None and producer.kind in ("linear", "matmul")
    if len(shape) < 3 or not (dense or graph.classes_last):
        return replace(graph, classes_last=False)
    name = f"{graph.output}_classes_second"
    turned = Operation(name, torch.ops.aten.movedim.int, (Value(graph.output), -1, 1), {}, (), (graph.output,))
    shapes = {**graph.shapes, name: (shape[0], shape[-1], *shape[1:-1])}
    return replace(graph, operations=(*graph.operations, turned), output=name, shapes=shapes, classes_last=True)


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
