"""Methods that post-process another method's map: restrict it to one region (C3-LRP, C1C-LRP), or quantize it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from headwater.engine.explanation import Explanation
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.lrp import LRP
from headwater.engine.seed import Target
from headwater.errors import InputError
from headwater.heatmaps import Variant, c1c, c3, heat_quantization
from headwater.methods.method import Checkpoints, Method, Progress, check_kind

QUANTIZED = "+hq"
"""Suffix of a method's name: the method's map after heat quantization in 8 levels, as published."""
QUANTIZED_LEVELS = 8
"""Of the methods with that suffix."""
_VARIANTS: dict[str, Variant] = {QUANTIZED: "published", f"{QUANTIZED}-equation": "equation"}


def split_name(name: str) -> tuple[str, Variant | None]:
    """A method's name without its suffix, and the variant of heat quantization that the suffix asks for.

    >>> split_name("gradcam+hq"), split_name("gradcam+hq-equation"), split_name("gradcam")
    (('gradcam', 'published'), ('gradcam', 'equation'), ('gradcam', None))
    """
    base, plus, suffix = name.rpartition("+")
    variant = _VARIANTS.get(plus + suffix)
    return (name, None) if variant is None else (base, variant)


class PostProcessed:
    """A method whose map is changed afterwards; relevance, conservation and flow are the method's own.

    Args:
        method: makes the map.
        change: maps to maps of the same size, ``(N, H, W)`` for images.
        refuses: kinds of inputs that the change is not for, see :func:`~headwater.methods.method.check_kind`.
    """

    def __init__(
        self, method: Method, change: Callable[[Tensor], Tensor], refuses: Mapping[str, str] | None = None
    ) -> None:
        self.method, self.change, self.refuses = method, change, refuses

    def __call__(
        self, x: NetworkInput, target: Target = None, *, checkpoints: Checkpoints = (), progress: Progress | None = None
    ) -> Explanation:
        """Explain images as the method does, see :class:`~headwater.methods.method.Method`."""
        if self.refuses is not None and isinstance(self.method, LRP):
            inputs = Inputs.of(x)
            check_kind("a mask of the map", self.method.graph(inputs), inputs, self.refuses)
        e = self.method(x, target, checkpoints=checkpoints, progress=progress)
        if not isinstance(e.heatmap, Tensor):
            raise InputError("several inputs have relevance; a map of one of them can be quantized by itself")
        return replace(e, heatmap=self.change(e.heatmap))


_IMAGES = {"not images": "its contours and components are those of a picture"}
MASKED: dict[str, Callable[[nn.Module], PostProcessed]] = {
    "c3-lrp": lambda model: PostProcessed(LRP(model, "doublet2024"), c3, _IMAGES),
    "c1c-lrp": lambda model: PostProcessed(LRP(model, "doublet2024"), partial(c1c, enlarge=True), _IMAGES),
}
"""Makes each method for a model."""


def quantized(method: Method, variant: Variant) -> PostProcessed:
    """A method whose map is quantized in 8 levels, each example by itself."""
    return PostProcessed(method, partial(_quantized, variant=variant))


def _quantized(heatmap: Tensor, variant: Variant) -> Tensor:
    """Maps ``(N, *places)`` of any number of axes, quantized one by one."""
    rows = heatmap.flatten(1)[:, None]
    return heat_quantization(rows, levels=QUANTIZED_LEVELS, variant=variant).view(heatmap.shape)
