"""Kinds of failed explanations: the attended area is too small, too large, or elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from scipy.ndimage import gaussian_filter
from torch import Tensor

from headwater.engine.guards.checks import check_maps
from headwater.metrics.localisation import relevance_mass

Failure = Literal["IA", "OA", "WA"]
KINDS: dict[Failure, str] = {"IA": "area too small", "OA": "area too large", "WA": "elsewhere"}
HALF = 0.5
"""Of the peak, of the box, of the region: every threshold of the rule."""


@dataclass(frozen=True)
class Overlap:
    """How a map's attended region and the object lie to each other.

    Attributes:
        covered: part of the object that is attended to, ``(N,)``, in [0, 1].
        inside: part of the attended region that is on the object, ``(N,)``, in [0, 1]; 0 where nothing is attended to.
    """

    covered: Float[Tensor, " n"]
    inside: Float[Tensor, " n"]

    def kinds(self) -> list[Failure]:
        """The verdict on each map, see :func:`failure_kinds`."""
        return [failure_kind(*two) for two in zip(self.covered.tolist(), self.inside.tolist(), strict=True)]


def failure_kind(covered: float, inside: float) -> Failure:
    """The verdict on one failed map from the parts of :class:`Overlap`, see :func:`failure_kinds`."""
    return "OA" if covered >= HALF else "IA" if inside >= HALF else "WA"


def attended_region(heatmap: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """The pixels that a map attends to: those of at least half of its peak, after a blur.

    Positive relevance is blurred by a Gaussian of a sixteenth of the shorter side, since LRP lies on the single pixels
    of a grid, which the eye, too, sees as one area. A map without positive relevance attends to nothing. A single pixel
    attends to about 2 % of the image, the least that the rule can tell.

    Args:
        heatmap: maps ``(N, H, W)``.

    Raises:
        InputError: wrong shape, or a map that is not finite.

    >>> import torch
    >>> heatmap = torch.zeros(1, 32, 32)
    >>> heatmap[:, :16] = 1.0
    >>> attended_region(heatmap).float().mean().item()
    0.5
    """
    check_maps(heatmap)
    positive = heatmap.detach().clamp(min=0).double().cpu().numpy()
    sigma = min(heatmap.shape[1:]) / 16
    blurred = torch.from_numpy(gaussian_filter(positive, (0, sigma, sigma), mode="mirror"))
    peak = blurred.amax((1, 2), keepdim=True)
    return ((blurred >= HALF * peak) & (peak > 0)).to(heatmap.device)


def overlap(heatmap: Float[Tensor, "n h w"], mask: Shaped[Tensor, "n H W"]) -> Overlap:
    """How the region that each map attends to covers the object, and how much of it lies on the object.

    Args:
        heatmap: maps ``(N, H, W)``.
        mask: where the object is, ``(N, H, W)``, nonzero inside.

    Raises:
        InputError: shapes that do not fit, a map that is not finite, an empty mask.
    """
    region = attended_region(heatmap).double()
    inside = relevance_mass(region, mask)
    box = (mask != 0).to(region).mean((1, 2))
    return Overlap(covered=inside * region.mean((1, 2)) / box, inside=inside)


def failure_kinds(heatmap: Float[Tensor, "n h w"], mask: Shaped[Tensor, "n H W"]) -> list[Failure]:
    """Sort maps that failed by where the object is, a rule for what Otsuki et al. (Sec. D.4) did by eye.

    A map that failed attends to too much, to too little, or to something else. The rule excludes in this order:

    - ``"OA"`` (over-attended): the attended region covers at least half of the object, so it is neither too small nor
      elsewhere;
    - ``"IA"`` (insufficiently attended): else, if at least half of the region is on the object;
    - ``"WA"`` (wrongly attended): else.

    Args:
        heatmap: maps ``(N, H, W)``.
        mask: where the object is, ``(N, H, W)``, nonzero inside.

    Raises:
        InputError: shapes that do not fit, a map that is not finite, an empty mask.

    >>> import torch
    >>> mask, maps = torch.zeros(3, 32, 32), torch.zeros(3, 32, 32)
    >>> mask[:, :16, :16] = 1
    >>> maps[0, 4, 4], maps[1, :, :], maps[2, 24, 24] = 1, 1, 1  # a spot of the object, everything, a spot beside it
    >>> failure_kinds(maps, mask)
    ['IA', 'OA', 'WA']
    """
    return overlap(heatmap, mask).kinds()
