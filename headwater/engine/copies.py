"""Copies of a network that run in eval mode and leave the user's as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from headwater.engine.guards.signature import BY_IDENTITY, computes_a_weight
from headwater.errors import InputError


def shared_copy(model: nn.Module, to_run: bool = False) -> nn.Module:
    """A copy of the modules that shares every tensor and array with ``model``, in eval mode, without observing hooks.

    To run it, ``to_run`` gives it buffers of its own, and such weights of its own as a forward writes over (embeddings
    with ``max_norm``): a network that counts its calls does not change the user's.

    Hooks of ``torch.nn.utils`` that compute a weight (weight norm, spectral norm, pruning) are part of the network and
    stay. A copy of a transformers network keeps no key-value cache, which is no output to explain, and multiplies by
    the chosen experts' matrices example by example, so that the examples of a batch stay apart.
    """
    memo: dict[int, Any] = {id(data): data for data in (*_data(model), *_cards(model))}
    if to_run:
        embeddings = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        for written in (*model.buffers(), *(m.weight for m in embeddings if m.max_norm is not None)):
            memo[id(written)] = written.detach().clone()
    saved = [(module, {name: module.__dict__.get(name) for name in _HOOKS}) for module in model.modules()]
    for _, hooks in saved:
        for owner in hooks.values():
            if owner is not None:
                memo[id(owner)] = type(owner)((key, hook) for key, hook in owner.items() if computes_a_weight(hook))
    try:
        copied = copy.deepcopy(model, memo).eval()
    except Exception as error:  # whatever an attribute's own copying raises
        raise InputError(
            f"{type(model).__name__} cannot be copied, since an attribute of its modules cannot: {error}. Keep locks, "
            "generators, open files and the like outside of the modules"
        ) from error
    for module in copied.modules():
        if "_output_capturing_hooks_installed" in vars(module):  # transformers', which are hooks that the copy lacks
            module._output_capturing_hooks_installed = False  # type: ignore[assignment]
        config: Any = getattr(module, "config", None)
        settings = getattr(config, "__dict__", {})
        if settings.get("use_cache") is True:
            config.use_cache = False
        if settings.get("_experts_implementation_internal") is not None:
            config._experts_implementation = "batched_mm"
    return copied


def own_copy(model: nn.Module, device: str) -> nn.Module:
    """Like :func:`shared_copy`, with tensors of its own on ``device``."""
    return copy.deepcopy(shared_copy(model)).to(device)


def _cards(model: nn.Module) -> Iterator[Any]:
    """What headwater itself has left at the modules, which no forward reads."""
    for module in model.modules():
        for value in vars(module).values():
            if type(value).__module__.startswith("headwater."):
                yield value


def _data(model: nn.Module) -> Iterator[Tensor | np.ndarray]:
    """Parameters, buffers, and tensors and arrays among the modules' attributes, in lists, dicts and objects too."""
    waiting: list[Any] = [model]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (Tensor, np.ndarray)):
            yield value
        elif isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple, set)):
            waiting += value
        elif isinstance(value, nn.Module) or type(value).__module__.partition(".")[0] not in {
            *BY_IDENTITY,
            "transformers",
        }:
            waiting += getattr(value, "__dict__", {}).values()


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
