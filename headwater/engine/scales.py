"""Relevance at the cuts as maps: where a value's rows and columns are, and how its map is enlarged to the image.

All relevance passes a cut, so a cut's map, summed over channels, sums to the seed as the image's does. It has the cut's
own resolution: few cells near the classifier, which say where the network looked, and many near the image.
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
_ONTO_MAPS = frozenset(("conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"))


@dataclass(frozen=True)
class Layout:
    """Which dimensions of a value are rows and columns.

    Attributes:
        rows: dimension of the rows, or of the tokens.
        columns: dimension of the columns; the same as ``rows`` where patches are tokens in a row.
        grid: how many rows and columns there are.
        extra: tokens in front of the patches that have no place in the image, such as a class token.
    """

    rows: int
    columns: int
    grid: tuple[int, int]
    extra: int = 0

    def summed(self, relevance: Tensor, batch: int) -> Float[Tensor, "n h w"]:
        """Relevance summed over channels, given in double precision where there is one.

        What lies on tokens without a place is handed to all cells in equal parts.

        Args:
            relevance: of a value with this layout.
            batch: dimension that counts the images.
        """
        kept = sorted({batch, self.rows, self.columns})
        others = [d for d in range(relevance.ndim) if d not in kept]
        exact = torch.float64 if relevance.device.type != "mps" else torch.float32
        # The sum itself is in relevance's own precision: in double, torch would first copy all of it.
        maps = (relevance.sum(others) if others else relevance).to(exact)
        maps = maps.movedim(kept.index(batch), 0)
        if self.rows == self.columns:
            placeless, maps = maps[:, : self.extra].sum(1, keepdim=True), maps[:, self.extra :]
            maps = (maps + placeless / maps.shape[1]).unflatten(1, self.grid)
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
    names = [step.output for step in placed if not is_padded(step)]  # what pads reaches beyond the image
    return {name: layouts[name] for name in names if not is_repeated(name)}


def enlarge(maps: Float[Tensor, "n h w"], size: tuple[int, int]) -> Float[Tensor, "n H W"]:
    r"""Maps in the image's size, each summing to what it summed to.

    A map is taken as a density, interpolated bilinearly between the centres of its cells and constant beyond the
    outermost ones; each pixel gets the integral of it. So every cell's value is spread by a kernel of its own that sums
    to one, whatever the sizes: nothing is normalised afterwards, and a constant map stays constant.

    Args:
        maps: ``(N, h, w)``.
        size: rows and columns of the image; a map that has them already comes back as it is.

    >>> import torch
    >>> enlarge(torch.tensor([[[4.0, 0.0]]]), (2, 4)).sum().item()
    4.0
    """
    rows, columns = maps.shape[1:]
    if (rows, columns) == tuple(size):
        return maps
    return _spreading(size[0], rows, maps) @ maps @ _spreading(size[1], columns, maps).T


def mean_of_scales(maps: Mapping[str, Float[Tensor, "n h w"]], size: tuple[int, int]) -> Float[Tensor, "n H W"] | None:
    """The mean over the resolutions of maps, each of which is the mean of its maps; ``None`` without one.

    Every resolution counts the same, however many blocks work in it, so the rule has nothing to set for a network. All
    maps sum to the seed, so the mean does.

    Args:
        maps: of cuts, and of the image if it is to count, by name.
        size: rows and columns of the image.
    """
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for one in maps.values():
        groups.setdefault(tuple(one.shape[1:]), []).append(one)
    means = [enlarge(torch.stack(group).mean(0), size) for group in groups.values()]
    return torch.stack(means).mean(0) if means else None


def _spreading(pixels: int, cells: int, like: Tensor) -> Tensor:
    """How much of each cell goes to each pixel of one axis, ``(pixels, cells)``; every column sums to one."""
    edges = torch.arange(pixels + 1, dtype=like.dtype, device=like.device)[:, None] * (cells / pixels)
    centres = torch.arange(cells, dtype=like.dtype, device=like.device) + 0.5
    u = edges - centres
    inside = u.clamp(-1, 1)
    # The integral of a cell's tent from its left end; the outermost cells are constant beyond their centres.
    integral = torch.where(inside < 0, (1 + inside).square() / 2, 1 - (1 - inside).square() / 2)
    integral[:, 0] = torch.where(u[:, 0] < 0, edges[:, 0], integral[:, 0])
    integral[:, -1] = torch.where(u[:, -1] > 0, u[:, -1] + 0.5, integral[:, -1])
    return integral.diff(dim=0)


# -- where rows and columns are ---------------------------------------------------------------------------------------


def _layouts(graph: Graph, operations: Sequence[Operation]) -> dict[str, Layout]:
    """The layout of each value that has one, followed from the image on."""
    image = graph.shapes.get(graph.input, ())
    layouts: dict[str, Layout] = {}
    if len(image) == 4 and image[2] and image[3]:
        layouts[graph.input] = Layout(2, 3, (image[2], image[3]))
    for operation in operations:
        shape = graph.shapes.get(operation.name, ())
        before = [(layouts[name], graph.shapes.get(name, ())) for name in operation.inputs if name in layouts]
        found = _after(operation, shape, before)
        if found is not None and min(found.grid) >= 1 and math.prod(found.grid) > 1:
            layouts[operation.name] = found
    return layouts


def _after(operation: Operation, shape: Shape, before: Sequence[tuple[Layout, Shape]]) -> Layout | None:
    """The layout of an operation's output, given those of its inputs that have one."""
    if operation.kind in _ONTO_MAPS:
        return _on_grid(shape, 2, 3) if len(shape) == 4 else None
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
        rows, columns = order.index(layout.rows), order.index(layout.columns)
        return replace(layout, rows=rows, columns=columns) if rows <= columns else None
    if operation.kind in _RESHAPES:
        return _reshaped(layout, given, shape)
    if len(shape) != len(given):
        return None
    if layout.rows != layout.columns:
        return _on_grid(shape, layout.rows, layout.columns)
    tokens, patches = shape[layout.rows], math.prod(layout.grid)
    if operation.kind in ("cat", "concat") and tokens != given[layout.rows] and _comes_first(operation):
        return None
    if tokens is None or not 0 <= tokens - patches <= min(_MOST_TOKENS, patches - 1):
        return None
    return replace(layout, extra=tokens - patches)


def _comes_first(operation: Operation) -> bool:
    """Whether a value of the image stands first in a concatenation, so that what is added stands behind it."""
    first = operation.args[0][0]
    return isinstance(first, Value) and first.name in operation.inputs


def _reshaped(layout: Layout, given: Shape, shape: Shape) -> Layout | None:
    """Rows and columns that become tokens, tokens that become rows and columns, or neither."""
    if given == shape:
        return layout
    at, patches = layout.rows, math.prod(layout.grid)
    if layout.columns == at + 1 and (*given[:at], patches, *given[at + 2 :]) == shape:
        return Layout(at, at, layout.grid)
    if layout.columns == at and not layout.extra and (*given[:at], *layout.grid, *given[at + 1 :]) == shape:
        return Layout(at, at + 1, layout.grid)
    return None


def _on_grid(shape: Shape, rows: int, columns: int) -> Layout | None:
    down, across = shape[rows], shape[columns]
    return None if down is None or across is None else Layout(rows, columns, (down, across))
