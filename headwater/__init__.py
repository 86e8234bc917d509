"""Headwater traces a prediction back to its source: relevance flows from the logit to the pixels, and nothing is lost.

What needs torchvision or matplotlib is imported when it is first used, so ``import headwater`` costs little more than
``import torch``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headwater.composites import Composite, list_composites, load_composite, register_composite, register_rule
from headwater.errors import HeadwaterError
from headwater.explanation import Conservation, Explanation
from headwater.flow import Flow, JoinFlow
from headwater.heatmaps import c1c, c3, heat_quantization
from headwater.layers import register_layer
from headwater.lrp import LRP
from headwater.methods import list_methods, load_method, register_method
from headwater.metrics import InsertionDeletion, insertion_deletion

if TYPE_CHECKING:
    from headwater.data.preprocessing import Preprocessing
    from headwater.evaluation import Settings, evaluate
    from headwater.models.registry import ModelCard, list_models, load_model
    from headwater.picture_explanation import PictureExplanation, explain, explain_files
    from headwater.report.pictures import Style

__version__ = "0.1.0"

_LAZY = {
    "ModelCard": "headwater.models.registry",
    "PictureExplanation": "headwater.picture_explanation",
    "Preprocessing": "headwater.data.preprocessing",
    "Style": "headwater.report.pictures",
    "Settings": "headwater.evaluation",
    "evaluate": "headwater.evaluation",
    "explain": "headwater.picture_explanation",
    "explain_files": "headwater.picture_explanation",
    "list_models": "headwater.models.registry",
    "load_model": "headwater.models.registry",
}

__all__ = [
    "LRP",
    "Composite",
    "Conservation",
    "Explanation",
    "Flow",
    "HeadwaterError",
    "InsertionDeletion",
    "JoinFlow",
    "ModelCard",
    "PictureExplanation",
    "Preprocessing",
    "Settings",
    "Style",
    "c1c",
    "c3",
    "evaluate",
    "explain",
    "explain_files",
    "heat_quantization",
    "insertion_deletion",
    "list_composites",
    "list_methods",
    "list_models",
    "load_composite",
    "load_method",
    "load_model",
    "register_composite",
    "register_layer",
    "register_method",
    "register_rule",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'headwater' has no attribute {name!r}")
