"""C3-LRP and C1C-LRP: the map of the block rule, cut down to one region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from headwater.explanation import Explanation
from headwater.heatmaps import c1c, c3
from headwater.lrp import LRP
from headwater.seed import Target


class Masked:
    """LRP by the composite ``doublet2024``, its map masked; relevance and account are those before the mask.

    Args:
        model: the network.
        mask: from maps ``(N, H, W)`` to maps of the same size.
    """

    def __init__(self, model: nn.Module, mask: Callable[[Tensor], Tensor]) -> None:
        self.lrp = LRP(model, "doublet2024")
        self.mask = mask

    def __call__(self, x: Tensor, target: Target = None) -> Explanation:
        """As :meth:`headwater.LRP.__call__`."""
        e = self.lrp(x, target)
        return replace(e, heatmap=self.mask(e.heatmap))


MASKED: dict[str, Callable[[nn.Module], Masked]] = {
    "c3-lrp": lambda model: Masked(model, c3),
    "c1c-lrp": lambda model: Masked(model, lambda heatmap: c1c(heatmap, enlarge=True)),
}
"""How each is made for a model."""
