"""Operations that are linear in the image's values: how to go forward, and how to send shares back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from headwater.engine import packing
from headwater.engine.graph import Operation, Value
from headwater.engine.layers import Layer, Lookup
from headwater.engine.phases import Geometry

aten = torch.ops.aten


class Linear(Layer):
    """Base of everything that is linear in its input: ``z = apply(h, w)``, plus a bias that a rule may count or not.

    In the following ``h`` has the shape of the layer's input, ``z``, ``s`` and ``r`` have that of its output, and ``w``
    that of its weight; where the weights are fixed (averages), ``w`` is ``None``.
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
        """The operation with ``w`` in place of its weight."""
        raise NotImplementedError

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        """The adjoint of ``apply(., w)``, shaped as the input ``like``, in a new tensor."""
        raise NotImplementedError

    def spread_remainder(self, r: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        """Each output's value in equal parts on the inputs at the output's own position, shaped as ``like``.

        Those are all channels of its group, and as many pixels as the stride has; where an output has no position
        (dense layers, averages), all inputs that it sees. The sum over an image stays what it was. Of ``w`` only the
        shape counts.
        """
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
        self._images_alone = [getattr(operation.args[0], "name", None)] == list(operation.inputs)

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        if self._images_alone and not isinstance(self.padding, str):  # the same, with packed weights where that pays
            return self.apply(inputs[0], self.weight, self.bias)
        return super().run(inputs)

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
            share = self._backward(summed / reach, kernel, one.expand(r.shape[0], *one.shape[1:]), groups)
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
        return packing.convolution(h, w, bias, Geometry(self.stride, padding, self.dilation, groups))

    def _backward(self, s: Tensor, w: Tensor, like: Tensor, groups: int) -> Tensor:
        padding, far = self._padding(w)
        like = functional.pad(like, far) if any(far) else like
        geometry = Geometry(self.stride, padding, self.dilation, groups)
        back = packing.adjoint(s, w, like, geometry)
        return functional.pad(back, [-e for e in far]) if any(far) else back


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


class FixedEinsum(Linear):
    """An Einstein sum of a value and a parameter or constant."""

    def __init__(self, operation: Operation, lookup: Lookup) -> None:
        super().__init__(operation, lookup)
        self.equation, operands = operation.args[0], operation.args[1]
        self.first = isinstance(operands[0], Value) and operands[0].name in operation.inputs

    @property
    def weight(self) -> Tensor | None:
        return self.lookup(self.operation.args[1][1 if self.first else 0])

    @property
    def bias(self) -> Tensor | None:
        return None

    def apply(self, h: Tensor, w: Tensor | None, bias: Tensor | None = None) -> Tensor:
        assert w is not None
        return torch.einsum(self.equation, *((h, w) if self.first else (w, h)))

    def transpose(self, s: Tensor, w: Tensor | None, like: Tensor) -> Tensor:
        back, *_ = torch.func.vjp(lambda h: self.apply(h, w), like)[1](s)
        return torch.empty_like(like).copy_(back)

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
        sizes = [_per_axis(setting, 2) for setting in (kernel, stride, rest[0])]
        return aten.avg_pool2d_backward(s, like, *sizes, rest[1], *counting)


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


def _per_axis(value: int | Sequence[int], dims: int) -> list[int]:
    """A setting for each of ``dims`` axes, given once for all or for each."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values
