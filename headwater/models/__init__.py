"""Load a classifier by name or from a file, with the preprocessing and class names that belong to it."""

from headwater.models.card import ModelCard, card_of, check_takes_images, network_input, weights_digest
from headwater.models.default import default_model
from headwater.models.held import network_of
from headwater.models.registry import find_runs, has_own_weights, list_models, load_model

__all__ = [
    "ModelCard",
    "card_of",
    "check_takes_images",
    "default_model",
    "find_runs",
    "has_own_weights",
    "list_models",
    "load_model",
    "network_input",
    "network_of",
    "weights_digest",
]
