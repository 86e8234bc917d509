"""What the dimensions of an input stand for: channels, over which a map sums, and places, which it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from headwater.engine.graph import Graph, GraphInput, Operation, Shape, Value
from headwater.engine.inputs import Inputs

_CHANNELS_SECOND = ("conv", "batch_norm", "group_norm", "instance_norm", "native_group_norm")
_CHANNELS_LAST = frozenset(("linear", "layer_norm", "rms_norm", "native_layer_norm", "matmul", "addmm", "mm", "bmm"))
_RESHAPES = frozenset(("view", "reshape", "flatten", "squeeze", "unflatten", "_unsafe_view"))
_NAMES = {
    0: (),
    1: ("sample",),
    2: ("row", "column"),
    3: ("depth", "row", "column"),
}


def with_channels(graph: Graph) -> tuple[GraphInput, ...]:
    """The graph's inputs, each told its dimension of channels.

    It is found from what first computes with the input: a convolution takes channels in dimension 1 and a dense layer
    in the last, and what permutes or reshapes the input before is followed. Where that does not tell, inputs of three
    and more dimensions have it in dimension 1; values ``(N, F)`` and token ids have none.
    """
    ids = {name for o in graph.operations if o.whole or o.looks_up for name in o.inputs}
    found = []
    for given in graph.inputs:
        shape = graph.shapes[given.name]
        none = given.name in ids or len(shape) < 3
        found.append(replace(given, ids=given.name in ids, channels=None if none else _channels(graph, given.name)))
    return tuple(found)


def _channels(graph: Graph, name: str) -> int | None:
    rank = len(graph.shapes[name])
    origins: dict[str, tuple[int | None, ...]] = {name: tuple(range(rank))}
    for operation in graph.operations:
        taken = next((n for n in operation.inputs if n in origins), None)
        if taken is None:
            continue
        origin = origins[taken]
        if operation.kind.startswith(_CHANNELS_SECOND) and len(origin) > 2:
            return origin[1]
        normed = operation.args[1] if operation.kind in ("layer_norm", "rms_norm") else [0]
        if operation.kind in _CHANNELS_LAST and len(normed) == 1:
            first = isinstance(operation.args[0], Value) and operation.args[0].name == taken
            if operation.kind in ("matmul", "bmm") and not first and len(origin) > 2:
                return origin[-2]  # a matrix times the input
            return origin[-1] if len(origin) > 2 and (rank == 3 or origin[-1] == rank - 1) else 1
        after = _moved(operation, origin, graph.shapes[taken], graph.shapes.get(operation.name, ()))
        if after is not None:
            origins[operation.name] = after
    return 1


def _moved(
    operation: Operation, origin: tuple[int | None, ...], before: Shape, after: Shape
) -> tuple[int | None, ...] | None:
    """Which dimension of the input each dimension of an operation's result is; ``None`` where that is not known."""
    kind, args = operation.kind, operation.args
    if kind == "permute":
        return tuple(origin[d % len(origin)] for d in args[1])
    if kind in ("transpose", "swapaxes"):
        order = list(origin)
        a, b = (d % len(order) for d in args[1:3])
        order[a], order[b] = order[b], order[a]
        return tuple(order)
    if kind in ("unsqueeze", "stack"):
        at = (args[1] if len(args) > 1 else 0) % len(after)
        return (*origin[:at], None, *origin[at:])
    if kind in _RESHAPES and before != after:
        return _reshaped(origin, before, after)
    if len(after) == len(before):
        return origin  # element by element, along a dimension, or a part of it
    if kind in ("repeat", "expand") and len(after) > len(before):
        return (*[None] * (len(after) - len(before)), *origin)
    if len(after) < len(before):
        given = args[1] if len(args) > 1 else operation.kwargs.get("dim", 0)
        dims = {d % len(before) for d in (given if isinstance(given, (list, tuple)) else [given]) if isinstance(d, int)}
        left = tuple(origin[d] for d in range(len(before)) if d not in dims)
        return left if len(left) == len(after) else None
    return None


def _reshaped(origin: tuple[int | None, ...], before: Shape, after: Shape) -> tuple[int | None, ...] | None:
    """Dimensions at the end that keep their sizes are what they were; those in front are merged or divided."""
    kept = 0
    while kept < min(len(before), len(after)) and before[-1 - kept] == after[-1 - kept] is not None:
        kept += 1
    return (*[None] * (len(after) - kept), *origin[len(origin) - kept :]) if kept else None


def map_names(given: GraphInput, shape: Sequence[int]) -> tuple[str, ...]:
    """Names of the dimensions after the batch of an input's map, which has ``shape``."""
    at = given.channels
    return place_names(shape if at is None else (*shape[:at], 1, *shape[at:]), at, given.ids)


def maps_of(graph: Graph, values: Sequence[Tensor]) -> list[Tensor]:
    """Relevance of the values of each input that carries it, summed over channels."""
    sources = zip(graph.sources, values, strict=True)
    return [v if source.channels is None else v.sum(source.channels) for source, v in sources]


def structured(graph: Graph, inputs: Inputs, values: Sequence[Tensor]) -> Any:
    """One value for each input, as the call has them: zeros for those that carry no relevance."""
    left = iter(values)
    pairs = zip(graph.inputs, inputs.tensors, strict=True)
    return inputs.structured([next(left) if g.carries else values[0].new_zeros(t.shape) for g, t in pairs])


def place_names(shape: Sequence[int], channels: int | None, ids: bool = False) -> tuple[str, ...]:
    """Names of a map's dimensions after the batch.

    Args:
        shape: of the input, the batch included.
        channels: its dimension of channels, if it has one.
        ids: whether it holds token ids.

    >>> place_names((8, 3, 224, 224), 1), place_names((8, 16, 3, 224, 224), 2), place_names((8, 40), None)
    (('row', 'column'), ('frame', 'row', 'column'), ('feature',))
    """
    places = len(shape) - 1 - (channels is not None)
    if ids:
        return ("token",) if places == 1 else tuple(f"dimension {k + 1}" for k in range(places))
    if channels is None and places == 1:
        return ("feature",)
    if places == 3 and channels == 2:
        return ("frame", "row", "column")
    return _NAMES.get(places, tuple(f"dimension {k + 1}" for k in range(places)))
