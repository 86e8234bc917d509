"""Every explanation method under one convention: ``method(x, target=None)`` returns an ``Explanation``."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from torch import nn

from headwater.composites import list_composites
from headwater.errors import InputError
from headwater.explanation import Explanation
from headwater.heatmaps import heat_quantization
from headwater.lrp import LRP
from headwater.methods.abn import AttentionMap
from headwater.methods.baselines import BASELINES
from headwater.methods.changed import MASKED, Changed
from headwater.methods.rise import Rise

Method = Callable[..., Explanation]
"""``method(x, target=None)``: pictures ``(N, C, H, W)``; the predicted class where no target is given."""

QUANTIZED = "+hq"
"""Ending of a method's name that asks for its map after heat quantization, 8 levels, as published."""

_COMPARED: dict[str, Callable[[nn.Module], Method]] = {**BASELINES, "rise": Rise, "abn": AttentionMap}
_METHODS: dict[str, Callable[[nn.Module], Method]] = {**_COMPARED, **MASKED}


def register_method(name: str, make: Callable[[nn.Module], Method]) -> None:
    """Make a method known by name: ``make(model)`` returns it for a model."""
    _METHODS[name] = make


def list_methods() -> list[str]:
    """Names that :func:`load_method` takes.

    >>> "otsuki2024" in list_methods()
    True
    """
    return sorted({*_METHODS, *list_composites()})


def is_baseline(name: str) -> bool:
    """Whether a method is one of those that LRP is compared with: not a composite, a masked one or one of your own.

    >>> is_baseline("gradcam+hq"), is_baseline("c3-lrp")
    (True, False)
    """
    return name.removesuffix(QUANTIZED) in _COMPARED


def load_method(name: str, model: nn.Module) -> Method:
    """The method of that name for ``model``; every composite is one, and ``NAME+hq`` is NAME's map, quantized.

    Raises:
        InputError: no method has that name.
        MissingDependencyError: the library that does the work is not installed.

    >>> import torch, headwater as hw
    >>> method = load_method("otsuki2024-ii", hw.load_model("tiny20"))
    >>> method(torch.zeros(1, 3, 64, 64)).heatmap.shape
    torch.Size([1, 64, 64])
    """
    if name.endswith(QUANTIZED):
        return Changed(load_method(name.removesuffix(QUANTIZED), model), heat_quantization)
    if name in _METHODS:
        return _METHODS[name](model)
    if name in list_composites():
        return LRP(model, name)
    near = get_close_matches(name, list_methods(), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(list_methods())}"
    raise InputError(f"no method is called {name!r}; {hint}")


__all__ = ["QUANTIZED", "Method", "is_baseline", "list_methods", "load_method", "register_method"]
