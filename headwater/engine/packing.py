"""Convolutions whose weights are packed once for many calls, where that saves time.

oneDNN packs a weight, into the order in which its kernel reads it, at every call. Where a convolution has few pixels to
compute, that takes up to 40 % of its time (ResNet-50, one image, the stage of 7 x 7; ``python -m benchmarks.ideas``).
Here the packed weight is kept, for the latest shape of the input; it takes as much memory as the weight. A weight that
is not to be cached is packed for the one call, so that caching changes no result. For one small image torch would not
take oneDNN at all, and be slower (ResNet-18 at 64 x 64: the sweep took 1.35 times as long); values then differ from the
network's own by rounding.

Adjoints of strided convolutions to few channels go by :mod:`headwater.engine.phases`. Both directions are also
operations of torch, ``headwater::convolution`` and ``headwater::adjoint``, which a compiled sweep calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from headwater.engine import phases
from headwater.engine.guards.modes import observed, transformed
from headwater.engine.phases import Geometry

_MOST_PIXELS = 256
"""Pixels of the output, of all images together, up to which a weight is packed here; more are not worth the memory."""
_MOST_PIXELS_CHEAP, _CHEAP = 1024, 2**18
"""The same for weights of at most 1 MB."""
_FEWEST_WEIGHTS = 2**14
"""Smaller weights are packed in no time."""
_ATEN, _ONEDNN = torch.ops.aten, torch.ops.mkldnn
_AVAILABLE = torch.backends.mkldnn.is_available() and all(
    hasattr(_ONEDNN, name)
    for name in (
        "_reorder_convolution_weight",
        "_convolution_pointwise",
        "_reorder_convolution_transpose_weight",
        "_convolution_transpose_pointwise",
    )
)
"""These operations are torch's own means for compiled networks, and promised to nobody."""


Packed = dict[str, tuple[Any, Tensor]]
"""A weight packed for each direction, with what it was packed for."""
_cached: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_recording: ContextVar[bool] = ContextVar("recording", default=False)


def cache(w: Tensor) -> None:
    """Keep this weight packed for as long as the tensor lives. Its values must not change."""
    if _fits(w) and not observed() and w not in _cached:
        _cached[w] = Packed()


def free(w: Tensor) -> None:
    """Forget what was packed of this weight, as when the number of images changes."""
    if w in _cached:
        _cached[w].clear()


@contextmanager
def recording() -> Iterator[None]:
    """Have what is traced meanwhile call this module when it is run."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)


def convolution(h: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A convolution of any dimension."""
    if _records() and _may_pay(w, h, geometry):
        return torch.ops.headwater.convolution(h, w, bias, *geometry)
    return _convolution(h, w, bias, geometry)


def adjoint(s: Tensor, w: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
    """The adjoint of :func:`convolution`, from outputs ``s`` to inputs like ``like``, by phases where that pays."""
    if _records() and (phases.pays(w, geometry) or _may_pay(w, like, geometry)):
        return torch.ops.headwater.adjoint(s, w, like, *geometry)
    return _adjoint(s, w, like, geometry)


def _convolution(h: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    if not _pays(w, h, geometry):
        return torch.convolution(h, w, bias, stride, padding, dilation, False, [0] * (h.ndim - 2), groups)
    packed = _packed(w, "forward", padding, stride, dilation, groups, h.shape)
    return _ONEDNN._convolution_pointwise(h, packed, bias, padding, stride, dilation, groups, "none", [], "")


def _adjoint(s: Tensor, w: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
    if phases.pays(w, geometry) and not observed():
        return phases.adjoint(s, w, like, geometry)
    stride, padding, dilation, groups = geometry
    if not _pays(w, like, geometry):
        back, _, _ = _ATEN.convolution_backward(
            s, like, w, None, stride, padding, dilation, False, [0] * (s.ndim - 2), groups, [True, False, False]
        )
        return back
    unreached = [  # rows and columns of the input at its far end that no output sees
        n - ((m - 1) * step - 2 * pad + apart * (k - 1) + 1)
        for n, m, k, step, pad, apart in zip(
            like.shape[2:], s.shape[2:], w.shape[2:], stride, padding, dilation, strict=True
        )
    ]
    how = (padding, unreached, stride, dilation, groups)
    packed = _packed(w, "adjoint", *how, s.shape)
    return _ONEDNN._convolution_transpose_pointwise(s, packed, None, *how, "none", [], "")


def _packed(w: Tensor, direction: Literal["forward", "adjoint"], *how: Any) -> Tensor:
    """The weight packed for these settings and this shape of the input."""
    known: Packed = _cached.get(w, {})
    made_for, packed = known.get(direction, (None, w))
    if made_for != how:
        forward = direction == "forward"
        pack = _ONEDNN._reorder_convolution_weight if forward else _ONEDNN._reorder_convolution_transpose_weight
        packed = pack(w, *how)
        known[direction] = how, packed
    return packed


def _fits(w: Tensor) -> bool:
    """Whether a weight is of the kind that is packed here."""
    on_cpu = w.device.type == "cpu" and w.dtype == torch.float32
    return _AVAILABLE and on_cpu and w.ndim == 4 and w.numel() >= _FEWEST_WEIGHTS


def _most_pixels(w: Tensor) -> int:
    return _MOST_PIXELS_CHEAP if w.numel() <= _CHEAP else _MOST_PIXELS


def _pixels(h: Tensor, geometry: Geometry) -> int:
    """Of the output for one image, nearly."""
    return (h.shape[2] // geometry.stride[0]) * (h.shape[3] // geometry.stride[1])


def _pays(w: Tensor, h: Tensor, geometry: Geometry) -> bool:
    """Whether the convolution with input ``h`` is one to pack the weight for."""
    return (
        _fits(w)
        and not observed()
        and h.dtype == torch.float32
        and h.shape[0] * _pixels(h, geometry) <= _most_pixels(w)
        and bool(torch.backends.mkldnn.enabled)
        and not (torch.is_grad_enabled() and (h.requires_grad or w.requires_grad))
    )


def _records() -> bool:
    """Whether a trace is to call this module when it is run."""
    return _recording.get() and not transformed()


def _may_pay(w: Tensor, h: Tensor, geometry: Geometry) -> bool:
    """Whether :func:`_pays` holds for one image at least."""
    return _fits(w) and _pixels(h, geometry) <= _most_pixels(w)


_GEOMETRY = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups"
"""In the schema of an operation, as :class:`Geometry` has it."""
_LIBRARY = torch.library.Library("headwater", "FRAGMENT")
"""Without torch's ``custom_op`` around the operations, whose checks take three times as long as the call."""
_LIBRARY.define(f"convolution(Tensor h, Tensor w, Tensor? bias, {_GEOMETRY}) -> Tensor")
_LIBRARY.define(f"adjoint(Tensor s, Tensor w, Tensor like, {_GEOMETRY}) -> Tensor")


_LIBRARY.impl(
    "convolution",
    lambda h, w, bias, *geometry: _channels_last(_convolution(h, w, bias, Geometry(*geometry))),
    "CompositeExplicitAutograd",
)
_LIBRARY.impl(
    "adjoint",
    lambda s, w, like, *geometry: _channels_last(_adjoint(s, w, like, Geometry(*geometry))),
    "CompositeExplicitAutograd",
)


def _shape_of_convolution(h: Tensor, w: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    stride, padding, dilation, groups = geometry
    z = torch.convolution(h, w, bias, stride, padding, dilation, False, [0, 0], groups)
    return torch.empty_like(z, memory_format=torch.channels_last)


def _shape_of_adjoint(s: Tensor, w: Tensor, like: Tensor, *geometry: Any) -> Tensor:
    return torch.empty_like(like, memory_format=torch.channels_last)


torch.library.register_fake("headwater::convolution", _shape_of_convolution, lib=_LIBRARY)
torch.library.register_fake("headwater::adjoint", _shape_of_adjoint, lib=_LIBRARY)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)
