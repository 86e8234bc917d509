"""What the arguments of operations stand for: the model's parameters, looked up at each call, and constants."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from headwater.engine import packing
from headwater.engine.graph import BatchSize, Constant, Graph, Operation, Value, Weight, leaves
from headwater.engine.guards.checksum import Checksum, same
from headwater.engine.inputs import Inputs
from headwater.errors import InputError


class WeightStore:
    """Live parameters and buffers of a model by name, with a cache that lasts as long as they do not change.

    A change is noticed by a tensor's identity, layout and version. Where these are as before, it is noticed by a
    checksum over all bytes, which sees what has no version: writes through ``.data``, through a numpy view or from
    another process, values swapped within a tensor. :func:`~headwater.engine.guards.checksum.checksum` says with what
    certainty.

    Args:
        model: whose tensors they are.
        names: of the tensors.
        constants: further tensors from which something may be derived.
        cache: what is derived is kept, and packed weights (:mod:`headwater.engine.packing`); else it is made anew each
            time.
    """

    def __init__(
        self, model: nn.Module, names: Iterable[str], constants: Iterable[Tensor] = (), cache: bool = True
    ) -> None:
        self.model = model
        self._caching, self._images = cache, 0
        self._lock = threading.Lock()
        self.names = tuple(dict.fromkeys(names))
        self.constants = tuple(constants)
        self.tensors: dict[str, Tensor] = {}
        self._cache: dict[Any, tuple[Tensor | None, ...]] = {}
        self._seen: tuple[list[Any], Checksum, list[Tensor]] | None = None

    def refresh(self, images: int | None = None) -> None:
        """Look the tensors up again; forget what was derived if any has changed. Threads may call it side by side.

        Args:
            images: how many the sweep is for; weights packed for another number are freed.

        Raises:
            InputError: a tensor is gone, or holds NaN or infinity.
        """
        with self._lock:
            tensors = live_tensors(self.model, self.names)
            watched = [*tensors.values(), *self.constants]
            identity = [identity_of(tensor) for tensor in watched]
            seen, self._seen = self._seen, None
            checksum = seen[1] if seen and seen[0] == identity else Checksum(watched)
            sums = checksum()
            if not (seen and checksum is seen[1] and same(seen[2], sums)):
                check_finite(tensors)
                self.tensors, self._cache = tensors, {}
                self._cache_packed(tensors.values())
            self._seen = identity, checksum, sums
            if images is not None and images != self._images:
                self._images = images
                for tensor in (*self.tensors.values(), *itertools.chain(*list(self._cache.values()))):
                    if tensor is not None:
                        packing.free(tensor)

    def stand_for(self, tensors: Mapping[str, Tensor], derived: Mapping[Any, Any]) -> None:
        """Give these until the next :meth:`refresh`, as while a sweep is traced."""
        self.tensors, self._cache, self._seen = dict(tensors), dict(derived), None

    def derived(self, key: Any, make: Callable[[], tuple[Tensor | None, ...]]) -> tuple[Tensor | None, ...]:
        """``make()``, a tuple of tensors or ``None``, kept under ``key`` until a weight changes."""
        kept = self._cache  # another thread may replace it meanwhile
        if key in kept:
            return kept[key]
        made = make()
        if self._caching:
            kept[key] = made
            self._cache_packed(made)
        return made

    def _cache_packed(self, tensors: Iterable[Tensor | None]) -> None:
        for tensor in tensors if self._caching else ():
            if tensor is not None:
                packing.cache(tensor)


class Bindings:
    """What the arguments of operations stand for: called with a leaf of them, it gives the tensor or number.

    Args:
        graph: whose operations are bound.
        tensors: gives the model's parameters and buffers by name, as they are now.
    """

    def __init__(self, graph: Graph, tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        self._graph, self._tensors = graph, tensors
        self._plain = [operation for operation in graph.operations if not operation.inputs or operation.whole]
        # What depends on the call: the inputs, what chooses, and what is computed from them or from how many there are.
        self._varying = {given.name for given in graph.inputs} | {o.name for o in graph.operations if o.beside}
        for operation in self._plain:
            if isinstance(operation.target, BatchSize) or self.varies(operation):
                self._varying.add(operation.name)
        self._values = threading.local()  # each thread its own, which may explain another number of images

    def __call__(self, leaf: Any) -> Any:
        if isinstance(leaf, Weight):
            bound = self._tensors()[leaf.name]
        elif isinstance(leaf, Constant):
            bound = leaf.tensor
        elif isinstance(leaf, Value):
            bound = self._values.by_name[leaf.name]
        else:
            return leaf
        return widened(bound) if self._widening and isinstance(bound, Tensor) else bound

    def note(self, name: str, value: Tensor) -> None:
        """Let a value that the sweep has computed be an argument of operations that relevance does not pass it in."""
        self._values.by_name[name] = value

    def varies(self, operation: Operation) -> bool:
        """Whether an argument depends on the call, besides the values that relevance goes back to."""
        found = leaves((operation.args, operation.kwargs))
        carrying = set() if operation.whole or operation.embeds else set(operation.inputs)
        return any(
            isinstance(leaf, Value) and leaf.name in self._varying and leaf.name not in carrying for leaf in found
        )

    @property
    def _widening(self) -> bool:
        return getattr(self._values, "widening", False)

    @contextmanager
    def widening(self) -> Iterator[None]:
        """Give tensors in at least single precision, in this thread: what relevance is divided by."""
        self._values.widening = True
        try:
            yield
        finally:
            self._values.widening = False

    def compute(self, inputs: Inputs) -> None:
        """Compute what relevance does not pass: what depends on weights, sizes, masks and whole numbers alone."""
        values: dict[str, Any] = {g.name: t for g, t in zip(self._graph.inputs, inputs.tensors, strict=True)}
        self._values.by_name = values
        for operation in self._plain:
            args, kwargs = operation.bind(self)
            values[operation.name] = operation.target(*args, **kwargs)
        for given in self._graph.sources:
            if not given.ids:
                del values[given.name]


def widened(tensor: Tensor) -> Tensor:
    """The tensor in single precision if it is a half or smaller; any other as it is."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor


def identity_of(tensor: Tensor) -> tuple[Any, ...]:
    """What differs when another tensor has taken a tensor's place, or torch has written to it."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def live_tensors(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """The model's tensors of these names as they are now, without history.

    Raises:
        InputError: a tensor is gone.
    """
    modules = {"": model}

    def module_at(path: str) -> nn.Module:
        if path not in modules:
            above, _, leaf = path.rpartition(".")
            modules[path] = module_at(above).get_submodule(leaf)
        return modules[path]

    tensors = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        try:
            tensors[name] = getattr(module_at(path), leaf).detach()
        except AttributeError as error:
            raise InputError(f"the model no longer has {name!r}; make a new LRP after changing its layers") from error
    return tensors


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite.

    Raises:
        InputError: a tensor holds NaN or infinity.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not _finite(tensor):
            raise InputError(f"weight {name!r} holds NaN or infinity; a map made from it would mean nothing")


def _finite(tensor: Tensor) -> bool:
    if tensor.itemsize == 1:  # torch has no extrema of 8-bit floats
        return bool(tensor.float().isfinite().all())
    low, high = tensor.aminmax()  # NaN where any value is; many times faster than asking each value
    return bool(low.isfinite() & high.isfinite())
