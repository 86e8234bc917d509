"""Weights from files, without running any code that a file may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from headwater.errors import CheckpointError
from headwater.files import is_file


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without running any code that the file may hold.

    Raises:
        CheckpointError: the file is missing, broken, holds no state dict, or needs code to be run.
    """
    if not is_file(path):
        raise CheckpointError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from error
    except Exception as error:  # broken archives raise anything from EOFError to RuntimeError
        raise CheckpointError(
            f"{path} was refused: it is broken or holds more than tensors, and code in a checkpoint is never run "
            f"({type(error).__name__}). Save model.state_dict(), or convert to safetensors."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{path} holds no state dict (names with tensors)")
    unnamed = [key for key in content if not isinstance(key, str)]
    if unnamed:
        raise CheckpointError(f"{path} holds no state dict: its keys must be names, one is {unnamed[0]!r}")
    for key, tensor in content.items():
        kinds = {
            "meta (without values)": tensor.is_meta,
            "quantised": tensor.is_quantized,
            "sparse": tensor.layout != torch.strided,
            "complex": tensor.is_complex(),
        }
        kind = next((name for name, is_it in kinds.items() if is_it), None)
        if kind is not None:
            raise CheckpointError(f"{path}: {key} is {kind}; save plain dense tensors of real numbers")
    for prefix in ("module.", "model.", "network."):
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return dict(content)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str, arch: str) -> None:
    """Load weights, or say what does not fit."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    kinds = [
        f"{name} {str(state[name].dtype).removeprefix('torch.')}"
        for name in expected
        if name in state and expected[name].is_floating_point() and not state[name].is_floating_point()
    ]
    problems = [
        f"{what}: {', '.join(found[:3])}{' ...' if len(found) > 3 else ''} ({len(found)})"
        for what, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("not floating point", kinds),
        )
        if found
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit {arch}; {'; '.join(problems)}")
    model.load_state_dict({name: as_parameter(model, name, tensor) for name, tensor in state.items()}, strict=False)


def as_parameter(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The stored tensor in the dtype that the model has it in (weights are stored in half precision)."""
    return tensor.to(model.state_dict()[name].dtype)
