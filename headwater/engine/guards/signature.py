"""What of a model's module tree its trace depends on, as a value that two calls can compare.

It costs a walk over the modules' attributes at each call, and reads no source code: a global or an enclosing variable
that ``forward`` reads and somebody changes is not seen, see :meth:`headwater.LRP.retrace`.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Signature = dict[tuple[str, str], Any]
"""For each module's path and attribute what is known of it."""
_PLAIN = (bool, int, float, complex, str, bytes, range, type(None), type(...), torch.dtype, torch.device, torch.layout)
_NOT_READ = frozenset(("training", *vars(nn.Module())))
_BY_IDENTITY = frozenset(
    [*sys.stdlib_module_names, "torch", "numpy", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"]
)
"""Packages whose objects are compared by identity, without a look at what they hold."""
_SMALL = 4096
"""Bytes of a tensor or array that are compared by value; a larger one that forward reads is a constant of the graph."""
_DEPTH = 6
"""Objects inside of objects that are looked into."""


class Same:
    """An object by its identity. It is kept alive, so that no other object gets its address."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


def signature(model: nn.Module) -> Signature:
    """What :func:`~headwater.engine.trace.trace` depends on.

    For each module its class and that class's ``forward``, a ``forward`` of its own, hooks that compute weights, the
    names, shapes, dtypes and devices of parameters and buffers and which of them are one tensor, and its other
    attributes: numbers, strings, dtypes, and tuples, lists, sets and dicts of them by value; objects of the user's
    classes by their own attributes; small tensors and arrays by value; everything else by identity. Training mode,
    gradients, observing hooks and the values of parameters do not count.
    """
    return _Walk(model).found


def changed(before: Signature, after: Signature) -> frozenset[tuple[str, str]]:
    """Modules and attributes in which two signatures differ."""
    absent = object()
    return frozenset(key for key in before.keys() | after.keys() if before.get(key, absent) != after.get(key, absent))


class _Walk:
    def __init__(self, model: nn.Module) -> None:
        self.found: Signature = {}
        self._numbers: dict[int, int] = {}  # of tensors and containers, in the order in which they were met
        for path, module in model.named_modules(remove_duplicate=False):
            self._module(path, module)

    def _module(self, path: str, module: nn.Module) -> None:
        known = id(module) in self._numbers
        self.found[path, ""] = self._number(module)
        if not known:
            for name, value in self._attributes(module):
                self.found[path, name] = value

    def _attributes(self, module: nn.Module) -> list[tuple[str, Any]]:
        state = vars(module)
        kind = type(module)
        found: list[tuple[str, Any]] = [("class", (Same(kind), Same(kind.forward)))]
        for registered in ("_parameters", "_buffers"):
            for name, tensor in state[registered].items():
                found.append((name, tensor if tensor is None else self._parameter(tensor)))
        hooks = state["_forward_pre_hooks"]
        if hooks:
            found.append(("hooks", tuple(Same(hook) for hook in hooks.values() if computes_a_weight(hook))))
        found += [(name, self._value(value, 0)) for name, value in state.items() if name not in _NOT_READ]
        return found

    def _parameter(self, tensor: Tensor) -> tuple[Hashable, ...]:
        return self._number(tensor), tensor.shape, tensor.dtype, tensor.device

    def _number(self, item: Any) -> int:
        """How many others were met before this one: objects that are one have one number."""
        return self._numbers.setdefault(id(item), len(self._numbers))

    def _value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _PLAIN or isinstance(value, enum.Enum):
            return kind, value
        if isinstance(value, Tensor):
            small = value.numel() * value.itemsize <= _SMALL and value.layout == torch.strided
            plain = small and not (value.is_meta or value.is_quantized or value.is_nested or value.requires_grad)
            held = value.detach().flatten().tolist() if plain else Same(value)
            return value.shape, value.dtype, value.device, repr(held) if plain else held
        if isinstance(value, (np.ndarray, np.generic)):
            return (value.shape, value.dtype, value.tobytes()) if value.nbytes <= _SMALL else Same(value)
        if depth > _DEPTH:
            return Same(value)
        if isinstance(value, nn.Module):  # in a list, say: torch does not know it as a part of the model
            first = id(value) not in self._numbers
            inside = [(name, self._value(part, depth + 1)) for name, part in value._modules.items()] if first else []
            return self._number(value), self._attributes(value) if first else None, inside
        if isinstance(value, functools.partial):
            return tuple(self._value(part, depth + 1) for part in (value.func, value.args, value.keywords))
        if isinstance(value, types.MethodType):
            return Same(value.__func__), Same(value.__self__)
        if isinstance(value, (dict, tuple, list, set, frozenset, deque, Mapping)):
            return self._container(value, depth + 1)
        if isinstance(value, (type, types.ModuleType)) or callable(value) or not hasattr(value, "__dict__"):
            return Same(value)
        if kind.__module__.partition(".")[0] in _BY_IDENTITY:
            return Same(value)
        return Same(kind), self._container(vars(value), depth + 1)

    def _container(self, items: Any, depth: int) -> Any:
        if id(items) in self._numbers:
            return self._number(items)
        self._number(items)
        if isinstance(items, Mapping):
            keys = [key if isinstance(key, _PLAIN) else Same(key) for key in items]
            return keys, [self._value(item, depth) for item in items.values()]
        if isinstance(items, (set, frozenset)):
            return frozenset(item for item in items if isinstance(item, _PLAIN))
        return type(items), [self._value(item, depth) for item in items]


def computes_a_weight(hook: Any) -> bool:
    """Whether a hook is one of ``torch.nn.utils`` or of a class derived from them, which is part of the network."""
    return any(kind.__module__.startswith("torch.nn.utils") for kind in type(hook).__mro__)
