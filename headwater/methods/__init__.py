"""Every explanation method under one convention: ``method(x, target=None)`` returns an ``Explanation``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches

from torch import nn

from headwater.engine.explanation import Explanation
from headwater.engine.lrp import LRP
from headwater.engine.presets import list_composites
from headwater.errors import InputError
from headwater.methods.abn import AttentionMap
from headwater.methods.all_scales import AllScales
from headwater.methods.baselines import BASELINES
from headwater.methods.method import Method, as_method
from headwater.methods.post_processed import MASKED, QUANTIZED, QUANTIZED_LEVELS, quantized, split_name
from headwater.methods.published import PUBLISHED
from headwater.methods.rise import Rise
from headwater.methods.score_cam import ScoreCAM

_COMPARED: dict[str, Callable[[nn.Module], Method]] = {
    **BASELINES,
    **PUBLISHED,
    "scorecam": ScoreCAM,
    "rise": Rise,
    "abn": AttentionMap,
}
_METHODS: dict[str, Callable[[nn.Module], Method]] = {**_COMPARED, **MASKED, "headwater": AllScales}
DEFAULT_METHOD = "headwater"
"""By which image files are explained where no method is named."""


_DESCRIPTIONS = {
    "abn": "attention branch network's own attention map",
    "abn-published": "the same for a network whose branch is as in the authors' code: cub-abn-published",
    "c1c-lrp": "doublet2024, kept inside the component that holds the largest value (C1C)",
    "c3-lrp": "doublet2024, kept inside the largest contour and component (C3)",
    "deeplift": "DeepLIFT against the mean colour, 0 in normalised space (Captum)",
    "deeplift-published": "the same, its red channel alone, as the authors' code has Captum's other methods",
    "doublet2024": "Doublet et al.: gradient times input over output, a residual block at a time",
    "epsilon": "LRP, epsilon rule with biases everywhere; does not conserve",
    "gradcam": "Grad-CAM of the last feature map (pytorch-grad-cam)",
    "gradient-x-input": "gradient times input (Captum)",
    "guided-backprop": "guided backpropagation (Captum)",
    "headwater": "LRP for ResNet, signed at the classifier, mean over the scales of all cuts; conserving exactly",
    "headwater-text": "LRP for transformers over texts: contributions by their signs; what headwater is for token ids",
    "guided-backprop-published": "the same, its red channel alone, as the authors' code measures it",
    "integrated-gradients": "integrated gradients, 50 steps from the mean colour, 0 in normalised space (Captum)",
    "integrated-gradients-published": "the same, its red channel alone, as the authors' code measures it",
    "lrp-epsilon": "LRP as Captum has it, epsilon rule; skips as the gradient has them",
    "lrp-epsilon-published": "the same, additions without a rule, its red channel alone, as the authors' code has it",
    "lrp-mixture": "LRP as Captum has it, epsilon rule above, z+ below",
    "lrp-mixture-published": "the same, additions without a rule, its red channel alone",
    "otsuki2024": "LRP for ResNet: z+ and ratio splitting at skips, conserving exactly",
    "otsuki2024-i": "LRP for ResNet, symmetric splitting, identity skips left out",
    "otsuki2024-ii": "LRP for ResNet, symmetric splitting",
    "otsuki2024-iii": "LRP for ResNet, ratio splitting, identity skips left out",
    "otsuki2024-mixture": "LRP for ResNet, epsilon rule after the eighth join, z+ before",
    "otsuki2024-mixture-published": "otsuki2024-published with the epsilon rule after the eighth join, biases counted",
    "random": "uniform noise, to compare with",
    "rise": "RISE: the mean of 5,000 random masks, weighted by the probability",
    "rise-published": "RISE with the authors' masks, which show 62 % of the image",
    "scorecam": "Score-CAM of the last feature map, scaled as pytorch-grad-cam does",
    "scorecam-published": "Score-CAM weighted by the probability itself, as the authors' code has it",
}
_PUBLISHED = "-published"


def register_method(name: str, make: Callable[[nn.Module], Callable[..., Explanation]], description: str = "") -> None:
    """Register a method under a name.

    Args:
        name: for :func:`load_method`.
        make: returns the method for a model: ``method(x, target=None)``, which may also take ``checkpoints`` and
            ``progress``, see :class:`~headwater.methods.method.Method`.
        description: one line for ``headwater methods``.
    """
    _METHODS[name] = lambda model: as_method(make(model))
    _DESCRIPTIONS[name] = description


def describe_method(name: str) -> str:
    """What a method does, in one line.

    >>> describe_method("otsuki2024-published")
    "LRP for ResNet: z+ and ratio splitting at skips, as the authors' code computes it"
    """
    if name in _DESCRIPTIONS:
        return _DESCRIPTIONS[name]
    if name.endswith(_PUBLISHED) and name.removesuffix(_PUBLISHED) in _DESCRIPTIONS:
        described = _DESCRIPTIONS[name.removesuffix(_PUBLISHED)].removesuffix(", conserving exactly")
        return f"{described}, as the authors' code computes it"
    return "a composite of your own" if name in list_composites() else ""


def list_methods() -> list[str]:
    """Names that :func:`load_method` takes.

    >>> "otsuki2024" in list_methods()
    True
    """
    return sorted({*_METHODS, *list_composites()})


def is_baseline(name: str) -> bool:
    """Whether LRP is compared with this method: true for neither composites, nor masked maps, nor registered methods.

    >>> is_baseline("gradcam+hq"), is_baseline("c3-lrp")
    (True, False)
    """
    return split_name(name)[0] in _COMPARED


def load_method(name: str, model: nn.Module) -> Method:
    """The method of that name for ``model``; every composite is one.

    ``NAME+hq`` is NAME's map after heat quantization as published, ``NAME+hq-equation`` as the equation is printed.

    Raises:
        InputError: no method has that name.
        MissingDependencyError: the library that does the work is not installed.

    >>> import torch, headwater as hw
    >>> method = load_method("otsuki2024-ii", hw.load_model("tiny20"))
    >>> method(torch.zeros(1, 3, 64, 64)).heatmap.shape
    torch.Size([1, 64, 64])
    """
    base, variant = split_name(name)
    if variant is not None:
        return quantized(load_method(base, model), variant)
    if name in _METHODS:
        return _METHODS[name](model)
    if name in list_composites():
        return LRP(model, name)
    raise unknown_method(name)


def unknown_method(name: str) -> InputError:
    """The error of a name that no method has, with the names that are like it."""
    near = get_close_matches(name, list_methods(), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(list_methods())}"
    return InputError(f"no method is called {name!r}; {hint}")


def explains_against(method: Method) -> bool:
    """Whether a method can explain why one class and not another: it takes ``against`` and ``start``, as LRP does."""
    return {"against", "start"} <= set(inspect.signature(method).parameters)


__all__ = [
    "DEFAULT_METHOD",
    "QUANTIZED",
    "QUANTIZED_LEVELS",
    "AllScales",
    "Method",
    "explains_against",
    "is_baseline",
    "list_methods",
    "load_method",
    "register_method",
    "split_name",
    "unknown_method",
]
