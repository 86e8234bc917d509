"""What a network's forward depends on besides its weights, as a value that can be compared between two calls.

A trace holds as long as the code of ``forward`` and what that code reads are the same. Which attributes it reads is
known from the code itself: every name that it loads, and the code that it reaches by these names, until nothing is
added. So an attribute that a network only writes (its last feature map, a trainer) does not count.
"""

from __future__ import annotations

import dis
import enum
import functools
import sys
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater.engine.guards.checksum import checksum, same
from headwater.engine.trace import computes_a_weight
from headwater.engine.weights import identity_of

_DYNAMIC = frozenset(("getattr", "vars", "__dict__", "eval", "exec", "attrgetter", "__getattribute__"))
_START = frozenset(("forward", "__call__"))
_PLAIN = (int, str, bytes, bool, complex, range, type(None), type(...), torch.dtype, torch.device, torch.layout)
_ROOTS = (object, nn.Module)
_NOT_READ = frozenset(("training", *vars(nn.Module())))
_FOREIGN = frozenset(
    [
        *sys.stdlib_module_names,
        *("builtins", "enum", "typing", "abc", "functools", "logging", "threading", "_thread", "weakref"),
        *("torch", "numpy", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"),
    ]
)
"""Packages whose objects are known by which they are, without a look at what they hold."""


class Fingerprint:
    """A model's modules, code and attributes at one moment.

    It differs when a module, its class, ``forward`` or a function that ``forward`` calls is another; when a value that
    this code reads has changed: an attribute of a module or of its class, an item of its lists and dicts, a tensor
    that is no parameter or buffer, a default argument, a variable of an enclosing function, a global; and when a
    parameter or buffer is added, removed, shared, or of another shape or dtype. Training mode, gradients and observing
    hooks do not count, nor do values of parameters and buffers.

    Of Python modules that ``forward`` reads (``settings.SCALE``) it sees what they hold under the names that the code
    loads. It does not see inside torch, numpy and the standard library, or objects that are made by compiled code.
    """

    def __init__(self, model: nn.Module) -> None:
        walk = _Walk(model, _START)
        while not walk.loaded <= walk.names:  # what is reached by a name may load further names
            walk = _Walk(model, walk.names | walk.loaded, walk.dynamic)
        self._seen = walk
        self._sums = checksum(walk.tensors)

    def holds(self, model: nn.Module) -> bool:
        """Whether the model is as it was."""
        walk = _Walk(model, self._seen.names, self._seen.everything)
        return walk.tokens == self._seen.tokens and same(self._sums, checksum(walk.tensors))


class _Walk:
    """One walk through a model.

    Attributes:
        names: of the attributes to look at.
        everything: look at all attributes, since some code computes their names.
        tokens: what was seen.
        tensors: whose bytes count: those that ``forward`` reads and the trace does not name.
        loaded: names that the code loads.
        dynamic: whether some code computes attributes' names.
    """

    def __init__(self, model: nn.Module, names: frozenset[str], everything: bool = False) -> None:
        self.names, self.everything = names, everything
        self.tokens: list[Any] = []
        self.tensors: list[Tensor] = []
        self.loaded: set[str] = set()
        self.dynamic = False
        self._met: dict[int, int] = {}
        self._held: list[Any] = []  # what is known by its address stays alive, so that nothing else gets that address
        self._registered = {id(module) for module in model.modules()}
        self._module(model)

    # -- modules and other objects ------------------------------------------------------------------------------------

    def _module(self, module: nn.Module) -> None:
        if self._again(module):
            return
        state = vars(module)
        hidden = id(module) not in self._registered  # in a list, say: its weights have no names
        self._class(type(module))
        for kind in ("_parameters", "_buffers"):
            for name, tensor in state[kind].items():
                self.tokens.append(name)
                if tensor is None:
                    self.tokens.append(None)
                    continue
                # Which tensors are one, but not which it is: those with names are looked up at each call.
                self.tokens += self._number(tensor), tensor.shape, tensor.dtype, tensor.device
                if hidden:
                    self._bytes(tensor)
        computed = self._hooks(state)
        for name in self._of_interest(state):
            if name not in _NOT_READ and name not in computed:
                self.tokens.append(name)
                self.value(state[name])
        for name, child in state["_modules"].items():
            self.tokens.append(name)
            self.value(child)

    def _hooks(self, state: Mapping[str, Any]) -> set[str]:
        """Note the hooks that compute a weight. Returns the names of the attributes that they write."""
        written: set[Any] = set()
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            for hook in state[kind].values():
                if computes_a_weight(hook):
                    self.value(hook)
                    written |= {getattr(hook, "_tensor_name", None), getattr(hook, "name", None)}
        return written

    def _object(self, item: Any) -> None:
        if self._again(item):
            return
        kind = type(item)
        self._class(kind)
        state = getattr(item, "__dict__", {})
        for name in self._of_interest(state):
            self.tokens.append(name)
            self.value(state[name])
        for owner in kind.__mro__:
            for name in self._of_interest(dict.fromkeys(_slots(owner))):
                self.tokens.append(name)
                self.value(getattr(item, name, None))

    def _of_interest(self, state: Mapping[str, Any]) -> list[str]:
        return list(state) if self.everything else [name for name in state if name in self.names]

    def _class(self, kind: type) -> None:
        """Methods, properties and values of a class that the code reads."""
        if self._again(kind):
            return
        for owner in kind.__mro__:
            if owner not in _ROOTS:
                everything = self.everything and not _foreign(owner)
                for name, value in list(vars(owner).items()):
                    if name in self.names or _implicit(name, value) or (everything and not _special(name)):
                        self.tokens.append(name)
                        self.value(value)

    # -- values -------------------------------------------------------------------------------------------------------

    def value(self, value: Any) -> None:
        """Note any value that the code reads."""
        kind = value.__class__
        if kind is float:
            self.tokens.append(value.hex())
        elif kind in _PLAIN:
            self.tokens.append(kind)
            self.tokens.append(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, nn.Parameter):
            self.tokens.append(self._number(value))
            self._bytes(value)
        elif isinstance(value, Tensor):
            self.tokens.append(self._number(value))
            self.tokens.append(identity_of(value) if value.layout == torch.strided else id(value))
            self._held.append(value.detach())
            self._bytes(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            self.tokens.append((value.dtype.str, value.shape))
            self._bytes(torch.from_numpy(np.ascontiguousarray(value).reshape(-1).view(np.uint8)))
        elif isinstance(value, np.generic):
            self.tokens.append((value.dtype.str, value.tobytes()))
        elif isinstance(value, (dict, tuple, list, set, frozenset, deque, Mapping)):
            self._container(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.value(value.__func__)
            self.value(value.__self__)
        elif isinstance(value, (staticmethod, classmethod)):
            self.value(value.__func__)
        elif isinstance(value, property):
            self.value(value.fget)
        elif isinstance(value, functools.cached_property):
            self.value(value.func)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self.value(part)
        elif isinstance(value, type) and not _foreign(value):
            self._class(value)
        elif isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in _FOREIGN:
            self._namespace(value)
        elif isinstance(value, (types.ModuleType, type, enum.Enum)) or _foreign(kind):
            self._again(value)
        elif isinstance(value, (int, float, str, bytes, complex)):
            self.tokens.append((kind, value))
        else:
            self._object(value)

    def _namespace(self, module: types.ModuleType) -> None:
        """What a Python module holds under the names that the code loads."""
        if not self._again(module):
            for name in sorted(self.names & vars(module).keys()):
                if not _special(name):
                    self.tokens.append(name)
                    self.value(vars(module)[name])

    def _bytes(self, tensor: Tensor) -> None:
        if tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested):
            self.tensors.append(tensor.detach())

    def _number(self, item: Any) -> int:
        """How many others were met before this one."""
        return self._met.setdefault(id(item), len(self._met))

    def _container(self, items: Any) -> None:
        if self._again(items):
            return
        self.tokens.append(len(items))
        if isinstance(items, Mapping):
            for key, item in items.items():
                self.value(key)
                self.value(item)
        elif isinstance(items, (set, frozenset)):
            self.tokens.append(frozenset(item for item in items if isinstance(item, _PLAIN)))
        else:
            for item in items:
                self.value(item)
            if isinstance(items, (tuple, list)) and hasattr(items, "__dict__"):
                self._object(items)

    def _function(self, function: types.FunctionType) -> None:
        if self._again(function):
            return
        attributes, names, dynamic = _reads(function.__code__)
        self.tokens.append(function.__code__)
        self.loaded |= attributes
        ours = not (function.__module__ or "").startswith("torch.")
        self.dynamic |= dynamic and ours
        for default in (function.__defaults__, function.__kwdefaults__):
            if default:
                self.value(default)
        for cell in function.__closure__ or ():
            try:
                self.value(cell.cell_contents)
            except ValueError:  # still empty
                self.tokens.append(None)
        if ours:
            for name in names:
                if name in function.__globals__:
                    self.tokens.append(name)
                    self.value(function.__globals__[name])

    def _again(self, item: Any) -> bool:
        """Note which object this is; whether it was met before."""
        self.tokens.append(id(item))
        known = id(item) in self._met
        if not known:
            self._number(item)
            self._held.append(item)
        return known


def _special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _implicit(name: str, value: Any) -> bool:
    """Methods that are called without being named, as ``__getitem__``; not those that make, show or store an object."""
    return _special(name) and isinstance(value, types.FunctionType) and name[2:-2] not in _NEVER_IN_FORWARD


_NEVER_IN_FORWARD = frozenset(
    [
        *("init", "new", "init_subclass", "post_init", "del", "setattr", "delattr", "getattr", "getattribute", "dir"),
        *("repr", "str", "format", "eq", "hash", "sizeof"),
        *("getstate", "setstate", "reduce", "reduce_ex", "copy", "deepcopy"),
    ]
)


def _foreign(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _FOREIGN


def _slots(owner: type) -> tuple[str, ...]:
    slots = vars(owner).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


@functools.lru_cache(maxsize=4096)
def _reads(code: types.CodeType) -> tuple[frozenset[str], tuple[str, ...], bool]:
    """Attributes and globals that code loads, functions inside it included, and whether it computes attributes' names.

    A name that is given to ``getattr`` as a constant counts as an attribute.
    """
    attributes: set[str] = set()
    names: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            attributes.add(instruction.argval)
        elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names[instruction.argval] = None
    dynamic = not _DYNAMIC.isdisjoint({*names, *attributes})
    for constant in code.co_consts:
        if isinstance(constant, str) and constant.isidentifier():
            attributes.add(constant)
        elif isinstance(constant, types.CodeType):
            inner = _reads(constant)
            attributes |= inner[0]
            names.update(dict.fromkeys(inner[1]))
            dynamic |= inner[2]
    return frozenset(attributes), tuple(names), dynamic
