"""Where a rule of a composite goes: a module's path, a type of operation, a place in the network, or a predicate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from headwater.engine.blocks import RESIDUAL, matches_call
from headwater.engine.graph import ModuleCall
from headwater.engine.layers import Block, Layer
from headwater.engine.linear_layers import Linear
from headwater.engine.rules import Rule
from headwater.engine.splitting import Gates, Splitting
from headwater.engine.structure import Structure


@dataclass(frozen=True)
class Place:
    """One layer of the network and where it stands; what predicates are asked about.

    Attributes:
        kind: the operation's ATen name, such as ``"conv2d"``; ``""`` for a block.
        category: such as ``"linear"``, ``"average"``, ``"max_pool"``, ``"elementwise"``, ``"join"``, ``"block"``.
        linear: linear in its input: a convolution, a dense layer, an average.
        module: path of the innermost module, such as ``"layer4.0.conv1"``; for a block the block's own.
        module_class: name of that module's class; ``"residual block"`` for a block that was found in the graph.
        first: a linear operation with parameters that sees the image itself.
        last: a linear operation with parameters after which no other comes.
        joins_before: how many joins come before it in the list of operations.
        joins_after: how many do not.
        classifier: part of the classifier, see :class:`~headwater.engine.structure.Structure`.
    """

    kind: str
    category: str
    linear: bool
    module: str
    module_class: str
    first: bool
    last: bool
    joins_before: int
    joins_after: int = 0
    classifier: bool = False


Predicate = Callable[[Place], bool]


def place_of(layer: Layer, structure: Structure) -> Place:
    """Where ``layer`` stands in its network."""
    operation = layer.operation
    call = (
        layer.call if isinstance(layer, Block) else operation.calls[-1] if operation.calls else ModuleCall("", "", "")
    )
    return Place(
        kind="" if isinstance(layer, Block) else operation.kind,
        category=layer.category,
        linear=isinstance(layer, Linear),
        module=call.path,
        module_class=call.kind,
        first=isinstance(layer, Linear) and operation.name in structure.first,
        last=isinstance(layer, Linear) and operation.name in structure.last,
        joins_before=structure.joins_before[operation.name],
        joins_after=len(structure.joins) - structure.joins_before[operation.name],
        classifier=isinstance(layer, Linear) and operation.name in structure.classifier,
    )


class Where(ABC):
    """Which layers an entry of a composite is about.

    Attributes:
        passes_over: layers that the entry's rule is not for are left to later entries; else they are an error.
        always_checked: reaching nothing is an error in any composite, not only in a strict one.
    """

    passes_over: ClassVar[bool] = False
    always_checked: ClassVar[bool] = False

    @abstractmethod
    def matches(self, place: Place) -> bool:
        """Whether the entry is about this layer."""


@dataclass(frozen=True)
class Module(Where):
    """Operations of the modules whose path fits a pattern, such as ``"layer4.*"``; a block goes by its own path.

    >>> Module("layer4.*").matches(Place("conv2d", "linear", True, "layer4.0.conv1", "Conv2d", False, False, 12))
    True
    """

    pattern: str
    passes_over = True
    always_checked = True

    def matches(self, place: Place) -> bool:
        return self.fits(place.module)

    def fits(self, path: str) -> bool:
        """Whether a module's path fits the pattern."""
        return fnmatchcase(path, self.pattern)

    def __str__(self) -> str:
        return f"module {self.pattern!r}"


@dataclass(frozen=True)
class Type(Where):
    """Operations of an ATen name (``"conv2d"``, ``"relu"``) or of a category.

    Categories are ``"linear"``, ``"average"``, ``"max_pool"``, ``"elementwise"``, ``"rearrange"``, ``"join"``,
    ``"product"`` and ``"matrix_product"``; see docs/operations.md.
    """

    name: str

    def matches(self, place: Place) -> bool:
        return place.category != "block" and self.name in (place.kind, place.category)

    def __str__(self) -> str:
        return f"type {self.name!r}"


@dataclass(frozen=True)
class First(Where):
    """Linear operations with parameters that see the image itself."""

    def matches(self, place: Place) -> bool:
        return place.first

    def __str__(self) -> str:
        return "first linear operation"


@dataclass(frozen=True)
class Last(Where):
    """Linear operations with parameters after which no other comes."""

    def matches(self, place: Place) -> bool:
        return place.last

    def __str__(self) -> str:
        return "last linear operation"


@dataclass(frozen=True)
class Classifier(Where):
    """The linear operations that make the classes' scores.

    These are the dense layers after the pooling, the flattening or the class token, one or several; in a network that
    pools the scores themselves, the convolutions that make them.
    """

    def matches(self, place: Place) -> bool:
        return place.classifier

    def __str__(self) -> str:
        return "classifier"


@dataclass(frozen=True)
class LastBlocks(Where):
    """Linear operations and averages of the block that ends in the last join, and what follows; or of more blocks.

    What comes before the first join is never among them, so a network without joins has none.

    Args:
        part: of the joins, in [0, 1]: the last of them, at least one.
    """

    part: float = 0.0

    def matches(self, place: Place) -> bool:
        joins = place.joins_before + place.joins_after
        return place.linear and place.joins_before > 0 and place.joins_after <= max(1, round(self.part * joins))

    def __str__(self) -> str:
        return f"linear, last {self.part:g} of the joins" if self.part else "linear, from the last block on"


@dataclass(frozen=True)
class AfterJoin(Where):
    """Linear operations and averages after the n-th join."""

    count: int

    def matches(self, place: Place) -> bool:
        return place.linear and place.joins_before >= self.count

    def __str__(self) -> str:
        return f"linear, after join {self.count}"


@dataclass(frozen=True)
class Blocks(Where):
    """Calls of modules that are taken as one layer each, or the residual blocks that are found in the graph.

    Args:
        which: a pattern of the modules' path, the name of their class, or ``"residual"``; see
            :meth:`headwater.engine.structure.Structure.residual_blocks`.
    """

    which: str = "residual"

    @property
    def from_graph(self) -> bool:
        """Whether the blocks are found in the graph."""
        return self.which == "residual"

    def matches(self, place: Place) -> bool:
        if place.category != "block":
            return False
        if self.from_graph:
            return place.module_class == RESIDUAL
        return matches_call(ModuleCall(place.module, place.module_class, ""), self.which)

    def __str__(self) -> str:
        return "residual blocks" if self.from_graph else f"blocks {self.which!r}"


@dataclass(frozen=True)
class Registered(Where):
    """Operations of an ATen name, or blocks of a class, that :func:`headwater.register_rule` was told about."""

    name: str

    def matches(self, place: Place) -> bool:
        return place.module_class == self.name if place.category == "block" else place.kind == self.name

    def __str__(self) -> str:
        return f"registered {self.name!r}"


@dataclass(frozen=True)
class Satisfying(Where):
    """Layers for which a predicate of the user's is true."""

    predicate: Predicate
    passes_over = True
    always_checked = True

    def matches(self, place: Place) -> bool:
        return bool(self.predicate(place))

    def __str__(self) -> str:
        return f"predicate {getattr(self.predicate, '__name__', repr(self.predicate))}"


def as_where(given: object) -> Where | None:
    """A pattern, a predicate or a :class:`Where` as a :class:`Where`; ``None`` for anything else."""
    if isinstance(given, Where):
        return given
    if isinstance(given, str):
        return Module(given)
    if callable(given) and not isinstance(given, type):
        return Satisfying(given)
    return None


Choice = Rule | Splitting | Gates
"""What a composite says for a layer: a rule; for a join also a splitting, for a product :class:`Gates`."""
Pair = tuple[str | Where | Predicate, Choice]


@dataclass(frozen=True)
class Entry:
    """One line of a composite.

    Attributes:
        where: which layers it is about.
        rule: what it says for them.
        required: reaching no layer of the network is an error.
    """

    where: Where
    rule: Choice
    required: bool = True
