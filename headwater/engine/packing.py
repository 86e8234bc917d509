"""Convolutions whose weights oneDNN has laid out before: the same results to the last bit, in less time.

At each call oneDNN lays out a weight as its kernel reads it. Where a convolution computes few pixels, that takes up to
40 % of its time (ResNet-50, one image, the stage of 7 x 7). So layouts of weights that are kept anyway are kept too,
each for the latest shape of what it was applied to. A layout takes as much memory as the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_MOST_PIXELS = 1024
"""Outputs per channel, of all images together, up to which layouts are kept: beyond, they save less than 6 %."""
_FEWEST_WEIGHTS = 2**14
_FEWEST_INPUTS = 20480  # of one image; below, torch computes without oneDNN

aten, mkldnn = torch.ops.aten, torch.ops.mkldnn


@dataclass
class _Layouts:
    """A weight's latest layout of each kind, with what it was made for."""

    kept: dict[Callable[..., Tensor], tuple[Any, Tensor]] = field(default_factory=dict)

    def get(self, make: Callable[..., Tensor], w: Tensor, *settings: Any) -> Tensor:
        made_for, layout = self.kept.get(make, (None, w))
        if made_for != settings:
            layout = make(w, *settings)
            self.kept[make] = settings, layout
        return layout


_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_as_operations: ContextVar[bool] = ContextVar("as_operations", default=False)


def keep(w: Tensor) -> None:
    """Keep layouts of this weight as long as the tensor lives. Nothing may write to it meanwhile."""
    if _fits(w) and w not in _kept:
        _kept[w] = _Layouts()


def _fits(w: Tensor) -> bool:
    return w.ndim == 4 and w.device.type == "cpu" and w.dtype == torch.float32 and w.numel() >= _FEWEST_WEIGHTS


@contextmanager
def as_operations() -> Iterator[None]:
    """Record what is traced meanwhile as operations that find kept layouts when the trace is run."""
    token = _as_operations.set(True)
    try:
        yield
    finally:
        _as_operations.reset(token)


def convolution(
    h: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution of any dimension, by a kept layout of its weight where there is one and it pays."""
    if _as_operations.get() and _fits(w):
        return _recorded_convolution(h, w, bias, stride, padding, dilation, groups)
    return _convolution(h, w, bias, stride, padding, dilation, groups)


def adjoint(
    s: Tensor,
    w: Tensor,
    like: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The adjoint of :func:`convolution`: from outputs to inputs shaped as ``like``."""
    if _as_operations.get() and _fits(w):
        return _recorded_adjoint(s, w, like, stride, padding, dilation, groups)
    return _adjoint(s, w, like, stride, padding, dilation, groups)


def _convolution(
    h: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    layouts = _kept.get(w)
    if layouts is None or not _pays(h, (h.shape[2] // stride[0]) * (h.shape[3] // stride[1])):
        return torch.convolution(h, w, bias, stride, padding, dilation, False, [0] * (h.ndim - 2), groups)
    make = mkldnn._reorder_convolution_weight.default
    layout = layouts.get(make, w, padding, stride, dilation, groups, h.shape)
    return mkldnn._convolution_pointwise.default(h, layout, bias, padding, stride, dilation, groups, "none", [], "")


def _adjoint(
    s: Tensor,
    w: Tensor,
    like: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    layouts = _kept.get(w)
    if layouts is None or not _pays(s, s.shape[2] * s.shape[3]):
        back, _, _ = aten.convolution_backward(
            s, like, w, None, stride, padding, dilation, False, [0] * (s.ndim - 2), groups, [True, False, False]
        )
        return back
    beyond = [  # what the outputs do not reach
        n - ((m - 1) * step - 2 * pad + reach * (k - 1) + 1)
        for n, m, k, step, pad, reach in zip(
            like.shape[2:], s.shape[2:], w.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    make = mkldnn._reorder_convolution_transpose_weight.default
    layout = layouts.get(make, w, padding, beyond, stride, dilation, groups, s.shape)
    apply = mkldnn._convolution_transpose_pointwise.default
    return apply(s, layout, None, padding, beyond, stride, dilation, groups, "none", [], "")


def _pays(h: Tensor, pixels: int) -> bool:
    """Whether oneDNN would compute this, and soon be done; nothing may be watching or differentiating."""
    return (
        len(h) * pixels <= _MOST_PIXELS
        and (len(h) > 1 or h.numel() > _FEWEST_INPUTS)
        and h.dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not (h.requires_grad and torch.is_grad_enabled())
    )


@torch.library.custom_op("headwater::convolution", mutates_args=())
def _recorded_convolution(
    h: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    z = _convolution(h, w, bias, stride, padding, dilation, groups)
    return z.contiguous(memory_format=torch.channels_last)


@_recorded_convolution.register_fake
def _(h, w, bias, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    z = torch.convolution(h, w, bias, stride, padding, dilation, False, [0, 0], groups)
    return torch.empty_like(z, memory_format=torch.channels_last)


@torch.library.custom_op("headwater::adjoint", mutates_args=())
def _recorded_adjoint(
    s: Tensor,
    w: Tensor,
    like: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    back = _adjoint(s, w, like, stride, padding, dilation, groups)
    return back.contiguous(memory_format=torch.channels_last)


@_recorded_adjoint.register_fake
def _(s, w, like, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
    return torch.empty_like(like, memory_format=torch.channels_last)
