"""Which rule goes where, and the presets by name."""

from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from headwater.engine.blocks import Blocks, Group, find_groups
from headwater.engine.graph import Graph, Operation
from headwater.engine.layer_table import joins_branches, layer_for, layer_version
from headwater.engine.layers import Block, Join, Layer, Lookup, MatrixProduct, Product, Rearrange
from headwater.engine.linear_layers import Linear
from headwater.engine.linear_rules import WPlus, ZPlus
from headwater.engine.reach import (
    Entry,
    check_blocks,
    check_entries,
    check_table,
    is_for,
    misplaced,
    path_of,
    takes_joins,
)
from headwater.engine.rules import Follow, Gate, Gradient, MatrixGate, MeanPool, Pass, Rule, Split, WinnerTakesAll
from headwater.engine.signed_rules import Epsilon
from headwater.engine.splitting import Ratio, Splitting, Symmetric
from headwater.engine.structure import Structure
from headwater.errors import InputError, UnsupportedOperationError

Choice = Rule | Splitting
"""What a composite names for a place: a rule; for a join also a splitting."""


@dataclass(frozen=True)
class Composite:
    """Rules for a network, by type of operation, by name of module, and by place.

    For an operation the first that applies is taken: ``names``, then ``first`` / ``last``, then ``after``, then
    ``types`` by ATen name, then what :func:`register_rule` was told, then ``types`` by category. Joins that none of
    these says anything about are divided by ``splitting``, blocks passed by ``block_rule``.

    What reaches nothing is an error at the first call, which says what it could have reached. That holds for every
    pattern of ``names`` and ``blocks``, in any composite; for ``types``, ``first``, ``last``, ``after`` and
    ``blocks="residual"`` where ``strict`` is true.

    Attributes:
        name: what the composite is called.
        types: rule by ATen name (``"conv2d"``, ``"relu"``) or category (``"linear"``, ``"average"``, ``"max_pool"``,
            ``"elementwise"``, ``"rearrange"``, ``"product"``, ``"matrix_product"``); for joins (``"add"``, ``"sub"``,
            or ``"join"`` for both) a splitting.
        names: rule by pattern of the module path, such as ``"layer4.*"``; the first pattern that fits counts. A pattern
            passes over operations that its rule is not for. A splitting, or a rule for joins, is for the joins in these
            modules; a rule for any layer is also for a block that goes by the path.
        first: rule for linear operations with parameters that see the image itself.
        last: rule for linear operations with parameters after which no other comes.
        after: ``(n, rule)``: rule for linear operations and averages after the n-th join.
        splitting: how relevance divides at joins.
        gates: who gets the relevance of a product of two values of the image: ``"features"`` (all of it to what
            passes the gate, none to the gate) or ``"half"`` (each factor half). A gate is the factor that is broadcast,
            else the one that a sigmoid, softmax or another bounded function made; where neither tells, halves.
        blocks: whose operations are taken as one layer: module paths (patterns) or class names; or ``"residual"``, the
            residual blocks that are found in the graph, see
            :meth:`headwater.engine.structure.Structure.residual_blocks`.
        block_rule: the rule for blocks.
        strict: whether ``types``, ``first``, ``last``, ``after`` and ``blocks="residual"`` must reach something in the
            network. The presets serve every network, so theirs need not; what is made from them by
            ``dataclasses.replace`` inherits that, unless it says ``strict=True``.

    >>> from dataclasses import replace
    >>> from headwater.rules import Gamma
    >>> mine = replace(load_composite("otsuki2024"), name="mine", names={"layer4.*": Gamma(0.25)})
    >>> mine.names["layer4.*"].gamma
    0.25
    """

    name: str
    types: Mapping[str, Choice]
    names: Mapping[str, Choice] = field(default_factory=dict)
    first: Rule | None = None
    last: Rule | None = None
    after: tuple[int, Rule] | None = None
    splitting: Splitting = field(default_factory=Ratio)
    gates: Literal["features", "half"] = "features"
    blocks: Blocks = ()
    block_rule: Rule = field(default_factory=Gradient)
    strict: bool = True

    def __post_init__(self) -> None:
        if self.gates not in ("features", "half"):
            raise InputError(f"gates must be 'features' or 'half', got {self.gates!r}")
        if self.blocks != "residual" and (
            isinstance(self.blocks, str) or not all(isinstance(pattern, str) for pattern in self.blocks)
        ):
            raise InputError(f"blocks must be a tuple of paths and class names, or 'residual', got {self.blocks!r}")
        if self.after is not None and not (isinstance(self.after, tuple) and len(self.after) == 2):
            raise InputError(f"after must be (number of joins, rule), got {self.after!r}")
        given = {"first": self.first, "last": self.last, "block_rule": self.block_rule}
        given["after"] = None if self.after is None else self.after[1]
        for place, rule in given.items():
            if rule is not None and not isinstance(rule, Rule):
                raise InputError(f"{place} must be a Rule object, got {rule!r}")
        check_table("names", self.names)
        check_table("types", self.types)

    def find_blocks(self, graph: Graph, operations: Sequence[Operation], lookup: Lookup) -> list[Group]:
        """The operations of ``graph`` that are taken as one layer, among those that the image's values enter.

        Warns where ``blocks="residual"`` finds none and ``strict`` is false.

        Raises:
            InputError: an entry of ``blocks`` reaches nothing, or a module cannot be one layer.
        """
        if self.blocks != "residual":
            found = find_groups(graph, operations, self.blocks, _REGISTERED)
            check_blocks(self.name, self.blocks, found, operations)
            return found
        structure = Structure(graph, [layer_for(operation, lookup) for operation in operations])
        residual = structure.residual_blocks()
        if not residual:
            problem = f"composite {self.name!r} takes each residual block as one layer, and this network has none"
            if self.strict:
                raise InputError(f"{problem}; say blocks=() to take every operation alone, or strict=False")
            warnings.warn(f"{problem}: every operation is a layer of its own", stacklevel=2)
        return find_groups(graph, operations, (), _REGISTERED, residual)

    def assign(self, graph: Graph, layers: Sequence[Layer]) -> list[Rule | None]:
        """The rule of each layer of ``graph``; ``None`` for those that no relevance reaches, as in a gate's branch.

        Raises:
            InputError: no rule fits an operation, or something in the composite reaches nothing.
            UnsupportedOperationError: relevance reaches an operation that nothing is registered for.
        """
        structure = Structure(graph, layers)
        reached, rules, used = {graph.output}, list[Rule | None](), set[Entry]()
        for layer in reversed(layers):
            rule = self._rule(layer, structure, used) if layer.operation.name in reached else None
            rules.append(rule)
            if rule is not None:
                reached.update(name for k, name in enumerate(layer.operation.inputs) if rule.passes_to(k))
        check_entries(self, used, structure, reached)
        return rules[::-1]

    def _rule(self, layer: Layer, structure: Structure, used: set[Entry]) -> Rule:
        """The rule of one layer; the entry of the composite that decided it is added to ``used``."""
        operation = layer.operation
        if isinstance(layer, Join) and len(operation.inputs) == 1:
            return Pass()
        entry, choice = self._chosen(layer, structure)
        if choice is not None and not is_for(choice, layer):
            raise misplaced(self.name, entry, choice, layer)
        if entry is not None:
            used.add(entry)
        if isinstance(layer, Join):
            return self._split(layer, self.splitting if choice is None else choice, structure)
        if choice is None and isinstance(layer, (Product, MatrixProduct)):
            return (Gate if isinstance(layer, Product) else MatrixGate)(structure.gate_shares(layer, self.gates))
        if not isinstance(choice, Rule):
            layer.refuse()
            raise InputError(
                f"composite {self.name!r} has no rule for {operation.kind!r} (category {layer.category!r}) in module "
                f"{operation.module!r}; add one to its types or names"
            )
        if isinstance(layer, Rearrange) and layer.has_constants:
            _check_batch_comes_first(operation, graph=structure.graph)
        if isinstance(choice, ZPlus) and choice.signed and operation.inputs[0] in structure.nonnegative:
            return choice.for_nonnegative()
        return choice

    def _chosen(self, layer: Layer, structure: Structure) -> tuple[Entry | None, Choice | None]:
        """What the composite says for a layer, and which of its entries says so."""
        operation, path = layer.operation, path_of(layer)
        for pattern, choice in self.names.items():
            if fnmatchcase(path, pattern) and is_for(choice, layer):
                return ("names", pattern), choice
        if isinstance(layer, Block):
            return None, _REGISTERED.get(layer.call.kind, self.block_rule)
        if isinstance(layer, Linear):
            if self.first is not None and operation.name in structure.first:
                return ("first", ""), self.first
            if self.last is not None and operation.name in structure.last:
                return ("last", ""), self.last
            if self.after is not None and structure.joins_before[operation.name] >= self.after[0]:
                return ("after", ""), self.after[1]
        if operation.kind in self.types:
            return ("types", operation.kind), self.types[operation.kind]
        if operation.kind in _REGISTERED:
            return None, _REGISTERED[operation.kind]
        if layer.category in self.types:
            return ("types", layer.category), self.types[layer.category]
        return None, None

    def _split(self, layer: Join, choice: Choice, structure: Structure) -> Rule:
        inputs = layer.operation.inputs
        if isinstance(choice, Rule):
            if isinstance(choice, Split) and len(choice.takes_part) != len(inputs):
                raise InputError(
                    f"{choice} says of {len(choice.takes_part)} branches whether they take part; the join in module "
                    f"{layer.operation.module!r} has {len(inputs)}"
                )
            return choice
        identity = [structure.is_identity_skip(layer.operation.name, k) for k in range(len(inputs))]
        left_out = not choice.identity_skips and not all(identity)
        return Split(choice, tuple(not (left_out and skip) for skip in identity))

    def __str__(self) -> str:
        rows = [("splitting at joins", str(self.splitting)), ("products with a gate", self.gates)]
        rows += [(f"module {pattern}", str(rule)) for pattern, rule in self.names.items()]
        if self.blocks:
            named = "found in the graph" if self.blocks == "residual" else ", ".join(self.blocks)
            rows.append((f"blocks {named}", str(self.block_rule)))
        if self.first is not None:
            rows.append(("first linear operation", str(self.first)))
        if self.last is not None:
            rows.append(("last linear operation", str(self.last)))
        if self.after is not None:
            rows.append((f"linear, after join {self.after[0]}", str(self.after[1])))
        rows += [(f"type {kind}", str(rule)) for kind, rule in self.types.items()]
        rows += [(f"registered {kind}", str(rule)) for kind, rule in _REGISTERED.items() if kind not in self.types]
        width = max(len(where) for where, _ in rows)
        return "\n".join([self.name, *(f"  {where:<{width}}  {rule}" for where, rule in rows)])


def _check_batch_comes_first(operation: Operation, graph: Graph) -> None:
    """What is handed on image by image needs to know where each image is."""
    for name in (operation.name, *operation.inputs):
        shape = graph.shapes.get(name, ())
        if graph.batch is None and shape and shape[0] is not None:
            raise UnsupportedOperationError(
                f"operation {operation.kind!r} in module {operation.module!r} adds constants to a value of shape "
                f"{shape} whose first dimension is not the batch; this is not supported"
            )


_EXACT: dict[str, Choice] = {
    "linear": ZPlus(),
    "average": ZPlus(),
    "max_pool": WinnerTakesAll(),
    "elementwise": Pass(),
    "rearrange": Follow(),
}
_PUBLISHED_ZPLUS = ZPlus(eps=1e-5, fallback=False, signed=False)
_PUBLISHED: dict[str, Choice] = {
    **_EXACT,
    "linear": _PUBLISHED_ZPLUS,
    "average": _PUBLISHED_ZPLUS,
    "max_pool": MeanPool(eps=1e-5),
}
_SPLITTINGS: dict[str, Splitting] = {
    "": Ratio(),
    "-i": Symmetric(identity_skips=False),
    "-ii": Symmetric(),
    "-iii": Ratio(identity_skips=False),
}
_COMPOSITES: dict[str, Composite] = {}


class _Registry(UserDict[str, Rule]):
    """Rules by name, counting its changes."""

    changes = 0

    def __setitem__(self, key: str, item: Rule) -> None:
        self.changes += 1
        super().__setitem__(key, item)

    def __delitem__(self, key: str) -> None:
        self.changes += 1
        super().__delitem__(key)


_REGISTERED = _Registry()


def registry_version() -> tuple[int, int]:
    """Differs from before once a rule or a layer was registered; what is kept of an assignment goes by it."""
    return _REGISTERED.changes, layer_version()


def register_rule(name: str, rule: Rule) -> None:
    """Say how relevance passes an operation or a module that Headwater does not know, in every composite.

    Args:
        name: an ATen name (``"logsumexp"``, as an error message gives it), or the name of a module's class, whose
            operations are then taken as one layer.
        rule: a rule of :mod:`headwater.rules` or your own. Composites that name a rule for the operation keep it. For
            additions and subtractions, which join branches, it must be a rule for joins.

    It counts from the next call on, also of an :class:`~headwater.LRP` that has been called before.

    Raises:
        InputError: ``rule`` is not a rule, or not one for joins where ``name`` is an addition.

    >>> import torch, headwater as hw
    >>> from headwater.rules import Pass
    >>> class Squash(torch.nn.Module):
    ...     def forward(self, h):
    ...         return torch.erf(h)
    >>> hw.register_rule("Squash", Pass())
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), Squash(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    >>> hw.LRP(model)(torch.rand(1, 3, 8, 8)).conservation.error.item() < 1e-5
    True
    """
    if not isinstance(rule, Rule):
        raise InputError(f"rule must be a Rule object, got {rule!r}")
    if joins_branches(name) and not takes_joins(rule):
        raise InputError(
            f"{rule} is not for {name!r}, which joins branches: relevance divides there by the composite's splitting; "
            f"give a composite types={{{name!r}: ...}} with a splitting, or register a rule whose layers are joins"
        )
    _REGISTERED[name] = rule


def register_composite(composite: Composite) -> None:
    """Make ``composite`` known by its name, to :func:`load_composite`, methods and the command line."""
    _COMPOSITES[composite.name] = composite


for _suffix, _splitting in _SPLITTINGS.items():
    register_composite(Composite(f"otsuki2024{_suffix}", _EXACT, first=WPlus(), splitting=_splitting, strict=False))
    register_composite(
        Composite(
            f"otsuki2024{_suffix}-published",
            _PUBLISHED,
            first=WPlus(eps=1e-5, fallback=False),
            splitting=_splitting,
            strict=False,
        )
    )
register_composite(Composite("otsuki2024-mixture", _EXACT, first=WPlus(), after=(8, Epsilon()), strict=False))
register_composite(
    Composite(
        "epsilon",
        {**_EXACT, "linear": Epsilon(bias=True), "average": Epsilon(threshold=0.0), "max_pool": WinnerTakesAll()},
        strict=False,
    )
)
register_composite(
    Composite(
        "doublet2024",
        {
            **_EXACT,
            "conv2d": Gradient(),
            "batch_norm": Gradient(),
            "max_pool": Gradient(),
            "average": Gradient(),
            "linear": Epsilon(fallback=False),
        },
        blocks="residual",
        strict=False,
    )
)


def load_composite(name: str) -> Composite:
    """A preset by name.

    Raises:
        InputError: there is none of that name.

    >>> print(load_composite("otsuki2024-iii"))  # doctest: +ELLIPSIS
    otsuki2024-iii
      splitting at joins      Ratio(identity_skips=False)
      products with a gate    features
      first linear operation  WPlus(eps=0.0, fallback=True)
      type linear             ZPlus(eps=0.0, fallback=True, signed=True)
      type average            ZPlus(eps=0.0, fallback=True, signed=True)
      type max_pool           WinnerTakesAll()
      type elementwise        Pass()
      type rearrange          Follow()...
    """
    if name not in _COMPOSITES:
        raise InputError(f"no composite is called {name!r}; there are {', '.join(list_composites())}")
    return _COMPOSITES[name]


def list_composites() -> list[str]:
    """Names of all composites.

    >>> "otsuki2024" in list_composites()
    True
    """
    return sorted(_COMPOSITES)
