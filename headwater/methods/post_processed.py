"""Methods that post-process another method's map: restrict it to one region (C3-LRP, C1C-LRP), or quantize it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from headwater.engine.explanation import Explanation
from headwater.engine.lrp import LRP
from headwater.engine.seed import Target
from headwater.heatmaps import c1c, c3
from headwater.methods.method import Checkpoints, Method, Progress


class PostProcessed:
    """A method whose map is changed afterwards; relevance, conservation and flow are the method's own.

    Args:
        method: makes the map.
        change: maps ``(N, H, W)`` to maps of the same size.
    """

    def __init__(self, method: Method, change: Callable[[Tensor], Tensor]) -> None:
        self.method, self.change = method, change

    def __call__(
        self, x: Tensor, target: Target = None, *, checkpoints: Checkpoints = (), progress: Progress | None = None
    ) -> Explanation:
        """Explain images as the method does, see :class:`~headwater.methods.method.Method`."""
        e = self.method(x, target, checkpoints=checkpoints, progress=progress)
        return replace(e, heatmap=self.change(e.heatmap))


MASKED: dict[str, Callable[[nn.Module], PostProcessed]] = {
    "c3-lrp": lambda model: PostProcessed(LRP(model, "doublet2024"), c3),
    "c1c-lrp": lambda model: PostProcessed(LRP(model, "doublet2024"), lambda heatmap: c1c(heatmap, enlarge=True)),
}
"""Makes each method for a model."""
