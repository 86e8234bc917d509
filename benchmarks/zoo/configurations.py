"""A small network of each architecture, with random weights, and a batch that fits it."""

from __future__ import annotations

import inspect
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto import modeling_auto

TASKS = {
    "image classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "semantic segmentation": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "video classification": "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
    "audio classification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "text classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}
SMALL = tomllib.loads(Path(__file__).with_name("small.toml").read_text())
CLASSES = 5
BATCH = 2
TOKENS = 16
SAMPLES = 4000
SPECIAL_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
"""Ids where a configuration has none or one outside of the small vocabulary."""


@dataclass(frozen=True)
class Entry:
    """An architecture that transformers has for a task: its name there and the class of the model."""

    task: str
    name: str
    model: str

    @property
    def key(self) -> str:
        return f"{self.task}/{self.model}"


def entries() -> list[Entry]:
    """Every architecture of each task; a model class that has several names once, by the first of them."""
    found: dict[str, Entry] = {}
    for task, mapping in TASKS.items():
        for name, models in getattr(modeling_auto, mapping).items():
            for model in [models] if isinstance(models, str) else models:
                entry = Entry(task, name, model)
                found.setdefault(entry.key, entry)
    return list(found.values())


def build(entry: Entry, seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """The small network of an entry in eval mode and its inputs; the same for the same seed."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return smallest(getattr(transformers, entry.model), CONFIG_MAPPING[entry.name], entry.task)


def smallest(
    model_class: type[nn.Module], config_class: type[PretrainedConfig], task: str
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network of this class, as small as :mod:`small.toml` says, and a batch of noise for it."""
    overrides = {**_overrides(config_class.model_type), **_overrides(model_class.__name__)}
    config = small_config(config_class, {"num_labels": CLASSES, **overrides})
    model = model_class(config).eval()
    vary_constants(model)
    inputs = example(model, task)
    settle(model, inputs)
    return model, inputs


def _overrides(name: str) -> dict[str, Any]:
    return SMALL["overrides"].get(name, {})


def small_config(config_class: type[PretrainedConfig], overrides: Mapping[str, Any]) -> PretrainedConfig:
    """A configuration whose fields are as small as the rules say, but for ``overrides``."""
    return config_class(**_fields(config_class(), overrides))


def _fields(config: PretrainedConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``config`` that are to differ from the defaults of its class."""
    chosen = {}
    for name in (field.name for field in fields(config)):
        value = getattr(config, name, None)
        if isinstance(value, PretrainedConfig):
            nested = _fields(value, overrides.get(name, {}))
            chosen[name] = type(value)(**{**_given(value), **nested})
        elif name in SPECIAL_TOKENS:
            if not isinstance(value, int) or not 0 <= value < SMALL["limits"]["vocab_size"]:
                chosen[name] = SPECIAL_TOKENS[name]
        elif name == "initializer_range":
            chosen[name] = 0.1  # 0.02 is for wide layers
        elif name in ("layer_types", "layers_block_type") and value:
            kinds = list(dict.fromkeys(value))
            chosen[name] = kinds if len(kinds) > 1 else kinds * 2
            chosen["num_hidden_layers"] = len(chosen[name])
        elif name not in chosen and (small := _small(name, value, vars(config))) is not None:
            chosen[name] = small  # unless the types of layers say how many there are
    others = {name: value for name, value in overrides.items() if not isinstance(chosen.get(name), PretrainedConfig)}
    return {**chosen, **others}


def _given(config: PretrainedConfig) -> dict[str, Any]:
    """The fields in which a nested configuration differs from the defaults of its class."""
    default = type(config)()
    names = [*(field.name for field in fields(config)), "out_features", "out_indices"]  # which are properties
    values = {name: getattr(config, name, None) for name in names if not name.startswith("_")}
    return {n: value for n, value in values.items() if value is not None and value != getattr(default, n, None)}


def _small(name: str, value: Any, values: Mapping[str, Any]) -> Any:
    """A smaller value of a field; none where no rule is for it."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    if not numbers or not all(type(number) is int for number in numbers):
        return None
    if name in SMALL["widths"]["names"]:
        small = _scaled(numbers, 64) if len(numbers) > 1 else [32]
    elif name in SMALL["inner_widths"]["names"]:
        small = _scaled(numbers, 64)
    elif name in SMALL["heads"]["names"]:
        small = [number // min(numbers) for number in numbers] if len(numbers) > 1 else [min(4, value)]
    elif name == "num_key_value_heads" and value == values.get("num_attention_heads"):
        small = [4]
    elif name in SMALL["limits"]:
        small = [min(number, SMALL["limits"][name]) for number in numbers]
    else:
        return None
    return type(value)(small) if isinstance(value, (list, tuple)) else small[0]


def _scaled(numbers: list[int], largest: int) -> list[int]:
    """The numbers in their proportions, as multiples of 8."""
    return [max(8, round(number * largest / max(numbers) / 8) * 8) for number in numbers]


@torch.no_grad()
def vary_constants(model: nn.Module) -> None:
    """Draw parameters that begin as a constant: offsets around 0, gains from half to one and a half of their value."""
    for parameter in model.parameters():
        if (
            parameter.numel() > 1
            and parameter.is_floating_point()
            and bool((parameter == parameter.flatten()[0]).all())
        ):
            if parameter.flatten()[0] == 0:
                parameter.normal_(0, 0.1)
            else:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))


@torch.no_grad()
def settle(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Give batch normalisation the statistics of noise."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    if norms:
        model(**{name: torch.randn(16, *value.shape[1:]) for name, value in inputs.items()})
    model.eval()


def example(model: nn.Module, task: str) -> dict[str, Tensor]:
    """Noise of the sizes that the network takes, by the names of its arguments."""
    config: Any = model.config
    arguments = inspect.signature(model.forward).parameters
    if model.main_input_name == "input_ids" or task == "text classification":
        return _tokens(config, arguments)
    if task == "audio classification":
        return _sound(config, model.main_input_name)
    return _images(config, arguments, video=task == "video classification")


def _images(config: Any, arguments: Mapping[str, Any], video: bool) -> dict[str, Tensor]:
    """Images or videos; with a prompt around the image, or as patches, where the network takes them so."""
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or getattr(vision, "crop_size", None) or 64
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    name = next(name for name in arguments if name.startswith("pixel_values"))
    if video:
        frames = getattr(config, "num_frames", None) or config.frames_per_clip
        return {name: torch.randn(BATCH, frames, 3, height, width)}
    if "spatial_shapes" in arguments:
        rows, columns = 3, 4
        return {
            name: torch.randn(BATCH, rows * columns, 3 * vision.patch_size**2),
            "pixel_attention_mask": torch.ones(BATCH, rows * columns, dtype=torch.long),
            "spatial_shapes": torch.tensor([[rows, columns]] * BATCH),
        }
    images = {name: torch.randn(BATCH, 3, height, width)}
    if "input_ids" in arguments:
        prompt = _tokens(config, arguments)
        prompt["input_ids"][:, 1 : 1 + config.mm_tokens_per_image] = config.image_token_index
        return {**images, **prompt}
    return images


def _tokens(config: Any, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Token ids and a mask; the last text is padded at its end."""
    text = config.get_text_config()
    end, padding = (getattr(text, name, None) for name in ("eos_token_id", "pad_token_id"))
    ids = torch.randint(10, min(100, getattr(text, "vocab_size", 100)), (BATCH, TOKENS))
    mask = torch.ones_like(ids)
    ids[:, -1] = end if isinstance(end, int) else SPECIAL_TOKENS["eos_token_id"]
    if padding is not None:
        ids[-1, -4], ids[-1, -3:], mask[-1, -3:] = ids[-1, -1].clone(), padding, 0
    name = "input_ids" if "input_ids" in arguments else "inputs"
    return {name: ids, **({"attention_mask": mask} if "attention_mask" in arguments else {})}


def _sound(config: Any, name: str) -> dict[str, Tensor]:
    """A waveform, or a spectrogram of the size that the network takes."""
    if hasattr(config, "feature_projection_input_dim"):
        return {name: torch.randn(BATCH, 20, config.feature_projection_input_dim)}
    if name == "input_features":
        return {name: torch.randn(BATCH, config.num_mel_bins, 2 * config.max_source_positions)}
    if hasattr(config, "num_mel_bins"):
        return {name: torch.randn(BATCH, config.max_length, config.num_mel_bins)}
    return {name: torch.randn(BATCH, SAMPLES)}
