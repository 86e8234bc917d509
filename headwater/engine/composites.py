"""Which rule goes where: a composite is an ordered list of (where, rule), and the first that matches is taken."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import NamedTuple

from headwater.engine.blocks import Group, find_groups
from headwater.engine.graph import Graph, Operation
from headwater.engine.guards.coupling import fronts_of
from headwater.engine.layer_table import layer_for
from headwater.engine.layers import Join, Layer, Lookup, Product, Rearrange, TokenPath
from headwater.engine.reach import check_blocks, check_reach, is_for, misplaced
from headwater.engine.registrations import registered_rules
from headwater.engine.rules import Follow, Gate, MatrixGate, Pass, Rule, SignedGate, Split, ToTokens
from headwater.engine.splitting import Gates, SignedGates
from headwater.engine.structure import ResidualBlock, Structure
from headwater.engine.where import Blocks, Choice, Entry, Pair, Registered, Type, as_where, place_of
from headwater.errors import InputError, UnsupportedOperationError


class Assigned(NamedTuple):
    """The rule of a layer and why it has it; ``rule`` is ``None`` where no relevance arrives."""

    rule: Rule | None
    why: str


REGISTERED: Pair = (Registered("*"), Pass())
"""The place in a composite's list where rules count that :func:`register_rule` was told; at its end if left out."""


@dataclass(frozen=True)
class Composite:
    r"""Rules for a network: an ordered list of (where, rule). For each layer the first that matches is taken.

    *Where* is one of

    - a pattern of the module's path, such as ``"layer4.*"``. It passes over operations that its rule is not for, so
      ``("layer4.*", Gamma())`` is about the convolutions there;
    - :class:`~headwater.composites.Type`, an ATen name or a category;
    - :class:`~headwater.composites.First`, :class:`~headwater.composites.Last`,
      :class:`~headwater.composites.AfterJoin`: places in the network;
    - :class:`~headwater.composites.Blocks`: modules, or the residual blocks of the graph, taken as one layer each;
    - a predicate of your own, called with a :class:`~headwater.composites.Place`.

    The *rule* is a :class:`~headwater.rules.Rule`; for joins, where branches are added, also a splitting such as
    :class:`~headwater.splitting.Ratio`; for products of features and a gate also :class:`~headwater.composites.Gates`.

    What reaches nothing is an error at the first call, which says what it could have reached.

    Args:
        name: what the composite is called.
        rules: pairs (where, rule), in order of precedence.
        strict: whether every pair must reach something in the network. Patterns, predicates and named blocks must in
            any case. The presets serve every network, so their types and places need not (``strict=False``).
        contrast: :math:`\beta` of the rule at the output. The target k starts with :math:`1 + \beta` times the
            relevance p that the sweep begins with, all other classes with :math:`-\beta` times p, in proportion to
            their probability:

            .. math:: R_j = (1 + \beta)\, p\, \delta_{jk} - \beta\, p\, \frac{p_j}{1 - p_k} (1 - \delta_{jk})

            It sums to p whatever it is, and is the alpha-beta rule for the choice between classes: what speaks for the
            others counts against. 0 leaves the others out. An explanation against a class names the other one itself,
            so it has none.

    Raises:
        InputError: something in ``rules`` is no such pair, or ``contrast`` is negative or not finite.

    >>> import headwater as hw
    >>> from headwater.composites import Last
    >>> from headwater.rules import Epsilon, Gamma
    >>> mine = hw.load_composite("otsuki2024").prepend(("layer4.*", Gamma(0.25)), (Last(), Epsilon()), name="mine")
    >>> [str(entry.where) for entry in mine.entries[:3]]
    ["module 'layer4.*'", 'last linear operation', 'first linear operation']
    """

    name: str
    rules: Sequence[Pair | Entry]
    strict: InitVar[bool | None] = None
    contrast: float = 0.0
    entries: tuple[Entry, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self, strict: bool | None) -> None:
        if not (math.isfinite(self.contrast) and self.contrast >= 0):
            raise InputError(f"composite {self.name!r}: contrast must be at least 0, got {self.contrast}")
        entries = tuple(self._entry(item) for item in self.rules)
        if strict is not None:
            entries = tuple(replace(entry, required=strict) for entry in entries)
        object.__setattr__(self, "rules", entries)
        object.__setattr__(self, "entries", entries)

    def _entry(self, item: Pair | Entry) -> Entry:
        if isinstance(item, Entry):
            return item
        if not isinstance(item, tuple) or len(item) != 2:
            raise InputError(f"composite {self.name!r}: rules must be pairs (where, rule), got {item!r}")
        given, rule = item
        where = as_where(given)
        if where is None:
            raise InputError(
                f"composite {self.name!r}: a rule goes by a pattern of module paths, a Type, First, Last, AfterJoin, "
                f"Blocks or a predicate; got {given!r}"
            )
        splits = hasattr(rule, "identity_skips") and not isinstance(rule, type)
        if not isinstance(rule, (Rule, Gates)) and not splits:
            raise InputError(
                f"composite {self.name!r}: {where} must be given a Rule object, a splitting for joins or Gates for "
                f"products; got {rule!r}"
            )
        return Entry(where, rule)

    def prepend(self, *rules: Pair | Entry, name: str | None = None, strict: bool = True) -> Composite:
        """The same composite with these rules before its own, so that they count where they match.

        Args:
            rules: pairs (where, rule), in order of precedence.
            name: of the new composite; the same if not given.
            strict: whether each of these rules must reach something in the network.

        >>> from headwater.rules import Epsilon
        >>> from headwater.composites import Last, load_composite
        >>> load_composite("otsuki2024").prepend((Last(), Epsilon()), name="mine").name
        'mine'
        """
        chosen = self.name if name is None else name
        return Composite(chosen, (*Composite(chosen, rules, strict).entries, *self.entries), contrast=self.contrast)

    def table(self) -> tuple[Entry, ...]:
        """The entries with those that were registered, in the order in which they count."""
        registered = [Entry(Registered(name), rule, required=False) for name, rule in registered_rules().items()]
        marker = next((k for k, entry in enumerate(self.entries) if entry.where == REGISTERED[0]), len(self.entries))
        return (*self.entries[:marker], *registered, *self.entries[marker + 1 :])

    def find_blocks(self, graph: Graph, operations: Sequence[Operation], lookup: Lookup) -> list[Group]:
        """The operations of ``graph`` that are taken as one layer, among those that the image's values enter.

        Warns where residual blocks are asked for, need not be there, and there are none.

        Raises:
            InputError: an entry for blocks reaches nothing, or a module cannot be one layer.
        """
        entries = [(entry, entry.where) for entry in self.entries if isinstance(entry.where, Blocks)]
        named = [where.which for _, where in entries if not where.from_graph]
        found_in_graph = [entry for entry, where in entries if where.from_graph]
        residual: tuple[ResidualBlock, ...] = ()
        if found_in_graph:
            layers = [layer_for(operation, lookup) for operation in operations]
            residual = Structure(graph, layers).residual_blocks()
            if not residual:
                problem = f"composite {self.name!r} takes each residual block as one layer, and this network has none"
                if found_in_graph[0].required:
                    raise InputError(f"{problem}; leave Blocks('residual') out, or say strict=False")
                warnings.warn(f"{problem}: every operation is a layer of its own", stacklevel=2)
        groups = find_groups(graph, operations, named, registered_rules(), residual)
        check_blocks(self.name, named, groups, operations)
        return groups

    def assign(self, graph: Graph, layers: Sequence[Layer]) -> list[Assigned]:
        """The rule of each layer of ``graph`` and why it has it.

        Raises:
            InputError: no rule fits an operation, or something in the composite reaches nothing.
            UnsupportedOperationError: relevance reaches an operation that nothing is registered for.
        """
        structure, table = Structure(graph, layers), self.table()
        reached, assigned, used = {graph.output}, list[Assigned](), set[int]()
        for layer in reversed(layers):
            if layer.operation.name not in reached:
                assigned.append(Assigned(None, "no relevance arrives"))
                continue
            rule, why = self._rule(layer, structure, table, used)
            assigned.append(Assigned(rule, why))
            reached.update(name for k, name in enumerate(layer.operation.inputs) if rule.passes_to(k))
        check_reach(self.name, table, used, structure, reached)
        return assigned[::-1]

    def _rule(self, layer: Layer, structure: Structure, table: Sequence[Entry], used: set[int]) -> tuple[Rule, str]:
        """The rule of one layer and why; the entry that decided it is added to ``used``."""
        operation = layer.operation
        if isinstance(layer, Join) and len(operation.inputs) == 1:
            return Pass(), "a constant is added"
        if isinstance(layer, TokenPath):
            return ToTokens(), "token ids"
        place = place_of(layer, structure)
        for k, entry in enumerate(table):
            if not entry.where.matches(place) or (entry.where.passes_over and not is_for(entry.rule, layer)):
                continue
            if not is_for(entry.rule, layer):
                raise misplaced(self.name, entry, layer)
            used.add(k)
            return _fitted(entry.rule, layer, structure), str(entry.where)
        layer.refuse()
        raise InputError(
            f"composite {self.name!r} has no rule for {operation.kind!r} (category {layer.category!r}) in module "
            f"{operation.module!r}; add one, such as (Type({layer.category!r}), rule)"
        )

    def __str__(self) -> str:
        width = max((len(where) for where, _ in self._rows()), default=0)
        name = f"{self.name}, contrast {self.contrast:g}" if self.contrast else self.name
        return "\n".join([name, *(f"  {where:<{width}}  {rule}" for where, rule in self._rows())])

    def _rows(self) -> Iterator[tuple[str, str]]:
        """What each entry says, without registrations that an earlier entry overrides."""
        types = set[str]()
        for entry in self.table():
            if isinstance(entry.where, Type):
                types.add(entry.where.name)
            if not (isinstance(entry.where, Registered) and entry.where.name in types):
                yield str(entry.where), str(entry.rule)


def _fitted(choice: Choice, layer: Layer, structure: Structure) -> Rule:
    """The rule that a choice means for one layer: who takes part at a join, which factor is the gate."""
    operation = layer.operation
    if isinstance(choice, Gates):
        shares = structure.gate_shares(layer, choice.to)
        if isinstance(layer, Product):
            return Gate(shares)
        return SignedGate(shares) if isinstance(choice, SignedGates) else MatrixGate(shares)
    if not isinstance(choice, Rule):
        identity = [structure.is_identity_skip(operation.name, k) for k in range(len(operation.inputs))]
        left_out = not choice.identity_skips and not all(identity)
        return Split(choice, tuple(not (left_out and skip) for skip in identity))
    if isinstance(choice, Split) and len(choice.takes_part) != len(operation.inputs):
        raise InputError(
            f"{choice} says of {len(choice.takes_part)} branches whether they take part; the join in module "
            f"{operation.module!r} has {len(operation.inputs)}"
        )
    if isinstance(layer, Rearrange) and layer.has_constants and isinstance(choice, Follow):
        return replace(choice, batches=_batches(operation, structure.graph))
    return choice.for_nonnegative() if operation.inputs[0] in structure.nonnegative else choice


def _batches(operation: Operation, graph: Graph) -> tuple[int, ...]:
    """Which dimension counts the images, of an operation's output and of each input.

    Raises:
        UnsupportedOperationError: something stands in front of the images in the dimension that they are in.
    """
    names = (operation.name, *operation.inputs)
    fronts = fronts_of(graph)
    if any(fronts.get(name, 1) != 1 for name in names):
        raise UnsupportedOperationError(
            f"operation {operation.kind!r} in module {operation.module!r} adds constants to a value in which other "
            "things are counted in front of the images; this is not supported"
        )
    return tuple(map(graph.batch_dimension, names))
