"""Which operations a composite takes as one layer: calls of named modules, or the residual blocks of the graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from headwater.engine.graph import Graph, ModuleCall, Operation
from headwater.engine.structure import ResidualBlock
from headwater.errors import InputError

RESIDUAL = "residual block"
"""What stands for the module's class where a block is found in the graph."""


@dataclass(frozen=True)
class Group:
    """Operations that are one layer.

    Attributes:
        call: the module call that they are; for a residual block the module that holds them.
        operations: in order; the last one gives the layer's output.
        inputs: the values that enter.
    """

    call: ModuleCall
    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]


def find_groups(
    graph: Graph,
    operations: Sequence[Operation],
    patterns: Sequence[str],
    classes: Collection[str],
    residual: Sequence[ResidualBlock] = (),
) -> list[Group]:
    """The groups among ``operations``, in order; no two share an operation.

    Args:
        graph: the network.
        operations: those of its operations that the image's values enter.
        patterns: module paths (patterns) and class names whose calls are groups.
        classes: names of modules' classes whose calls are groups too.
        residual: residual blocks, which are groups too.

    Raises:
        InputError: a module cannot be one layer, because several of its values leave it.
    """
    calls: dict[str, tuple[ModuleCall, list[Operation]]] = {}
    for operation in operations:
        call = _outermost(operation, patterns, classes)
        if call is not None:
            calls.setdefault(call.key, (call, []))[1].append(operation)
    found = [(call, tuple(members)) for call, members in calls.values()]
    found = _with_residual_blocks(operations, found, residual)
    place = {operation.name: k for k, operation in enumerate(operations)}
    found.sort(key=lambda group: place[group[1][-1].name])
    return [_checked(call, members, operations, graph.output) for call, members in found]


def matches_call(call: ModuleCall, pattern: str) -> bool:
    """Whether ``pattern`` means this call: the name of its class, or a pattern of its path."""
    return call.kind == pattern or fnmatchcase(call.path, pattern)


def _outermost(operation: Operation, patterns: Sequence[str], classes: Collection[str]) -> ModuleCall | None:
    """The outermost module call around an operation that is a group."""
    for call in operation.calls:
        if call.kind in classes or any(matches_call(call, pattern) for pattern in patterns):
            return call
    return None


def _with_residual_blocks(
    operations: Sequence[Operation],
    named: list[tuple[ModuleCall, tuple[Operation, ...]]],
    residual: Sequence[ResidualBlock],
) -> list[tuple[ModuleCall, tuple[Operation, ...]]]:
    """Residual blocks, and the named calls that are not inside of one; what was named goes before what it overlaps."""
    by_name = {operation.name: operation for operation in operations}
    for block in residual:
        members = tuple(by_name[name] for name in block.operations)
        names = set(block.operations)
        inside = [group for group in named if names > {operation.name for operation in group[1]}]
        others = [group for group in named if group not in inside]
        if all(names.isdisjoint(operation.name for operation in group[1]) for group in others):
            named = [*others, (ModuleCall(block.path, RESIDUAL, block.join), members)]
    return named


def _checked(call: ModuleCall, members: tuple[Operation, ...], operations: Sequence[Operation], output: str) -> Group:
    inside = {operation.name for operation in members}
    taken = {name for operation in operations if operation.name not in inside for name in operation.inputs} | {output}
    leaving = [operation.name for operation in members[:-1] if operation.name in taken]
    if leaving:
        raise InputError(f"block {call.path!r} cannot be one layer: {leaving} leave it besides its output")
    inputs = tuple(dict.fromkeys(n for operation in members for n in operation.inputs if n not in inside))
    return Group(call, members, inputs)
