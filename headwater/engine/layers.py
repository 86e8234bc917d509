"""Operations as rules see them: what is linear in what, how to go forward, how to send shares back.

A layer is made once from an :class:`~headwater.engine.graph.Operation` and holds no weights. :func:`layer_for` says
which class stands for which ATen operation; :func:`register_layer` adds to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from headwater.engine.graph import ModuleCall, Operation, Value
from headwater.errors import UnsupportedOperationError

aten = torch.ops.aten
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
        return torch.addcmul(shift.view(channels), h, scale.view(channels), out=h)


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
        scale = self.argument(2, "alpha", 1) * (-1 if self.operation.kind == "sub" else 1)
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
        if self.operation.kind in ("cat", "concat", "stack"):
            return len(self.operation.args[0]) > len(self.operation.inputs)
        return self.operation.kind in ("pad", "constant_pad_nd", "slice_scatter", "select_scatter", "copy", "im2col")


class Product(Layer):
    """Product or quotient, element by element, of two values of the image: a gate and what passes it."""

    category = "product"


class MatrixProduct(Layer):
    """Matrix product of two values of the image, as in attention."""

    category = "matrix_product"


class Unknown(Layer):
    """An operation that nothing is registered for. It runs; relevance must not reach it, unless named a rule."""

    category = "unknown"

    def refuse(self) -> None:
        kind = self.operation.kind
        raise UnsupportedOperationError(
            f"operation {kind!r} in module {self.operation.module or '(the model itself)'!r} has no rule. "
            f"To add one: headwater.register_rule({kind!r}, headwater.engine.rules.Pass()) if relevance may pass it "
            "unchanged, or a rule of your own (docs/extending.md). docs/operations.md lists what has one."
        )


class Linear(Layer):
    """Base of everything linear in its input ``h``: ``z = apply(h, w)``, plus a bias that rules may count or not.

    ``transpose(s, w, like)`` is the adjoint of ``apply(., w)`` for inputs shaped as ``like``, in a new tensor.
    ``spread_remainder(r, w, like)`` hands each output's value, in equal parts, to those of the inputs it sees that lie
    at its own place; where an output has no place (dense layers, pooling), to all that it sees. So the sum stays.
    """

    category = "linear"

    @property
    def weight(self) -> Tensor | None:
        """The weight, or ``None`` where the weights are fixed and positive (averages)."""
        return self.lookup(self.operation.args[1])

    @property
    def bias(self) -> Tensor | None:
        return self.lookup(self.argument(2, "bias"))

    def apply(self, h: Tensor, w: Tensor | None, bias: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        raise NotImplementedError

    def spread_remainder(self, r: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        raise NotImplementedError


class Dense(Linear):
    """``aten.linear``: a matrix on the last dimension."""

    def apply(self, h: Tensor, w: Tensor | None, bias: Tensor | None = None) -> Tensor:
        assert w is not None
        return functional.linear(h, w, bias)

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        assert w is not None
        return s @ w

    def spread_remainder(self, r: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        return (r.sum(-1, keepdim=True) / like.shape[-1]).expand(like.shape)


class Convolution(Linear):
    """``aten.conv1d`` to ``conv3d``, any stride, dilation and groups, padding in numbers or by name."""

    def __init__(self, operation: Operation, lookup: Lookup) -> None:
        super().__init__(operation, lookup)
        self.dims = int(operation.kind[4])
        self.stride = _per_axis(self.argument(3, "stride", 1), self.dims)
        self.padding = self.argument(4, "padding", 0)
        self.dilation = _per_axis(self.argument(5, "dilation", 1), self.dims)
        self.groups: int = self.argument(6, "groups", 1)

    def apply(self, h: Tensor, w: Tensor | None, bias: Tensor | None = None) -> Tensor:
        assert w is not None
        return self._forward(h, w, bias, self.groups)

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        assert w is not None
        return self._backward(s, w, like, self.groups)

    def spread_remainder(self, r: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        assert w is not None
        # All input channels of a group get the same, so one channel per group is computed and repeated.
        groups, channels = self.groups, like.shape[1] // self.groups
        summed = r.unflatten(1, (groups, -1)).sum(2) if r.shape[1] != groups else r
        size, middle = w.shape[2:], self._middle(w)
        if r.shape[2:] == like.shape[2:] and all(part.stop - part.start == 1 for part in middle):
            share = summed / channels
        else:
            kernel = r.new_zeros((groups, 1, *size))
            kernel[(slice(None), slice(None), *middle)] = 1
            one = like.new_empty((1, groups, *like.shape[2:]))
            reach = self._forward(torch.ones_like(one), kernel, None, groups) * channels
            share = self._backward(summed / reach, kernel, one.expand(len(r), *one.shape[1:]), groups)
        return share.expand(like.shape) if groups == 1 else share.repeat_interleave(channels, 1)

    def _middle(self, w: Tensor) -> tuple[slice, ...]:
        """The taps of the kernel at an output's own place: as many as the stride, so that outputs share the image.

        Where padding is so wide that they could lie outside of the image, all taps.
        """
        middle, padding = [], self._padding(w)[0]
        for k, stride, dilation, pad in zip(w.shape[2:], self.stride, self.dilation, padding, strict=True):
            taps = min(k, stride)
            start = max((k - taps) // 2, -(-pad // dilation))
            inside = start + taps <= k and pad <= dilation * (k - 1 - start)
            middle.append(slice(start, start + taps) if inside else slice(0, k))
        return tuple(middle)

    def _padding(self, w: Tensor) -> tuple[list[int], list[int]]:
        """Padding on both sides of each axis, and what "same" puts on the far sides alone, as ``pad`` takes it."""
        if not isinstance(self.padding, str):
            return _per_axis(self.padding, self.dims), []
        if self.padding == "valid":
            return [0] * self.dims, []
        total = [d * (k - 1) for d, k in zip(self.dilation, w.shape[2:], strict=True)]
        return [t // 2 for t in total], [e for t in reversed(total) for e in (0, t % 2)]

    def _forward(self, h: Tensor, w: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        padding, far = self._padding(w)
        h = functional.pad(h, far) if any(far) else h
        return torch.convolution(h, w, bias, self.stride, padding, self.dilation, False, [0] * self.dims, groups)

    def _backward(self, s: Tensor, w: Tensor, like: Tensor, groups: int) -> Tensor:
        padding, far = self._padding(w)
        like = functional.pad(like, far) if any(far) else like
        back, _, _ = aten.convolution_backward(
            s, like, w, None, self.stride, padding, self.dilation, False, [0] * self.dims, groups, [True, False, False]
        )
        return functional.pad(back, [-e for e in far]) if any(far) else back


def _per_axis(value: int | Sequence[int], dims: int) -> list[int]:
    """A setting for each of ``dims`` axes, given once for all or for each."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


class TransposedConvolution(Linear):
    """``aten.conv_transpose1d`` to ``conv_transpose3d``, any stride, padding, dilation and groups."""

    def __init__(self, operation: Operation, lookup: Lookup) -> None:
        super().__init__(operation, lookup)
        dims = int(operation.kind[len("conv_transpose")])
        self.stride = _per_axis(self.argument(3, "stride", 1), dims)
        self.padding = _per_axis(self.argument(4, "padding", 0), dims)
        self.output_padding = _per_axis(self.argument(5, "output_padding", 0), dims)
        self.groups: int = self.argument(6, "groups", 1)
        self.dilation = _per_axis(self.argument(7, "dilation", 1), dims)

    def apply(self, h: Tensor, w: Tensor | None, bias: Tensor | None = None) -> Tensor:
        assert w is not None
        return torch.convolution(
            h, w, bias, self.stride, self.padding, self.dilation, True, self.output_padding, self.groups
        )

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        assert w is not None
        back, _, _ = aten.convolution_backward(
            *(s, like, w, None, self.stride, self.padding, self.dilation, True, self.output_padding, self.groups),
            [True, False, False],
        )
        return back

    def spread_remainder(self, r: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        assert w is not None
        ones = torch.ones_like(w)
        reach = self.apply(torch.ones_like(like[:1]), ones)
        seen = reach > 0  # stride beyond the kernel leaves outputs that no input reaches
        return self.transpose(torch.where(seen, r / reach.clamp(min=1), 0), ones, like)


class FixedMatrix(Linear):
    """A matrix product in which one factor is a parameter or constant."""

    def __init__(self, operation: Operation, lookup: Lookup) -> None:
        super().__init__(operation, lookup)
        self.factors = 1 if operation.kind in ("addmm", "baddbmm") else 0  # the first argument is a bias there
        given = operation.args[self.factors]
        self.first = isinstance(given, Value) and given.name in operation.inputs

    @property
    def weight(self) -> Tensor | None:
        return self.lookup(self.operation.args[self.factors + (1 if self.first else 0)])

    @property
    def bias(self) -> Tensor | None:
        return self.lookup(self.operation.args[0]) if self.factors else None

    def apply(self, h: Tensor, w: Tensor | None, bias: Tensor | None = None) -> Tensor:
        assert w is not None
        z = torch.matmul(h, w) if self.first else torch.matmul(w, h)
        return z if bias is None else z + bias

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        back, *_ = torch.func.vjp(lambda h: self.apply(h, w), like)[1](s)
        return back

    def spread_remainder(self, r: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        assert w is not None
        ones = torch.ones_like(w)
        return self.transpose(r / self.apply(torch.ones_like(like), ones), ones, like)


class Average(Linear):
    """Pooling, mean, sum, interpolation: fixed weights, none negative, that need no parameter."""

    category = "average"

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        back, *_ = torch.func.vjp(lambda h: self.apply(h, w), like)[1](s)
        return torch.empty_like(like).copy_(back)

    @property
    def weight(self) -> Tensor | None:
        return None

    @property
    def bias(self) -> Tensor | None:
        return None

    def apply(self, h: Tensor, w: Tensor | None, bias: Tensor | None = None) -> Tensor:
        return self.run([h])

    def spread_remainder(self, r: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        return self.transpose(r / self.apply(torch.ones_like(like), None), None, like)


class Bicubic(Average):
    """Bicubic interpolation. Some of its weights are negative, so relevance passes it as a bilinear one."""

    def __init__(self, operation: Operation, lookup: Lookup) -> None:
        super().__init__(operation, lookup)
        packet = getattr(aten, operation.kind.replace("bicubic", "bilinear"))
        target = getattr(packet, cast(torch._ops.OpOverload, operation.target)._overloadname)
        self.bilinear = Layer(replace(operation, target=target), lookup)

    def apply(self, h: Tensor, w: Tensor | None, bias: Tensor | None = None) -> Tensor:
        return self.bilinear.run([h])


class AveragePool(Average):
    """``aten.avg_pool2d``."""

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        kernel = self.operation.args[1]
        stride = self.argument(2, "stride") or kernel
        rest = (self.argument(3, "padding", 0), self.argument(4, "ceil_mode", False))
        counting = (self.argument(5, "count_include_pad", True), self.argument(6, "divisor_override"))
        pair = lambda v: [v, v] if isinstance(v, int) else list(v)  # noqa: E731
        return aten.avg_pool2d_backward(s, like, pair(kernel), pair(stride), pair(rest[0]), rest[1], *counting)


class AdaptiveAveragePool(Average):
    """``aten.adaptive_avg_pool2d``; global average pooling is its usual case."""

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        if s.shape[-2:] == (1, 1):
            return torch.empty_like(like).copy_(s / (like.shape[-2] * like.shape[-1]))
        return aten._adaptive_avg_pool2d_backward(s, like)


class Mean(Average):
    """``aten.mean`` over dimensions other than the batch."""

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        given = self.argument(1, "dim")
        dims = sorted(d % like.ndim for d in ([given] if isinstance(given, int) else given))
        if not self.argument(2, "keepdim", False):
            for d in dims:
                s = s.unsqueeze(d)
        count = 1
        for d in dims:
            count *= like.shape[d]
        return torch.empty_like(like).copy_(s / count)


LayerFactory = Callable[[Operation, Lookup], Layer]
_LAYERS: dict[str, LayerFactory] = {}
_CHANGES: list[str] = []  # kinds in the order of their registrations


def register_layer(factory: LayerFactory, *kinds: str) -> None:
    """Let ``factory(operation, lookup)`` stand for ATen operations of these names (``"conv2d"``, ``"relu"``, ...)."""
    for kind in kinds:
        _LAYERS[kind] = factory
        _CHANGES.append(kind)


def layer_version() -> int:
    """Differs from before once a layer was registered."""
    return len(_CHANGES)


def joins_branches(kind: str) -> bool:
    """Whether operations of this ATen name are additions or subtractions, where branches may join."""
    factory = _LAYERS.get(kind)
    return isinstance(factory, type) and issubclass(factory, Join)


def is_registered(kind: str) -> bool:
    """Whether a layer stands for operations of this ATen name."""
    return kind in _LAYERS


def layer_for(operation: Operation, lookup: Lookup) -> Layer:
    """The layer that stands for ``operation``; :class:`Unknown` if nothing is registered for its kind."""
    layer = _LAYERS.get(operation.kind, Unknown)(operation, lookup)
    one = isinstance(layer, (Linear, Elementwise, MaxPool))
    # Two values of the image, as in a convolution whose kernel the image makes: not what these classes stand for.
    return Unknown(operation, lookup) if one and len(operation.inputs) != 1 else layer


def _product(operation: Operation, lookup: Lookup) -> Layer:
    """A product with a constant is as elementwise as a normalisation; dividing by the image is not."""
    if len(operation.inputs) > 1:
        return Product(operation, lookup)
    first = operation.args[0]
    divides = operation.kind == "div" and not (isinstance(first, Value) and first.name in operation.inputs)
    return (Unknown if divides else Elementwise)(operation, lookup)


def _matrix_product(operation: Operation, lookup: Lookup) -> Layer:
    return (MatrixProduct if len(operation.inputs) > 1 else FixedMatrix)(operation, lookup)


def _einsum(operation: Operation, lookup: Lookup) -> Layer:
    return (MatrixProduct if len(operation.inputs) == 2 else Unknown)(operation, lookup)


def _mean(operation: Operation, lookup: Lookup) -> Layer:
    """Over named dimensions; a mean over everything would mix the images."""
    return (Mean if len(operation.args) > 1 or "dim" in operation.kwargs else Unknown)(operation, lookup)


def _maximum(operation: Operation, lookup: Lookup) -> Layer:
    """Of several values, or over named dimensions; one over everything would mix the images."""
    named = len(operation.args) > 1 or "dim" in operation.kwargs
    return (MaxSelect if named else Unknown)(operation, lookup)


def _sum(operation: Operation, lookup: Lookup) -> Layer:
    return (Average if len(operation.args) > 1 or "dim" in operation.kwargs else Unknown)(operation, lookup)


register_layer(Dense, "linear")
register_layer(Convolution, "conv1d", "conv2d", "conv3d")
register_layer(TransposedConvolution, "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
register_layer(_matrix_product, "matmul", "mm", "bmm", "addmm", "baddbmm")
register_layer(_einsum, "einsum")
register_layer(AveragePool, "avg_pool2d")
register_layer(AdaptiveAveragePool, "adaptive_avg_pool2d")
register_layer(_mean, "mean")
register_layer(_sum, "sum")
register_layer(
    Average,
    *("avg_pool1d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "col2im"),
)
register_layer(Bicubic, "upsample_bicubic2d", "_upsample_bicubic2d_aa")
register_layer(MaxPool, "max_pool2d")
register_layer(
    MaxSelect,
    *("max_pool1d", "max_pool3d", "max_pool2d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d"),
)
register_layer(_maximum, "amax", "max", "maximum")
register_layer(Join, "add", "sub")
register_layer(_product, "mul", "div")
register_layer(Activation, "relu")
register_layer(BatchNorm, "batch_norm")
register_layer(
    Elementwise,
    *("relu6", "hardtanh", "leaky_relu", "prelu", "elu", "celu", "selu", "silu", "hardswish", "gelu", "mish", "tanh"),
    *("square", "abs", "exp", "log", "log1p", "rsqrt", "sin", "cos", "softshrink", "threshold", "log_softmax"),
    *("softplus", "softsign", "sigmoid", "hardsigmoid", "log_sigmoid", "clamp", "clamp_min", "clamp_max", "hardshrink"),
    *("layer_norm", "group_norm", "instance_norm", "rms_norm", "native_layer_norm", "native_group_norm"),
    *("_native_batch_norm_legit_no_training", "softmax", "_softmax", "neg", "pow", "sqrt", "addcmul"),
    *("dropout", "feature_dropout", "alpha_dropout", "detach", "clone", "contiguous", "to", "_to_copy", "alias"),
    *("lift_fresh_copy", "type_as"),
)
register_layer(
    Rearrange,
    *("flatten", "view", "reshape", "_unsafe_view", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t"),
    *("expand", "expand_as", "repeat", "roll", "flip", "movedim", "swapaxes", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "slice", "select", "narrow", "index", "chunk", "split", "split_with_sizes", "unbind"),
    *("cat", "concat", "stack", "pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "numpy_T"),
    *("mT", "adjoint", "matrix_H", "index_select"),
    *("slice_scatter", "select_scatter", "unfold", "im2col", "view_as", "reshape_as", "tensor_split", "hsplit", "copy"),
)
