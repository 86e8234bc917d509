r"""The adjoint of a strided convolution to few channels, such as a network's first, as one convolution without stride.

An input at row :math:`r` is reached by the taps :math:`k` of the kernel with :math:`k \equiv r + p` modulo the stride
(padding p). So the rows fall into as many phases as the stride counts, and so do the columns; each phase of each
channel is one output channel of a convolution that moves by one. oneDNN computes that faster than an adjoint of three
channels: ResNet-50's first layer in 0.4 to 0.7 of the time, ViT-B/16's in 0.2 to 0.6 (with and without AVX-512, one and
eight images; ``python -m benchmarks.ideas``). Values differ from the adjoint's by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Geometry(NamedTuple):
    """How a convolution moves over its input, in the order of the arguments of ``torch.convolution``."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


_MOST_CHANNELS = 4
_FEWEST_WEIGHTS = 2**10
_MOST_PADDED = 1.5
"""Taps of the kernel, filled up to a multiple of the stride, over those that it has; 3 x 3 by 2 is slower so."""


def pays(w: Tensor, geometry: Geometry) -> bool:
    """Whether the adjoint of the convolution with weight ``w`` is to be taken by phases: where oneDNN is faster so."""
    stride, size = geometry.stride, w.shape[2:]
    return (
        w.device.type == "cpu"
        and w.dtype == torch.float32
        and w.ndim == 4
        and geometry.groups == 1
        and w.shape[1] <= _MOST_CHANNELS
        and w.numel() >= _FEWEST_WEIGHTS
        and stride[0] == stride[1] > 1
        and all(step == 1 for step in geometry.dilation)
        and _filled(size[0], stride[0]) * _filled(size[1], stride[1]) <= _MOST_PADDED * size[0] * size[1]
    )


def adjoint(s: Tensor, w: Tensor, like: Tensor, geometry: Geometry) -> Tensor:
    """The adjoint of the convolution with ``w``, from outputs ``s`` to inputs shaped as ``like``, in a new tensor."""
    step = geometry.stride[0]
    rows, columns = (_filled(size, step) for size in w.shape[2:])
    filled = functional.pad(w, [0, columns - w.shape[3], 0, rows - w.shape[2]])
    taps = filled.unflatten(3, (-1, step)).unflatten(2, (-1, step)).permute(1, 3, 5, 0, 2, 4)  # channel, phases, ...
    kernel = taps.flip(4, 5).flatten(0, 2).contiguous(memory_format=torch.channels_last)
    back = functional.pixel_shuffle(torch.conv2d(s, kernel, None, 1, [n - 1 for n in kernel.shape[2:]]), step)
    top, left = geometry.padding
    missing = [max(0, pad + n - have) for n, pad, have in zip(like.shape[2:], (top, left), back.shape[2:], strict=True)]
    back = functional.pad(back, [0, missing[1], 0, missing[0]]) if any(missing) else back  # what no output sees
    window = back[:, :, top : top + like.shape[2], left : left + like.shape[3]]
    return window.contiguous(memory_format=torch.channels_last)


def _filled(size: int, step: int) -> int:
    return -(-size // step) * step
