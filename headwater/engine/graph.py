"""A model as a flat list of ATen operations, in the order in which data flows.

The list holds no parameters or buffers: they are named, and looked up in the user's model at each call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

Shape = tuple[int | None, ...]
"""Size of each dimension; ``None`` where it grows with the number of images."""


@dataclass(frozen=True)
class Value:
    """An argument that an earlier operation (or an input) provides."""

    name: str


@dataclass(frozen=True)
class Weight:
    """An argument that is a parameter or buffer of the model, by its qualified name."""

    name: str


@dataclass(frozen=True)
class Constant:
    """An argument that is a tensor created inside ``forward`` while tracing."""

    tensor: Tensor = field(repr=False)


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its path, its class, and a key that tells repeated calls of one module apart."""

    path: str
    kind: str
    key: str


@dataclass(frozen=True)
class Pick:
    """One of several results: ``target(...)[index]``, as of ``chunk`` or ``unbind``."""

    target: Callable[..., Any]
    index: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.target(*args, **kwargs)[self.index]


@dataclass(frozen=True)
class OnACopy:
    """An operation that only exists in place, such as ``fill_diagonal_``, run on a copy of its first argument."""

    target: Callable[..., Any]

    def __call__(self, first: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.target(first.clone(), *args, **kwargs)


@dataclass(frozen=True)
class BatchSize:
    """A size that is computed from the number of examples, by torch's symbolic expression for it."""

    expression: Any

    def __call__(self, x: Tensor) -> int:
        sizes = dict.fromkeys(self.expression.free_symbols, x.shape[0])  # which are symbols while tracing
        return sympy_interp(PythonReferenceAnalysis, sizes, self.expression)


@dataclass(frozen=True)
class Operation:
    """One ATen operation.

    Attributes:
        name: unique name of the operation and of the value it produces.
        target: the function to run, never in place.
        args, kwargs: its arguments; tensors appear as ``Value``, ``Weight`` or ``Constant``.
        calls: the module calls that enclose it, outermost first.
        inputs: names of the tensors among its arguments that relevance can go back to, in argument order: those that
            are computed from the inputs' floating-point values or, before an embedding, from token ids.
        whole: its result is whole numbers that are computed from token ids.
        embeds: its result is features, and is computed from token ids alone.
        beside: its result is computed from values that relevance can go back to, but only chooses or masks others, such
            as the indices of the largest; no relevance reaches it.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    calls: tuple[ModuleCall, ...]
    inputs: tuple[str, ...] = ()
    whole: bool = False
    embeds: bool = False
    beside: bool = False

    @property
    def kind(self) -> str:
        """ATen's name without overload or underscore: ``conv2d``, ``relu``, ``add``."""
        return operation_kind(self.target)

    @property
    def module(self) -> str:
        """Path of the innermost module that this operation belongs to; ``""`` is the model itself."""
        return self.calls[-1].path if self.calls else ""

    @property
    def looks_up(self) -> bool:
        """Whether it looks token ids up in a table: an embedding."""
        return self.embeds and self.kind in ("embedding", "index", "index_select")

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the parameters and buffers among the arguments."""
        return tuple(leaf.name for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Weight))

    def bind(self, lookup: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with every leaf replaced by ``lookup(leaf)``."""
        return rebuild(self.args, lookup), rebuild(self.kwargs, lookup)


@dataclass(frozen=True)
class GraphInput:
    """One of the tensors that a model is called with.

    Attributes:
        name: of its value.
        carries: relevance goes back to it; else it has none of its own, such as a mask.
        channels: its dimension of channels, over which a map sums; ``None`` where every value has a place of its own.
        ids: it holds token ids, which an embedding looks up.
    """

    name: str
    carries: bool = True
    channels: int | None = 1
    ids: bool = False


Activation = Literal["softmax", "sigmoid"]
"""What makes probabilities of a network's logits."""


@dataclass(frozen=True)
class Graph:
    """A model for inputs of one size, as a list of operations.

    Attributes:
        operations: in the order in which data flows.
        inputs: the tensors that the model is called with, in the order of the call.
        output: name of the value that is explained: the logits.
        batch: ``None`` when the list holds for any number of examples.
        shapes: shape of each value.
        head: ``"softmax"``, ``"log_softmax"`` or ``"sigmoid"`` where the model ends with one, which the list leaves
            out; ``"probabilities"`` or ``"chances"`` where the output is probabilities that were made otherwise, which
            do or don't sum to one; ``None`` where it is logits.
        returned: which of the tensors that the model returns, flattened, it is.
        classes_last: the model returns it with the classes in the last dimension, as for each token; here they are
            in dimension 1.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[GraphInput, ...]
    output: str
    batch: int | None
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    head: str | None = None
    returned: int = 0
    classes_last: bool = False

    @property
    def sources(self) -> tuple[GraphInput, ...]:
        """The inputs that relevance goes back to."""
        return tuple(given for given in self.inputs if given.carries)

    @property
    def weights(self) -> list[str]:
        """Names of the parameters and buffers that the operations take, one for each time."""
        return [name for operation in self.operations for name in operation.weights]

    def batch_dimension(self, name: str) -> int:
        """Which dimension of a value counts the examples; the first where the list is for one number of them."""
        shape = self.shapes.get(name, ())
        return shape.index(None) if None in shape else 0

    @property
    def input(self) -> str:
        """Name of the first input that relevance goes back to."""
        return self.sources[0].name

    def cuts(self) -> tuple[str, ...]:
        """Values that every path from the inputs to the output crosses, both ends included, in order.

        Relevance at each of them sums to the seed. A value is a cut if, once it is computed, nothing that was computed
        before it is still to be used. Of several inputs none is a cut by itself.
        """
        last_use = {name: k for k, operation in enumerate(self.operations) for name in operation.inputs}
        sources = [source.name for source in self.sources]
        cuts, open_until = sources if len(sources) == 1 else [], max(last_use.get(name, -1) for name in sources)
        for k, operation in enumerate(self.operations):
            if operation.inputs:
                if open_until <= k and operation.name in self.shapes:
                    cuts.append(operation.name)
                open_until = max(open_until, last_use.get(operation.name, -1))
        return tuple(cuts)

    def constants(self) -> tuple[Tensor, ...]:
        """Tensors among the arguments that are no parameters or buffers."""
        found = leaves([(operation.args, operation.kwargs) for operation in self.operations])
        return tuple({id(leaf.tensor): leaf.tensor for leaf in found if isinstance(leaf, Constant)}.values())

    def counts(self) -> Counter[str]:
        """How many operations of each kind there are."""
        return Counter(operation.kind for operation in self.operations)


def returns_view(target: Any) -> bool:
    """Whether what an operation returns may share memory with its first argument."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    arguments = target._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and not arguments[0].alias_info.is_write


def operation_kind(target: Callable[..., Any]) -> str:
    """ATen's plain name of an overload (``aten.add_.Tensor`` is ``add``), or a Python function's name."""
    if isinstance(target, (Pick, OnACopy)):
        return operation_kind(target.target)
    if isinstance(target, BatchSize):
        return "size"
    if target is copied:
        return "copy"
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket.__name__.rstrip("_")
    return getattr(target, "__name__", str(target))


def leaves(tree: Any) -> list[Any]:
    """Every leaf of nested tuples, lists, dicts and slices."""
    found: list[Any] = []
    map_aggregate(tree, found.append)
    return found


def rebuild(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of ``tree`` with every leaf replaced by ``change(leaf)``.

    Its lists are plain: ``map_aggregate`` makes lists of a class of its own, which ``torch.compile`` does not take.
    """
    if isinstance(tree, tuple):
        return tuple(rebuild(item, change) for item in tree)
    if isinstance(tree, list):
        return [rebuild(item, change) for item in tree]
    if isinstance(tree, dict):
        return {key: rebuild(item, change) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*(rebuild(part, change) for part in (tree.start, tree.stop, tree.step)))
    return change(tree)


def copied(onto: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """What ``onto`` holds after ``source`` was written over it."""
    return source.to(onto.dtype).expand_as(onto).clone()
