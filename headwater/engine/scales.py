"""Relevance at the cuts as maps: where a value's places are, and how its map is enlarged to the input.

All relevance passes a cut, so a cut's map, summed over channels, sums to the seed as the input's does. It has the cut's
own resolution: few cells near the classifier, which say where the network looked, and many near the input. Places are
pixels of an image, samples of a signal, voxels of a volume, frames' pixels of a video or tokens of a text.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.engine.graph import Graph, Operation, Shape, Value
from headwater.engine.layers import Rearrange
from headwater.engine.rules import Pass
from headwater.engine.steps import Step

_MOST_TOKENS = 8
"""Class and register tokens in front of the patches; more than that are taken for something else."""
_RESHAPES = frozenset(("flatten", "view", "reshape", "_unsafe_view", "unflatten", "view_as", "reshape_as"))
_MOVE_PLACES = frozenset(("flip", "roll", "sort", "gather", "index", "index_select", "cumsum", "scatter"))
"""Operations after which a place of the same number may be another one."""
_ONTO_MAPS = ("conv", "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")


@dataclass(frozen=True)
class Layout:
    """Which dimensions of a value are places, such as rows and columns.

    Attributes:
        dims: the dimension of each axis of the grid, or of the tokens alone where patches are tokens in a row.
        grid: how many places there are along each axis, in the order of the input's axes.
        extra: tokens in front of the patches that have no place in the input, such as a class token.
    """

    dims: tuple[int, ...]
    grid: tuple[int, ...]
    extra: int = 0

    @property
    def flat(self) -> bool:
        """Whether all places are in one dimension."""
        return len(self.dims) == 1

    def summed(self, relevance: Tensor, batch: int) -> Float[Tensor, "n ..."]:
        """Relevance summed over channels, given in double precision where there is one.

        What lies on tokens without a place is handed to all cells in equal parts.

        Args:
            relevance: of a value with this layout.
            batch: dimension that counts the examples.
        """
        kept = sorted({batch, *self.dims})
        others = [d for d in range(relevance.ndim) if d not in kept]
        exact = torch.float64 if relevance.device.type != "mps" else torch.float32
        # The sum itself is in relevance's own precision: in double, torch would first copy all of it.
        maps = (relevance.sum(others) if others else relevance).to(exact)
        maps = maps.permute([kept.index(d) for d in (batch, *self.dims)])
        if self.flat:
            if self.extra:
                placeless, maps = maps[:, : self.extra].sum(1, keepdim=True), maps[:, self.extra :]
                maps = maps + placeless / maps.shape[1]
            maps = maps.unflatten(1, self.grid)
        return maps


def scale_layouts(graph: Graph, steps: Sequence[Step], cuts: Collection[str]) -> dict[str, Layout]:
    """The cuts between image and output that have rows and columns, in order, each with its layout.

    Of cuts that relevance passes unchanged from one to the next (an addition, its activation), the last one is taken.
    Values with padding are none of them.
    """
    layouts = _layouts(graph, [step.layer.operation for step in steps])
    users: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.inputs:
            users.setdefault(name, []).append(step)

    def is_repeated(name: str) -> bool:
        after = users.get(name, [])
        if len(after) != 1 or after[0].output not in cuts or len(after[0].inputs) != 1:
            return False
        layer, follows = after[0].layer, layouts.get(after[0].output)
        moves = isinstance(after[0].rule, Pass) or (isinstance(layer, Rearrange) and not layer.has_constants)
        here = layouts[name]
        return moves and follows is not None and (follows.grid, follows.extra) == (here.grid, here.extra)

    def is_padded(step: Step) -> bool:
        before = [layouts[name].grid for name in step.inputs if name in layouts]
        return "pad" in step.layer.operation.kind and before != [layouts[step.output].grid]

    placed = [step for step in steps if step.output in cuts and step.output in layouts]
    placed = [step for step in placed if step.batch not in layouts[step.output].dims]
    names = [step.output for step in placed if not is_padded(step)]  # what pads reaches beyond the image
    return {name: layouts[name] for name in names if not is_repeated(name)}


def enlarge(maps: Float[Tensor, "n ..."], size: Sequence[int]) -> Float[Tensor, "n ..."]:
    r"""Maps in the input's size, each summing to what it summed to.

    A map is taken as a density, interpolated linearly along each axis between the centres of its cells and constant
    beyond the outermost ones; each place gets the integral of it. So every cell's value is spread by a kernel of its
    own that sums to one, whatever the sizes: nothing is normalised afterwards, and a constant map stays constant.

    Args:
        maps: ``(N, *places)``.
        size: of the input, such as rows and columns; a map that has it already comes back as it is.

    >>> import torch
    >>> enlarge(torch.tensor([[[4.0, 0.0]]]), (2, 4)).sum().item()
    4.0
    """
    for axis, (cells, places) in enumerate(zip(maps.shape[1:], size, strict=True), 1):
        if cells != places:
            maps = (maps.movedim(axis, -1) @ _spreading(places, cells, maps).T).movedim(-1, axis)
    return maps


def mean_of_scales(maps: Mapping[str, Float[Tensor, "n ..."]], size: Sequence[int]) -> Float[Tensor, "n ..."] | None:
    """The mean over the resolutions of maps, each of which is the mean of its maps; ``None`` without one.

    Every resolution counts the same, however many blocks work in it, so the rule has nothing to set for a network. All
    maps sum to the seed, so the mean does.

    Args:
        maps: of cuts, and of the input if it is to count, by name.
        size: of the input.
    """
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for one in maps.values():
        groups.setdefault(tuple(one.shape[1:]), []).append(one)
    means = [enlarge(torch.stack(group).mean(0), size) for group in groups.values()]
    return torch.stack(means).mean(0) if means else None


def _spreading(pixels: int, cells: int, like: Tensor) -> Tensor:
    """How much of each cell goes to each place along one axis, ``(pixels, cells)``; every column sums to one."""
    edges = torch.arange(pixels + 1, dtype=like.dtype, device=like.device)[:, None] * (cells / pixels)
    centres = torch.arange(cells, dtype=like.dtype, device=like.device) + 0.5
    u = edges - centres
    inside = u.clamp(-1, 1)
    # The integral of a cell's tent from its left end; the outermost cells are constant beyond their centres.
    integral = torch.where(inside < 0, (1 + inside).square() / 2, 1 - (1 - inside).square() / 2)
    integral[:, 0] = torch.where(u[:, 0] < 0, edges[:, 0], integral[:, 0])
    integral[:, -1] = torch.where(u[:, -1] > 0, u[:, -1] + 0.5, integral[:, -1])
    return integral.diff(dim=0)


# -- where places are --------------------------------------------------------------------------------------------------


def _layouts(graph: Graph, operations: Sequence[Operation]) -> dict[str, Layout]:
    """The layout of each value that has one, followed from the input on; of several inputs there is none."""
    layouts: dict[str, Layout] = {}
    if len(graph.sources) != 1:
        return layouts
    (source,) = graph.sources
    shape = graph.shapes.get(source.name, ())
    places = [d for d in range(1, len(shape)) if d != source.channels]
    grid = tuple(shape[d] or 0 for d in places)
    if (source.channels is None and not source.ids) or not all(grid) or not grid:
        return layouts
    layouts[source.name] = Layout(tuple(places), grid)
    moved: set[str] = set()  # values in which a place may be another one than in the input
    for operation in operations:
        after = graph.shapes.get(operation.name, ())
        before = [(layouts[name], graph.shapes.get(name, ())) for name in operation.inputs if name in layouts]
        found = _after(operation, after, before, len(grid))
        if operation.kind in _MOVE_PLACES or (not before and not moved.isdisjoint(operation.inputs)):
            moved.add(operation.name)
            continue
        if found is not None and min(found.grid) >= 1 and math.prod(found.grid) > 1:
            layouts[operation.name] = found
    return layouts


def _after(operation: Operation, shape: Shape, before: Sequence[tuple[Layout, Shape]], axes: int) -> Layout | None:
    """The layout of an operation's output, given those of its inputs that have one."""
    if operation.kind.startswith(_ONTO_MAPS):
        dims = tuple(range(2, len(shape)))
        if before and sorted(before[0][0].dims) == list(dims):
            dims = before[0][0].dims
        return _on_grid(shape, dims) if len(dims) == axes else None
    for layout, given in before:
        found = _moved(operation, layout, given, shape)
        if found is not None:
            return found
    return None


def _moved(operation: Operation, layout: Layout, given: Shape, shape: Shape) -> Layout | None:
    if operation.kind in ("permute", "transpose", "swapaxes"):
        order = list(range(len(given)))
        if operation.kind == "permute":
            order = [d % len(given) for d in operation.args[1]]
        else:
            a, b = (d % len(given) for d in operation.args[1:3])
            order[a], order[b] = order[b], order[a]
        return replace(layout, dims=tuple(order.index(d) for d in layout.dims))
    if operation.kind == "unsqueeze":
        at = operation.args[1] % len(shape)
        return replace(layout, dims=tuple(d + (d >= at) for d in layout.dims))
    if operation.embeds or operation.whole:
        return layout if shape[: len(given)] == given else None
    if operation.kind in _RESHAPES:
        return _reshaped(layout, given, shape)
    if len(shape) != len(given) or operation.kind in _MOVE_PLACES:
        return None
    if _crops(operation, shape, given) and (not layout.flat or (len(layout.grid) == 1 and not layout.extra)):
        return None
    if operation.kind in ("linear", "matmul", "mm", "bmm") and len(given) - 1 in layout.dims:
        return None
    concatenates = operation.kind in ("cat", "concat")
    if not layout.flat or (len(layout.grid) == 1 and not layout.extra and not concatenates):
        return _on_grid(shape, layout.dims)
    tokens, patches = shape[layout.dims[0]], math.prod(layout.grid)
    if concatenates and tokens != given[layout.dims[0]] and _comes_first(operation):
        return None
    if tokens is None or not 0 <= tokens - patches <= min(_MOST_TOKENS, patches - 1):
        return None
    return replace(layout, extra=tokens - patches)


def _crops(operation: Operation, shape: Shape, given: Shape) -> bool:
    """Whether an operation cuts a part out, with every place of it; every second one is a coarser grid."""
    step = operation.args[4] if len(operation.args) > 4 else 1
    return operation.kind in ("slice", "narrow") and shape != given and step == 1


def _comes_first(operation: Operation) -> bool:
    """Whether a value of the input stands first in a concatenation, so that what is added stands behind it."""
    first = operation.args[0][0]
    return isinstance(first, Value) and first.name in operation.inputs


def _reshaped(layout: Layout, given: Shape, shape: Shape) -> Layout | None:
    """A grid that becomes tokens in a row, such tokens that become a grid, or neither."""
    if given == shape:
        return layout
    at, end = layout.dims[0], layout.dims[-1] + 1
    if layout.dims != tuple(range(at, end)):
        return None
    if (*given[:at], math.prod(layout.grid), *given[end:]) == shape:
        return Layout((at,), layout.grid)
    if layout.flat and not layout.extra and (*given[:at], *layout.grid, *given[end:]) == shape:
        return Layout(tuple(range(at, at + len(layout.grid))), layout.grid)
    return None


def _on_grid(shape: Shape, dims: tuple[int, ...]) -> Layout | None:
    grid = [shape[d] for d in dims]
    return None if None in grid else Layout(dims, tuple(size or 0 for size in grid))
