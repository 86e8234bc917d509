"""Kinds of failed explanations: the attended area is too small, too large, or elsewhere."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Shaped
from torch import Tensor

from headwater.engine.guards.checks import check_maps
from headwater.metrics.localisation import relevance_mass

Failure = Literal["IA", "OA", "WA"]
KINDS: dict[Failure, str] = {"IA": "area too small", "OA": "area too large", "WA": "elsewhere"}


def attended_area(heatmap: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    r"""Effective number of pixels that a map attends to, as a part of the map's area.

    .. math:: A = \frac{1}{n} \frac{\left(\sum_i R_i^+\right)^2}{\sum_i (R_i^+)^2}

    A map that is uniform on k of n pixels has k / n; a map without positive relevance 0.

    Args:
        heatmap: maps ``(N, H, W)``.

    Returns:
        ``(N,)``, in [0, 1].

    Raises:
        InputError: wrong shape, or a map that is not finite.

    >>> import torch
    >>> attended_area(torch.tensor([[[2., 2.], [0., -1.]]])).tolist()
    [0.5]
    """
    check_maps(heatmap)
    positive = heatmap.clamp(min=0).flatten(1).double()
    area = positive.sum(1).square() / positive.square().sum(1) / positive.shape[1]
    return area.nan_to_num(0.0).to(heatmap.dtype)


def failure_kinds(heatmap: Float[Tensor, "n h w"], mask: Shaped[Tensor, "n H W"]) -> list[Failure]:
    """Sort maps that failed by where the object is, a rule for what Otsuki et al. (Sec. D.4) did by eye.

    - ``"WA"`` (wrongly attended): less than half of the positive relevance is in the mask;
    - ``"IA"`` (insufficiently attended): else, if the attended area is smaller than the mask;
    - ``"OA"`` (over-attended): else.

    Args:
        heatmap: maps ``(N, H, W)``.
        mask: where the object is, ``(N, H, W)``, nonzero inside.

    Raises:
        InputError: shapes that do not fit, a map that is not finite, an empty mask.

    >>> import torch
    >>> mask = torch.tensor([[[1, 1], [0, 0]]]).expand(3, 2, 2)
    >>> failure_kinds(torch.tensor([[[9., 0.], [0., 0.]], [[1., 1.], [1., 0.]], [[0., 1.], [2., 0.]]]), mask)
    ['IA', 'OA', 'WA']
    """
    inside = relevance_mass(heatmap, mask).tolist()
    areas = attended_area(heatmap).tolist()
    boxes = (mask != 0).float().mean((1, 2)).tolist()
    return [failure_kind(*numbers) for numbers in zip(inside, areas, boxes, strict=True)]


def failure_kind(mass: float, attended: float, box: float) -> Failure:
    """The kind of one failed map, see :func:`failure_kinds`.

    Args:
        mass: positive relevance in the mask, in [0, 1].
        attended: attended area, part of the map.
        box: area of the mask, part of the map.
    """
    return "WA" if mass < 0.5 else "IA" if attended < box else "OA"
