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
        if len(shape) < 2 or not isinstance(dim, int) or dim % len(shape) != 1:
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


def _renamed(names: Mapping[str, str], leaf: Any) -> Any:
    return Value(names[leaf.name]) if isinstance(leaf, Value) and leaf.name in names else leaf


def with_classes_second(graph: Graph) -> Graph:
    """The graph with its output's classes in dimension 1, where a dense layer gives them last, as for each token."""
    shape = graph.shapes[graph.output]
    producer = next((o for o in graph.operations if o.name == graph.output), None)
    if len(shape) < 3 or producer is None or producer.kind not in ("linear", "matmul"):
        return graph
    name = f"{graph.output}_classes_second"
    turned = Operation(name, torch.ops.aten.movedim.int, (Value(graph.output), -1, 1), {}, (), (graph.output,))
    shapes = {**graph.shapes, name: (shape[0], shape[-1], *shape[1:-1])}
    return replace(graph, operations=(*graph.operations, turned), output=name, shapes=shapes, classes_last=True)


def with_head(logits: Tensor, graph: Graph) -> Tensor:
    """What the network returns for its logits."""
    if graph.head == "sigmoid":
        logits = logits.sigmoid()
    elif graph.head is not None:
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


def logits_of(output: Tensor, head: str | None) -> Tensor:
    """Logits that give what a network returns; after a softmax known up to a number that all classes share."""
    if head is None or head == "log_softmax":
        return output
    return torch.logit(output) if head == "sigmoid" else output.log()


def activation_of(head: str | None, asked: Activation | None) -> Activation:
    """What makes probabilities of the logits: as asked, as the network ends, or else the softmax."""
    if head is not None:
        return "sigmoid" if head == "sigmoid" else "softmax"
    return asked or "softmax"
