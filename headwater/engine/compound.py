"""Operations of torch that are several at once, as the simpler ones that rules are for.

Attention is two matrix products and a softmax; an LSTM or GRU is its linear maps, gates and sums, one time step after
the other; a gated unit is a product; a cosine similarity is a product, a sum and a division by the two norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from headwater.engine.graph import Pick, Shape, Value
from headwater.errors import UnsupportedOperationError

aten = torch.ops.aten


class Writer(Protocol):
    """Adds an operation to the list: its target, arguments and the shape of its result."""

    def __call__(self, target: Callable[..., Any], *args: Any, shape: Shape) -> Value: ...


def attention(
    write: Writer,
    given: Sequence[Any],
    options: dict[str, Any],
    shapes: tuple[Shape, Shape, Shape],
    dtype: torch.dtype,
    bool_mask: bool,
) -> Value:
    """``scaled_dot_product_attention`` of queries ``(..., L, D)``, keys ``(..., S, D)`` and values ``(..., S, E)``.

    Args:
        write: adds an operation.
        given: its positional arguments.
        options: its keyword arguments.
        shapes: of queries, keys and values.
        dtype: of the queries.
        bool_mask: the mask says where to look, instead of what to add to the scores.
    """
    query, key, values, *rest = given
    mask = rest[0] if rest else options.get("attn_mask")
    causal = options.get("is_causal") or (len(rest) > 2 and rest[2])
    of_queries, of_keys, of_values = shapes
    if options.get("enable_gqa") and of_queries[-3] != of_keys[-3]:
        heads, groups = of_queries[-3], of_keys[-3]
        assert heads is not None and groups is not None
        key, of_keys = _repeated(write, key, of_keys, heads // groups)
        values, of_values = _repeated(write, values, of_values, heads // groups)
    scale = options.get("scale") or (of_queries[-1] or 1) ** -0.5
    of_scores = (*of_queries[:-1], of_keys[-2])
    turned = write(aten.transpose.int, key, -2, -1, shape=(*of_keys[:-2], of_keys[-1], of_keys[-2]))
    scaled = write(aten.mul.Tensor, query, scale, shape=of_queries)
    scores = write(aten.matmul.default, scaled, turned, shape=of_scores)
    if mask is not None:
        if bool_mask:
            mask = write(additive_mask, mask, dtype, shape=())
        scores = write(aten.add.Tensor, scores, mask, shape=of_scores)
    if causal:
        scores = write(causal_scores, scores, shape=of_scores)
    # With a mask, a query may look nowhere: its weights are 0 then.
    softmax = (aten.softmax.int if mask is None else aten._safe_softmax.default, scores, -1)
    weights = write(*softmax, shape=of_scores)
    return write(aten.matmul.default, weights, values, shape=(*of_queries[:-1], of_values[-1]))


def _repeated(write: Writer, value: Value, shape: Shape, times: int) -> tuple[Value, Shape]:
    """Keys or values of one group of heads for each head of it."""
    wide = (*shape[:-2], times, *shape[-2:])
    heads = (*shape[:-3], (shape[-3] or 1) * times, *shape[-2:])
    between = write(aten.unsqueeze.default, value, -3, shape=(*shape[:-2], 1, *shape[-2:]))
    spread = write(aten.expand.default, between, [*[-1] * (len(wide) - 3), times, -1, -1], shape=wide)
    return write(aten.flatten.using_ints, spread, -4, -3, shape=heads), heads


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores for a boolean mask: 0 where it is true, minus infinity elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def causal_scores(scores: Tensor) -> Tensor:
    """Attention's scores without those of later keys, which become minus infinity."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf)


def recurrent(write: Writer, kind: str, given: Sequence[Any], shape: Shape, sizes: Callable[[Any], Shape]) -> list[Any]:
    """An LSTM or GRU over a sequence, every time step written out.

    Relevance then goes by the rules of its parts: linear maps and sums as everywhere, and at a product with a gate all
    of it to what passes the gate (Arras et al. 2017).

    Args:
        write: adds an operation.
        kind: ``"lstm"`` or ``"gru"``.
        given: ATen's arguments: the input, the initial state, the parameters, has_biases, num_layers, dropout, train,
            bidirectional, batch_first.
        shape: of the input.
        sizes: gives the shape of a parameter.

    Returns:
        The output at all time steps, the last hidden state and, of an LSTM, the last cell state.

    Raises:
        UnsupportedOperationError: the sequence is packed, has a length that is not known, or the LSTM has projections.
    """
    if isinstance(given[3], (list, tuple)) or len(given) < 9:
        raise UnsupportedOperationError(f"operation {kind!r} takes a packed sequence; give it a padded one instead")
    sequence, state, parameters, biases, layers, _, _, both, batch_first = given[:9]
    per_cell = 4 if biases else 2
    axis = 1 if batch_first else 0
    steps = shape[axis]
    if steps is None or len(shape) != 3:
        raise UnsupportedOperationError(f"operation {kind!r} needs a sequence (N, T, F) or (T, N, F) of known length")
    if len(parameters) != layers * (2 if both else 1) * per_cell:
        raise UnsupportedOperationError(f"operation {kind!r} with projections is not supported")
    batch = shape[1 - axis]
    initial = state if kind == "lstm" else [state]
    last: list[list[Any]] = [[] for _ in initial]
    for layer in range(layers):
        directions = []
        for backwards in (False, True)[: 2 if both else 1]:
            cell = layer * (2 if both else 1) + backwards
            weights = parameters[cell * per_cell : (cell + 1) * per_cell]
            width = sizes(weights[1])[1]
            of_state = (batch, width)
            many = sizes(weights[0])[0]
            spread = (*shape[:2], many)
            drawn = write(aten.linear.default, sequence, weights[0], weights[2] if biases else None, shape=spread)
            states = [write(aten.select.int, part, 0, cell, shape=of_state) for part in initial]
            outputs: list[Any] = []
            for step in reversed(range(steps)) if backwards else range(steps):
                x = write(aten.select.int, drawn, axis, step, shape=(batch, many))
                bias = weights[3] if biases else None
                h = write(aten.linear.default, states[0], weights[1], bias, shape=(batch, many))
                states = (_lstm_step if kind == "lstm" else _gru_step)(write, x, h, states, of_state)
                outputs.append(states[0])
            ordered = outputs[::-1] if backwards else outputs
            directions.append(write(aten.stack.default, ordered, axis, shape=(*shape[:2], width)))
            for kept, part in zip(last, states, strict=True):
                kept.append(part)
        sequence = directions[0]
        if both:
            width = 2 * (width or 0)
            sequence = write(aten.cat.default, directions, 2, shape=(*shape[:2], width))
        shape = (*shape[:2], width)
    cells = layers * (2 if both else 1)
    return [sequence, *(write(aten.stack.default, part, 0, shape=(cells, *of_state)) for part in last)]


def _lstm_step(write: Writer, x: Value, h: Value, states: Sequence[Any], shape: Shape) -> list[Any]:
    batch, width = shape
    gates = write(aten.add.Tensor, x, h, shape=(batch, 4 * (width or 0)))
    parts = [write(Pick(aten.chunk.default, k), gates, 4, 1, shape=shape) for k in range(4)]
    enter, forget, leave = (write(aten.sigmoid.default, parts[k], shape=shape) for k in (0, 1, 3))
    new = write(aten.mul.Tensor, enter, write(aten.tanh.default, parts[2], shape=shape), shape=shape)
    old = write(aten.mul.Tensor, forget, states[1], shape=shape)
    cell = write(aten.add.Tensor, old, new, shape=shape)
    hidden = write(aten.mul.Tensor, leave, write(aten.tanh.default, cell, shape=shape), shape=shape)
    return [hidden, cell]


def _gru_step(write: Writer, x: Value, h: Value, states: Sequence[Any], shape: Shape) -> list[Any]:
    given, kept = ([write(Pick(aten.chunk.default, k), part, 3, 1, shape=shape) for k in range(3)] for part in (x, h))
    reset, update = (
        write(aten.sigmoid.default, write(aten.add.Tensor, given[k], kept[k], shape=shape), shape=shape) for k in (0, 1)
    )
    recalled = write(aten.mul.Tensor, reset, kept[2], shape=shape)
    new = write(aten.tanh.default, write(aten.add.Tensor, given[2], recalled, shape=shape), shape=shape)
    fresh = write(aten.mul.Tensor, write(aten.rsub.Scalar, update, 1, shape=shape), new, shape=shape)
    old = write(aten.mul.Tensor, update, states[0], shape=shape)
    return [write(aten.add.Tensor, fresh, old, shape=shape)]


def added_product(write: Writer, given: Sequence[Any], options: dict[str, Any], shape: Shape) -> Value:
    """``baddbmm``: the product of two batches of matrices, scaled, and what is added to it."""
    added, one, other = given[:3]
    product = write(aten.bmm.default, one, other, shape=shape)
    scaled = write(aten.mul.Tensor, product, options.get("alpha", 1), shape=shape)
    addend = write(aten.mul.Tensor, added, options.get("beta", 1), shape=shape)
    return write(aten.add.Tensor, scaled, addend, shape=shape)


def gated(write: Writer, value: Any, dim: int, shape: Shape) -> Value:
    """``glu``: the first half of a dimension, gated by the sigmoid of the second."""
    features, gate = (write(Pick(aten.chunk.default, k), value, 2, dim, shape=shape) for k in range(2))
    return write(aten.mul.Tensor, features, write(aten.sigmoid.default, gate, shape=shape), shape=shape)


def cosine_similarity(write: Writer, one: Any, other: Any, dim: int, eps: float, shapes: tuple[Shape, Shape]) -> Value:
    r""":math:`\sum_k a_k b_k / (\max(|a|, \epsilon) \max(|b|, \epsilon))` along a dimension.

    Relevance goes to the products; the norms scale them and get none.
    """
    rank = max(map(len, shapes))
    first, second = (tuple([1] * (rank - len(shape))) + shape for shape in shapes)
    whole: Shape = tuple(b if a == 1 else a for a, b in zip(first, second, strict=True))
    axis = dim % rank
    reduced = whole[:axis] + whole[axis + 1 :]
    unit = []
    for value, shape in ((one, first), (other, second)):
        small = (*shape[:axis], 1, *shape[axis + 1 :])
        norm = write(aten.linalg_vector_norm.default, value, 2, [axis - rank], True, shape=small)
        norm = write(aten.clamp_min.default, norm, eps, shape=small)
        unit.append(write(aten.div.Tensor, value, norm, shape=shape))
    product = write(aten.mul.Tensor, *unit, shape=whole)
    return write(aten.sum.dim_IntList, product, [axis - rank], shape=reduced)
