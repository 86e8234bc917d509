"""Maps made from relevance."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from headwater.errors import InputError

Variant = Literal["published", "equation"]


def heat_quantization(heatmap: Tensor, levels: int = 8, variant: Variant = "published") -> Tensor:
    r"""Reduce each map to a few values.

    Source: Otsuki et al. 2024, Eq. 8.

    ``"published"`` is what the authors' code does: ``levels`` values evenly from the smallest to the largest, both
    included, and each pixel falls to the value below it. ``"equation"`` is the printed formula,

    .. math::

        \alpha = \alpha_{\min} + \left\lfloor
            \frac{\alpha_R - \alpha_{\min}}{(\alpha_{\max} - \alpha_{\min}) / Q} \right\rfloor Q,

    whose factor Q makes large numbers; only their order matters to the measures. The largest pixel alone is in a bin
    of its own. A constant map comes back unchanged in both.

    Args:
        heatmap: maps ``(..., H, W)``, floating point; each is quantized by its own range, on its own device.
        levels: Q, at least 2.
        variant: ``"published"`` or ``"equation"``.

    Raises:
        InputError: wrong shape, dtype, number of levels or variant, or a map that is not finite.

    >>> import torch
    >>> heat_quantization(torch.tensor([[0., 1., 2., 3., 4.]]), levels=3)
    tensor([[0., 0., 2., 2., 4.]])
    """
    if heatmap.ndim < 2 or heatmap.numel() == 0 or not heatmap.is_floating_point():
        raise InputError(f"maps must be floating point (..., H, W), got {heatmap.dtype} {tuple(heatmap.shape)}")
    if levels < 2:
        raise InputError(f"levels must be at least 2, got {levels}")
    if variant not in get_args(Variant):
        raise InputError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
    if not heatmap.isfinite().all():
        raise InputError("the map holds NaN or infinity")
    low, high = heatmap.amin((-2, -1), keepdim=True), heatmap.amax((-2, -1), keepdim=True)
    if variant == "equation":
        width = (high - low) / levels
        quantized = low + torch.floor((heatmap - low) / width) * levels
    else:
        numbers = torch.arange(levels, dtype=heatmap.dtype, device=heatmap.device)
        steps = numbers * ((high - low) / (levels - 1)) + low  # (..., 1, levels)
        steps[..., -1:] = high
        flat = heatmap.flatten(-2)
        below = torch.searchsorted(steps.squeeze(-2), flat.contiguous(), right=True) - 1
        quantized = steps.squeeze(-2).gather(-1, below.clamp(min=0)).view_as(heatmap)
    return torch.where(high > low, quantized, heatmap)
