"""Whether relevance lies on the object, given by boxes or masks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

from headwater.engine.guards.checks import check_maps
from headwater.errors import InputError


def pointing_game(heatmap: Float[Tensor, "n h w"], mask: Shaped[Tensor, "n H W"]) -> Float[Tensor, " n"]:
    """Whether the strongest pixel lies in the mask: 1 or 0, or the part that does where several are equally strong.

    Source: Zhang et al. 2018.

    Args:
        heatmap: maps ``(N, h, w)``; smaller ones than the mask are enlarged bilinearly.
        mask: where the object is, ``(N, H, W)``, nonzero inside.

    Returns:
        ``(N,)``, in [0, 1].

    Raises:
        InputError: shapes that do not fit, a map that is not finite, an empty mask.

    >>> import torch
    >>> pointing_game(torch.tensor([[[1., 3.], [2., 0.]]]), torch.tensor([[[0, 1], [0, 0]]])).tolist()
    [1.0]
    """
    values, inside = _flat(heatmap, mask)
    strongest = values == values.amax(1, keepdim=True)
    return (strongest & inside).sum(1) / strongest.sum(1)


def relevance_mass(heatmap: Float[Tensor, "n h w"], mask: Shaped[Tensor, "n H W"]) -> Float[Tensor, " n"]:
    """Part of the positive relevance that lies in the mask; 0 where there is none.

    Source: Wang et al. 2020 (energy-based pointing game); Arras et al. 2022 (relevance mass accuracy).

    Args, returns, raises: as :func:`pointing_game`.

    >>> import torch
    >>> relevance_mass(torch.tensor([[[1., 3.], [-2., 0.]]]), torch.tensor([[[0, 1], [1, 0]]])).tolist()
    [0.75]
    """
    values, inside = _flat(heatmap, mask)
    positive = values.clamp(min=0)
    return ((positive * inside).sum(1) / positive.sum(1)).nan_to_num(0.0)


def relevance_rank(heatmap: Float[Tensor, "n h w"], mask: Shaped[Tensor, "n H W"]) -> Float[Tensor, " n"]:
    """Part of the k strongest pixels that lies in a mask of k pixels; ties in the order of the pixels.

    Source: Arras et al. 2022 (relevance rank accuracy).

    Args, returns, raises: as :func:`pointing_game`.

    >>> import torch
    >>> relevance_rank(torch.tensor([[[1., 3.], [2., 0.]]]), torch.tensor([[[1, 1], [0, 0]]])).tolist()
    [0.5]
    """
    values, inside = _flat(heatmap, mask)
    order = values.sort(dim=1, descending=True, stable=True)[1]
    size = inside.sum(1, keepdim=True)
    among = torch.arange(values.shape[1], device=values.device) < size
    return (inside.gather(1, order) & among).sum(1) / size[:, 0]


def _flat(
    heatmap: Float[Tensor, "n h w"], mask: Shaped[Tensor, "n H W"]
) -> tuple[Float[Tensor, "n pixels"], Bool[Tensor, "n pixels"]]:
    """Maps in the mask's size and masks, both ``(N, pixels)``."""
    check_maps(heatmap)
    if not isinstance(mask, Tensor) or mask.layout != torch.strided or mask.is_meta:
        raise InputError(f"masks must be a dense tensor (N, H, W) with values, got {type(mask).__name__}")
    if mask.ndim != 3 or len(heatmap) != len(mask):
        raise InputError(f"maps and masks must be (N, H, W), got {tuple(heatmap.shape)} and {tuple(mask.shape)}")
    inside = (mask != 0).to(heatmap.device)
    if not inside.flatten(1).any(1).all():
        raise InputError("a mask is empty; leave out images without a box")
    if heatmap.shape != mask.shape:
        heatmap = functional.interpolate(heatmap[:, None], mask.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return heatmap.flatten(1), inside.flatten(1)
