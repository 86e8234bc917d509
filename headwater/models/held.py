"""The network of what people hold: a name, a file, a folder, a module, or a pipeline of ``transformers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from headwater.errors import InputError
from headwater.models.card import ModelCard, card_of, with_preprocessing
from headwater.models.default import default_model
from headwater.models.huggingface import from_pipeline, is_pipeline
from headwater.models.registry import load_model


def network_of(model: Any, preprocessing: Any = None) -> tuple[nn.Module, ModelCard]:
    """A network with its card.

    Args:
        model: a name, file or folder (see :func:`headwater.load_model`), a module, or a pipeline of ``transformers``;
            ``None`` for :func:`default_model`.
        preprocessing: replaces the card's: a :class:`headwater.Preprocessing`, or an image processor of
            ``transformers``.

    Raises:
        InputError: ``model`` is none of these.
        HeadwaterError: the network cannot be loaded; the message says why.
    """
    if is_pipeline(model):
        network, card = from_pipeline(model)
        return network, card if preprocessing is None else with_preprocessing(card, preprocessing)
    if model is None:
        network = default_model()
    elif isinstance(model, nn.Module):
        network = model
    elif isinstance(model, (str, Path)):
        network = load_model(model)
    else:
        raise InputError(
            "model must be a name, a file, a folder of save_pretrained, hf:OWNER/NAME, a torch.nn.Module or a pipeline "
            f"of transformers, got {type(model).__name__}"
        )
    return network, card_of(network, preprocessing)
