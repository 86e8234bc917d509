"""Operations as rules see them; those that are linear in the image's values are in ``linear_layers``.

A layer is made once from an :class:`~headwater.engine.graph.Operation` and holds no weights. Which class stands for
which ATen operation is said in :mod:`headwater.engine.layer_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headwater.engine.graph import Constant, ModuleCall, Operation, Value
from headwater.engine.guards.modes import spare
from headwater.errors import UnsupportedOperationError

Lookup = Callable[[Any], Any]
"""Turns an argument of an operation (a value, a weight, a constant, a number) into what it stands for in this call."""


class Layer:
    """One operation. ``category`` is what composites assign rules by, besides the operation's own ATen name."""

    category = "other"

    def __init__(self, operation: Operation, lookup: Lookup) -> None:
        self.operation = operation
        self.lookup = lookup

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        """The operation itself, its image-dependent tensors replaced by ``inputs`` in order."""
        given, names = iter(inputs), set(self.operation.inputs)

        def value(leaf: Any) -> Any:
            return next(given) if isinstance(leaf, Value) and leaf.name in names else self.lookup(leaf)

        args, kwargs = self.operation.bind(value)
        return self.operation.target(*args, **kwargs)

    def refuse(self) -> None:
        """Raise an error if relevance cannot pass this operation by a rule for its category.

        Raises:
            UnsupportedOperationError: nothing is registered for this kind of operation.
        """

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name, as it stands in the operation."""
        args, kwargs = self.operation.args, self.operation.kwargs
        return args[position] if len(args) > position else kwargs.get(name, default)


class Elementwise(Layer):
    """Activation, normalisation, dropout: one output element for each input element, in the same place."""

    category = "elementwise"


class Activation(Elementwise):
    """A ReLU, which may be run in place where nothing else needs its input."""

    def run_inplace(self, h: Tensor) -> Tensor:
        return torch.relu_(h)


class BatchNorm(Elementwise):
    """Batch normalisation by stored statistics: a scale and a shift of each channel."""

    def __init__(self, operation: Operation, lookup: Lookup) -> None:
        super().__init__(operation, lookup)
        if self.argument(5, "training"):
            raise UnsupportedOperationError(
                f"batch normalisation {operation.module!r} keeps no running statistics, so images in a batch change "
                "each other's results; give it track_running_stats=True"
            )

    def run_inplace(self, h: Tensor) -> Tensor:
        gain, offset, mean, variance = (self.lookup(leaf) for leaf in self.operation.args[1:5])
        scale = torch.rsqrt(variance + self.argument(7, "eps"))
        scale = scale if gain is None else scale * gain
        shift = -mean * scale if offset is None else offset - mean * scale
        channels = (-1, *[1] * (h.ndim - 2))
        return torch.addcmul(shift.view(channels), h, scale.view(channels), out=spare(h))


class Block(Layer):
    """All operations of one module call taken as one layer, for block-level rules such as ``Gradient``."""

    category = "block"

    def __init__(
        self, operations: Sequence[Operation], inputs: tuple[str, ...], lookup: Lookup, call: ModuleCall
    ) -> None:
        super().__init__(replace(operations[-1], inputs=inputs), lookup)
        self.operations = operations
        self.call = call

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        values = dict(zip(self.operation.inputs, inputs, strict=True))

        def value(leaf: Any) -> Any:
            return values[leaf.name] if isinstance(leaf, Value) and leaf.name in values else self.lookup(leaf)

        for operation in self.operations:
            args, kwargs = operation.bind(value)
            values[operation.name] = operation.target(*args, **kwargs)
        return values[self.operation.name]


class Join(Layer):
    """Addition or subtraction of branches; constants added to an image's values are no branch."""

    category = "join"

    def terms(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What each branch adds to the sum."""
        scale = self.argument(2, "alpha", 1) * (-1 if self.operation.kind in ("sub", "subtract") else 1)
        if self.operation.kind == "rsub":  # the second less the first
            return [inputs[0] * -scale, *inputs[1:]]
        second = isinstance(self.operation.args[1], Value) and self.operation.args[1].name in self.operation.inputs
        return [h * scale if scale != 1 and second and k == len(inputs) - 1 else h for k, h in enumerate(inputs)]


class MaxPool(Layer):
    """``aten.max_pool2d``."""

    category = "max_pool"

    @property
    def settings(self) -> tuple[Any, ...]:
        """Kernel, stride, padding, dilation, ceil mode."""
        kernel = self.operation.args[1]
        return (
            kernel,
            self.argument(2, "stride") or kernel,
            self.argument(3, "padding", 0),
            self.argument(4, "dilation", 1),
            self.argument(5, "ceil_mode", False),
        )


class MaxSelect(Layer):
    """Any other maximum, over a window, a dimension or several values: its derivative is one at the largest."""

    category = "max_pool"


class Rearrange(Layer):
    """View, permute, slice, concatenate, pad: every output element is one input element, or a constant."""

    category = "rearrange"

    @property
    def has_constants(self) -> bool:
        """Whether outputs may be no input's: padding, a class token put in front, parts that are written over."""
        if self.operation.kind in ("cat", "concat", "concatenate", "stack"):
            return len(self.operation.args[0]) > len(self.operation.inputs)
        if self.operation.kind == "where":
            return len(self.operation.inputs) == 1
        return self.operation.kind in _WITH_CONSTANTS


_WITH_CONSTANTS = frozenset(
    (
        *("pad", "constant_pad_nd", "slice_scatter", "select_scatter", "copy", "im2col", "masked_fill", "tril", "triu"),
        *("scatter", "index_put", "index_copy"),
    )
)


class Product(Layer):
    """Product or quotient, element by element, of two values of the image: a gate and what passes it."""

    category = "product"


class MatrixProduct(Layer):
    """Matrix product of two values of the image, as in attention."""

    category = "matrix_product"


class TokenPath(Rearrange):
    """What is done with token ids: an embedding, or what computes ids or positions from them before it."""

    category = "tokens"

    def run_on_floats(self, inputs: Sequence[Tensor]) -> Tensor:
        """The operation with floating-point numbers for all whole ones, to send relevance back through it."""
        dtype = inputs[0].dtype

        def floating(leaf: Any) -> Any:
            bound = self.lookup(leaf)
            is_data = isinstance(leaf, (Value, Constant)) and isinstance(bound, Tensor) and bound.dtype != torch.bool
            return bound.to(dtype) if is_data else bound

        return Layer(self.operation, floating).run(inputs)


class Beside(Layer):
    """What only chooses or masks other values, such as the indices of the largest; no relevance reaches it."""

    category = "beside"


class Unknown(Layer):
    """An operation that nothing is registered for. It runs; relevance must not reach it, unless named a rule."""

    category = "unknown"

    def refuse(self) -> None:
        kind = self.operation.kind
        raise UnsupportedOperationError(
            f"operation {kind!r} in module {self.operation.module or '(the model itself)'!r} has no rule. "
            f"To add one: headwater.register_rule({kind!r}, headwater.rules.Pass()) if relevance may pass it "
            "unchanged, or a rule of your own (docs/extending.md). docs/operations.md lists what has one."
        )
