"""How concentrated a map is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from headwater.engine.guards.checks import check_maps


def gini(heatmap: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    r"""Gini index of the absolute values: 0 for a constant map, near 1 for a single pixel.

    Source: Hurley and Rickard 2009; for explanations Chalasani et al. 2020.

    .. math:: G = 1 - 2 \sum_{k=1}^{n} \frac{v_{(k)}}{\lVert v \rVert_1} \cdot \frac{n - k + 1/2}{n}

    with the values sorted upward. A map of zeros is constant.

    Args:
        heatmap: maps ``(N, H, W)``.

    Returns:
        ``(N,)``, in [0, 1).

    Raises:
        InputError: wrong shape, or a map that is not finite.

    >>> import torch
    >>> gini(torch.tensor([[[0., 0.], [0., 4.]], [[1., 1.], [1., 1.]]])).tolist()
    [0.75, 0.0]
    """
    check_maps(heatmap)
    values = heatmap.abs().flatten(1).double().sort(dim=1)[0]
    count = values.shape[1]
    places = (count - torch.arange(1, count + 1, device=values.device) + 0.5) / count
    total = values.sum(1)
    index = 1 - 2 * (values * places).sum(1) / total
    return torch.where(total > 0, index.clamp(min=0), 0).to(heatmap.dtype)
