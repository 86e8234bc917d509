"""Maps made from relevance."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Literal, get_args

import numpy as np
import torch
from scipy import ndimage
from skimage import measure, transform
from torch import Tensor

from headwater.engine.guards.checks import check_maps, check_whole
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
    check_maps(heatmap, ndim=None)
    check_whole(levels, "levels", 2, 1_000_000)
    if variant not in get_args(Variant):
        raise InputError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
    values = heatmap.to(torch.promote_types(heatmap.dtype, torch.float32))  # half precision counts to 2048, no further
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    if variant == "equation":
        width = (high - low) / levels
        quantized = low + torch.floor((values - low) / width) * levels
    else:
        numbers = torch.arange(levels, dtype=values.dtype, device=values.device)
        steps = numbers * ((high - low) / (levels - 1)) + low  # (..., 1, levels)
        steps[..., -1:] = high
        flat = values.flatten(-2)
        below = torch.searchsorted(steps.squeeze(-2), flat.contiguous(), right=True) - 1
        quantized = steps.squeeze(-2).gather(-1, below.clamp(min=0)).view_as(values)
    result = torch.where(high > low, quantized, values).to(heatmap.dtype)
    if not result.isfinite().all():
        raise InputError(
            f"{levels} levels from {low.min():g} to {high.max():g} do not fit in {heatmap.dtype}; scale the maps"
        )
    return result


def c1c(heatmap: Tensor, size: int = 28, threshold: float | None = None, enlarge: bool = False) -> Tensor:
    """Keep the one connected component that holds the map's largest value (C1C).

    Source: Iida et al. 2023, as Doublet et al. cite it; computed as in the code of Otsuki et al. (``visualize.py``,
    lines 176 to 201 and 338). The map is reduced to ``size`` x ``size`` (with antialiasing), cut at the threshold, and
    of the components (8 neighbours) the one with the largest value stays, its values times 3.

    Args: as :func:`c3`; the map is not enlarged unless asked.

    Returns:
        ``(..., size, size)``, or ``(..., H, W)`` with ``enlarge``; zeros where no pixel is above the threshold, as in a
        constant map.

    Raises:
        InputError: wrong shape or size, or a map that is not finite.

    >>> import torch
    >>> c1c(torch.tensor([[5., 0., 2.], [4., 0., 2.], [0., 0., 2.]]), size=3)
    tensor([[15.,  0.,  0.],
            [12.,  0.,  0.],
            [ 0.,  0.,  0.]])
    """
    return _masked(
        heatmap, size, threshold, enlarge, lambda reduced, above: 3 * reduced * strongest_component(reduced, above)
    )


def c3(heatmap: Tensor, size: int = 28, threshold: float | None = None, enlarge: bool = True) -> Tensor:
    """Keep what lies both inside the largest contour and in the largest connected component (C3).

    Source: Doublet et al., C3-LRP. The map is reduced to ``size`` x ``size`` (with antialiasing) and cut at the
    threshold, which the paper leaves open (its predecessor C1C uses the mean). Mask 1 is the inside of the contour that
    encloses most pixels, holes included; mask 2 the component (8 neighbours) of most pixels; of equals the first from
    the top left. The reduced map is multiplied by both and enlarged.

    Args:
        heatmap: maps ``(..., H, W)``.
        size: side of the reduced map.
        threshold: pixels above it count; ``None`` for the reduced map's mean.
        enlarge: return the map in its old size, bilinearly.

    Returns:
        ``(..., H, W)``, or ``(..., size, size)`` without ``enlarge``; zeros where no pixel is above the threshold.

    Raises:
        InputError: wrong shape or size, or a map that is not finite.

    >>> import torch
    >>> c3(torch.tensor([[5., 0., 2.], [4., 0., 2.], [0., 0., 2.]]), size=3)
    tensor([[0., 0., 2.],
            [0., 0., 2.],
            [0., 0., 2.]])
    """
    return _masked(
        heatmap,
        size,
        threshold,
        enlarge,
        lambda reduced, above: reduced * (largest_contour(above) & largest_component(above)),
    )


def reduced_map(heatmap: np.ndarray, size: int) -> np.ndarray:
    """One map ``(H, W)`` made ``(size, size)``, with antialiasing; unchanged if it has that size."""
    if heatmap.shape == (size, size):
        return heatmap
    return transform.resize(heatmap, (size, size), order=1, anti_aliasing=max(heatmap.shape) > size)


def above_threshold(reduced: np.ndarray, threshold: float | None) -> np.ndarray:
    """Where a reduced map is above the threshold, or its mean; nowhere in a constant map."""
    if threshold is not None:
        return reduced > threshold
    # The mean of equal numbers may be off by rounding.
    return (reduced > reduced.mean()) & (reduced.min() != reduced.max())


def strongest_component(reduced: np.ndarray, above: np.ndarray) -> np.ndarray:
    """The component of ``above`` that holds the largest value of ``reduced``, as a mask."""
    labels = measure.label(above, connectivity=2)
    strongest = labels[np.unravel_index(reduced.argmax(), reduced.shape)]
    return (labels == strongest) & above


def largest_component(above: np.ndarray) -> np.ndarray:
    """The component of most pixels, as a mask; of equals the first from the top left."""
    labels = measure.label(above, connectivity=2)
    sizes = np.bincount(labels.ravel())[1:]
    return labels == 1 + sizes.argmax() if sizes.size else np.zeros_like(above)


def largest_contour(above: np.ndarray) -> np.ndarray:
    """The pixels inside the outer contour that encloses most, holes included, as a mask."""
    labels = measure.label(above, connectivity=2)
    best = np.zeros_like(above)
    for label in range(1, labels.max() + 1):
        # Diagonal neighbours close a contour, so holes are found with four neighbours, which is scipy's default.
        inside = ndimage.binary_fill_holes(labels == label)
        if inside.sum() > best.sum():
            best = inside
    return best


def _masked(
    heatmap: Tensor,
    size: int,
    threshold: float | None,
    enlarge: bool,
    choose: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Tensor:
    """Each map reduced, thresholded and masked; on the CPU, map by map, since scikit-image does it."""
    check_maps(heatmap, ndim=None)
    check_whole(size, "size", 1, 10_000)
    if threshold is not None and (
        isinstance(threshold, bool) or not isinstance(threshold, Real) or threshold != threshold
    ):
        raise InputError(f"threshold must be a number, or None for the mean, got {threshold!r}")
    rows, columns = heatmap.shape[-2:]
    masked = []
    for one in heatmap.detach().reshape(-1, rows, columns).cpu().to(torch.promote_types(heatmap.dtype, torch.float32)):
        reduced = reduced_map(one.numpy(), size)
        above = above_threshold(reduced, threshold)
        chosen = choose(reduced, above)
        if enlarge and chosen.shape != (rows, columns):
            chosen = transform.resize(chosen, (rows, columns), order=1, anti_aliasing=False)
        masked.append(torch.from_numpy(np.ascontiguousarray(chosen)))
    result = torch.stack(masked).to(heatmap)
    return result.reshape(*heatmap.shape[:-2], *result.shape[-2:])
