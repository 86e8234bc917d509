"""What of a model's module tree its trace depends on, as a value that two calls can compare.

It costs a walk over the modules' attributes at each call, and reads no source code: a global or an enclosing variable
that ``forward`` reads and somebody changes is not seen, see :meth:`headwater.LRP.retrace`.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
import weakref
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
BY_IDENTITY = frozenset(
    [
        *(sys.stdlib_module_names - {"argparse", "types", "collections"}),
        *("torch", "numpy", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "headwater"),
    ]
)
"""Packages whose objects are compared by identity, without a look at what they hold."""
_WHOLE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
"""Objects that are compared by identity whatever package they are of."""
_SMALL = 4096
"""Bytes of a tensor or array that are compared by value; a larger one that forward reads is a constant of the graph."""
_DEPTH = 6
"""Objects inside of objects that are looked into."""


class Same:
    """An object by its identity. It is not kept alive; one that is gone equals none."""

    __slots__ = ("_hash", "_held")

    def __init__(self, held: Any) -> None:
        self._hash = id(held)
        try:
            self._held: Any = weakref.ref(held)
        except TypeError:  # of a type without weak references
            self._held = lambda: held

    def __eq__(self, other: object) -> bool:
        held = self._held()
        return held is not None and isinstance(other, Same) and held is other._held()

    def __hash__(self) -> int:
        return self._hash


def signature(model: nn.Module) -> Signature:
    """What :func:`~headwater.engine.trace.trace` depends on.

    For each module its class, that class's functions and plain attributes, a ``forward`` of its own, hooks that compute
    weights, the names, shapes, dtypes and devices of parameters and buffers and which of them are one tensor, and its
    other attributes: numbers, strings, dtypes, and tuples, lists, sets and dicts of them by value; objects of the
    user's classes by their own attributes; small tensors and arrays by value; everything else by identity. Training
    mode, gradients, what a forward with gradients has computed, observing hooks and values of parameters do not count.
    """
    return _Walk(model).found


def changed(before: Signature, after: Signature) -> frozenset[tuple[str, str]]:
    """Modules and attributes in which two signatures differ."""
    absent = object()
    return frozenset(key for key in before.keys() | after.keys() if before.get(key, absent) != after.get(key, absent))


class _Walk:
    """One walk over a model. What was met before is known by the place where it was met first."""

    def __init__(self, model: nn.Module) -> None:
        self.found: Signature = {}
        self._places: dict[int, str] = {}
        self._classes: dict[type, Any] = {}
        self._at, self._inside = "", 0  # the attribute that is looked into, and how many things were met in it
        modules = list(model.named_modules(remove_duplicate=False))
        for path, module in modules:
            self._places.setdefault(id(module), path)
        seen: set[int] = set()
        for path, module in modules:
            self.found[path, ""] = self._places[id(module)]
            if id(module) not in seen:
                seen.add(id(module))
                self.found.update(((path, name), value) for name, value in self._attributes(path, module))

    def _attributes(self, path: str, module: nn.Module, hidden: bool = False) -> list[tuple[str, Any]]:
        """What is known of a module; of one that torch does not know as a part of the model the very tensors, too."""
        state = vars(module)
        found: list[tuple[str, Any]] = [("class", self._class(type(module)))]
        for registered in ("_parameters", "_buffers"):
            for name, tensor in state[registered].items():
                self._at, self._inside = f"{path}.{name}", 0
                found.append((name, tensor if tensor is None else self._parameter(tensor)))
                if hidden and tensor is not None:
                    found.append((f"{name}, hidden", (Same(tensor), tensor.data_ptr())))
        hooks = state["_forward_pre_hooks"]
        if hooks:
            found.append(("hooks", tuple(Same(hook) for hook in hooks.values() if computes_a_weight(hook))))
        for name, value in state.items():
            if name not in _NOT_READ:
                self._at, self._inside = f"{path}.{name}", 0
                found.append((name, self._value(value, 0)))
        return found

    def _class(self, kind: type) -> Any:
        """A class, with its functions and plain attributes; of torch's own classes which they are."""
        if kind not in self._classes:
            own = [c for c in kind.__mro__ if c.__module__.partition(".")[0] not in BY_IDENTITY and c is not object]
            read = [
                (name, Same(value) if isinstance(value, types.FunctionType) else value)
                for c in own
                for name, value in vars(c).items()
                if isinstance(value, types.FunctionType) or (type(value) in _PLAIN and not name.startswith("__"))
            ]
            self._classes[kind] = (Same(kind), Same(getattr(kind, "forward", kind)), read)
        return self._classes[kind]

    def _parameter(self, tensor: Tensor) -> tuple[Hashable, ...]:
        return self._place(tensor), tensor.shape, tensor.dtype, tensor.device

    def _place(self, item: Any) -> str:
        """Where an object was met first."""
        self._inside += 1
        return self._places.setdefault(id(item), f"{self._at}#{self._inside}")

    def _value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _PLAIN or isinstance(value, enum.Enum):
            return kind, value
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return (value.shape, value.dtype, value.tobytes()) if value.nbytes <= _SMALL else Same(value)
        if id(value) in self._places:
            return self._places[id(value)]
        if depth > _DEPTH or isinstance(value, _WHOLE):
            return Same(value)
        if isinstance(value, nn.Module):  # in a list, say: torch does not know it as a part of the model
            place = self._place(value)
            inside = [(name, self._value(part, depth + 1)) for name, part in value._modules.items()]
            return place, self._attributes(place, value, hidden=True), inside
        if isinstance(value, functools.partial):
            return tuple(self._value(part, depth + 1) for part in (value.func, value.args, value.keywords))
        if isinstance(value, types.MethodType):
            return Same(value.__func__), self._places.get(id(value.__self__)) or Same(value.__self__)
        if isinstance(value, (dict, tuple, list, set, frozenset, deque, Mapping)):
            return self._container(value, depth + 1)
        if kind.__module__.partition(".")[0] in BY_IDENTITY:
            return Same(value)
        self._place(value)
        slots = [name for c in kind.__mro__ for name in _slots(c) if hasattr(value, name)]
        read = [(name, self._value(getattr(value, name), depth + 1)) for name in slots]
        read += [(name, self._value(item, depth + 1)) for name, item in getattr(value, "__dict__", {}).items()]
        return self._class(kind), read

    def _tensor(self, tensor: Tensor) -> Any:
        if tensor.grad_fn is not None:
            return "computed"  # what a forward with gradients has left behind
        small = tensor.numel() * tensor.itemsize <= _SMALL and tensor.layout == torch.strided
        plain = small and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested or tensor.requires_grad)
        held = repr(tensor.detach().flatten().tolist()) if plain else Same(tensor)
        return tensor.shape, tensor.dtype, tensor.device, held

    def _container(self, items: Any, depth: int) -> Any:
        self._place(items)
        if isinstance(items, Mapping):
            keys = [key if isinstance(key, _PLAIN) else Same(key) for key in items]
            return keys, [self._value(item, depth) for item in items.values()]
        if isinstance(items, (set, frozenset)):
            return frozenset(item if isinstance(item, _PLAIN) else Same(item) for item in items)
        return type(items), [self._value(item, depth) for item in items]


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def computes_a_weight(hook: Any) -> bool:
    """Whether a hook is one of ``torch.nn.utils`` or of a class derived from them, which is part of the network."""
    return any(kind.__module__.startswith("torch.nn.utils") for kind in type(hook).__mro__)
