"""Runs a list of operations forward, without relevance: to compare it with the model, and to try it on other inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from headwater.engine.graph import Constant, Graph, Operation, Value, Weight, leaves
from headwater.engine.inputs import Inputs


def values_of(graph: Graph, tensors: Mapping[str, Tensor], inputs: Inputs) -> Iterator[tuple[Operation, Any]]:
    """Each operation with its value, in order; a value is dropped after its last use.

    What is written into a value while the caller has it is what later operations see.

    Args:
        graph: the operations.
        tensors: the model's parameters and buffers by name.
        inputs: what it is called with.
    """
    last_use = {name: k for k, operation in enumerate(graph.operations) for name in _taken(operation)}
    values: dict[str, Any] = {given.name: t for given, t in zip(graph.inputs, inputs.tensors, strict=True)}

    def lookup(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            return values[leaf.name]
        if isinstance(leaf, Weight):
            return tensors[leaf.name]
        return leaf.tensor if isinstance(leaf, Constant) else leaf

    for k, operation in enumerate(graph.operations):
        args, kwargs = operation.bind(lookup)
        values[operation.name] = operation.target(*args, **kwargs)
        yield operation, values[operation.name]
        for name in _taken(operation):
            if last_use[name] == k:
                del values[name]


def output_of(graph: Graph, tensors: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
    """The value that is explained, for these inputs."""
    found = next((t for given, t in zip(graph.inputs, inputs.tensors, strict=True) if given.name == graph.output), None)
    for operation, value in values_of(graph, tensors, inputs):
        if operation.name == graph.output:
            found = value
    assert found is not None
    return found


def _taken(operation: Operation) -> set[str]:
    return {leaf.name for leaf in leaves((operation.args, operation.kwargs)) if isinstance(leaf, Value)}
