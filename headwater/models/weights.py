"""Which weights a name stands for: torchvision's first or second version, a file, or none."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torchvision

from headwater.data.preprocessing import Preprocessing
from headwater.errors import InputError
from headwater.files import is_file

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
"""Of files of weights."""
RANDOM = "none"
"""Asks for random weights."""
_HASH = re.compile(r"-([0-9a-f]{8})\.pth$")


def is_weights_file(text: str) -> bool:
    """Whether weights are given as a file, not by name."""
    return text.endswith(SUFFIXES) or is_file(Path(text))


def torchvision_weights(name: str, weights: str | None) -> Any:
    """The member of torchvision's weights enum that is asked for.

    Args:
        name: of the network.
        weights: ``"v1"``, ``"v2"``, or a member's name, in any case; ``None`` for V1, the weights of the papers, or for
            torchvision's default of a network that has no V1.

    Raises:
        InputError: the network has no such weights.

    >>> torchvision_weights("resnet50", "v2"), torchvision_weights("resnet50", None)
    (ResNet50_Weights.IMAGENET1K_V2, ResNet50_Weights.IMAGENET1K_V1)
    """
    enum = torchvision.models.get_model_weights(name)
    members = {member.lower(): member for member in enum.__members__}
    wanted = "v1" if weights is None else weights.lower()
    found = members.get(f"imagenet1k_{wanted}", members.get(wanted))
    if found is None and weights is not None:
        raise InputError(
            f"{name} has no weights {weights!r}; there are {', '.join(enum.__members__)} (v1 and v2 for short), "
            f"{RANDOM}, or a file ({', '.join(SUFFIXES)})"
        )
    return enum[found or "DEFAULT"]


def weights_in_file(path: Path, name: str) -> Any:
    """The member of torchvision's weights enum that a file is, or ``None``.

    Torchvision publishes weights in files that are named after the first digits of their SHA-256; the content counts
    here, not the name.

    Args:
        path: the file.
        name: of the network.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    for member in torchvision.models.get_model_weights(name):
        published = _HASH.search(member.url)
        if published is not None and digest.startswith(published[1]):
            return member
    return None


def preprocessing_of(weights: Any) -> Preprocessing:
    """How images are prepared for a member of torchvision's weights enum."""
    preset = weights.transforms()
    return Preprocessing(
        preset.resize_size[0], preset.crop_size[0], tuple(preset.mean), tuple(preset.std), preset.interpolation.value
    )
