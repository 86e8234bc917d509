"""Which rule goes where, and the presets by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

from headwater.errors import InputError, UnsupportedOperationError
from headwater.graph import Graph, ModuleCall, Operation
from headwater.layers import Average, Block, Join, Layer, Linear, MatrixProduct, MaxPool, Product, Rearrange, Winner
from headwater.rules import (
    Epsilon,
    Follow,
    Gate,
    Gradient,
    MatrixGate,
    MeanPool,
    Pass,
    Rule,
    Split,
    WinnerTakesAll,
    WPlus,
    ZPlus,
)
from headwater.splitting import Ratio, Splitting, Symmetric


@dataclass(frozen=True)
class Composite:
    """Rules for a network, by type of operation, by name of module, and by place.

    For an operation the first that applies is taken: ``names``, then ``first`` / ``last``, then ``after``, then
    ``types`` by ATen name, then what :func:`register_rule` was told, then ``types`` by category. Joins are divided by
    ``splitting``.

    Attributes:
        name: what the composite is called.
        types: rule by ATen name (``"conv2d"``, ``"relu"``) or category (``"linear"``, ``"average"``, ``"max_pool"``,
            ``"elementwise"``, ``"rearrange"``).
        names: rule by pattern of the module path, such as ``"layer4.*"``; the first pattern that fits counts.
        first: rule for linear operations with parameters that see the picture itself.
        last: rule for linear operations with parameters after which no other comes.
        after: ``(n, rule)``: rule for linear operations and averages after the n-th join.
        splitting: how relevance divides at joins.
        gates: who gets the relevance of a product of two values of the picture: ``"features"`` (all of it to what
            passes the gate, none to the gate) or ``"half"`` (each factor half). A gate is the factor that is broadcast,
            else the one that a sigmoid, softmax or another bounded function made; where neither tells, halves.
        blocks: module paths (patterns) or class names whose operations are taken as one layer, ``block_rule`` for it.

    >>> from dataclasses import replace
    >>> from headwater.rules import Gamma
    >>> mine = replace(load_composite("otsuki2024"), name="mine", names={"layer4.*": Gamma(0.25)})
    >>> mine.names["layer4.*"].gamma
    0.25
    """

    name: str
    types: Mapping[str, Rule]
    names: Mapping[str, Rule] = field(default_factory=dict)
    first: Rule | None = None
    last: Rule | None = None
    after: tuple[int, Rule] | None = None
    splitting: Splitting = field(default_factory=Ratio)
    gates: Literal["features", "half"] = "features"
    blocks: tuple[str, ...] = ()
    block_rule: Rule = field(default_factory=Gradient)

    def block(self, operation: Operation) -> ModuleCall | None:
        """The outermost module call around ``operation`` that is taken as one layer."""
        for call in operation.calls:
            if call.kind in _REGISTERED or any(call.kind == p or fnmatchcase(call.path, p) for p in self.blocks):
                return call
        return None

    def __post_init__(self) -> None:
        if self.gates not in ("features", "half"):
            raise InputError(f"gates must be 'features' or 'half', got {self.gates!r}")

    def assign(self, graph: Graph, layers: Sequence[Layer]) -> list[Rule | None]:
        """The rule of each layer of ``graph``; ``None`` for those that no relevance reaches, as in a gate's branch.

        Raises:
            InputError: no rule fits an operation.
            UnsupportedOperationError: relevance reaches an operation that nothing is registered for.
        """
        shape = _Shape(graph, layers)
        reached, rules = {graph.output}, list[Rule | None]()
        for layer in reversed(layers):
            rule = self._rule(layer, shape) if layer.operation.name in reached else None
            rules.append(rule)
            if rule is not None:
                reached.update(name for k, name in enumerate(layer.operation.inputs) if rule.gives(k))
        return rules[::-1]

    def _rule(self, layer: Layer, shape: _Shape) -> Rule:
        operation = layer.operation
        if isinstance(layer, Join):
            return self._split(layer, shape)
        if isinstance(layer, Block):
            return _REGISTERED.get(layer.call.kind, self.block_rule)
        rule = self._chosen(layer, shape)
        if rule is None and isinstance(layer, (Product, MatrixProduct)):
            return (Gate if isinstance(layer, Product) else MatrixGate)(shape.gate_shares(layer, self.gates))
        if rule is None:
            layer.refuse()
            raise InputError(
                f"composite {self.name!r} has no rule for {operation.kind!r} (category {layer.category!r}) in module "
                f"{operation.module!r}; add one to its types or names"
            )
        if isinstance(layer, Rearrange) and layer.has_constants:
            shape.check_batch_comes_first(operation)
        if isinstance(rule, ZPlus) and rule.signed and operation.inputs[0] in shape.nonnegative:
            return rule.for_nonnegative()
        return rule

    def _chosen(self, layer: Layer, shape: _Shape) -> Rule | None:
        operation = layer.operation
        for pattern, rule in self.names.items():
            if fnmatchcase(operation.module, pattern) and isinstance(layer, rule.layers):
                return rule
        if isinstance(layer, Linear):
            if self.first is not None and operation.name in shape.first:
                return self.first
            if self.last is not None and operation.name in shape.last:
                return self.last
            if self.after is not None and shape.joins_before[operation.name] >= self.after[0]:
                return self.after[1]
        return self.types.get(operation.kind) or _REGISTERED.get(operation.kind) or self.types.get(layer.category)

    def _split(self, layer: Join, shape: _Shape) -> Rule:
        inputs = layer.operation.inputs
        if len(inputs) == 1:
            return Pass()
        identity = [shape.is_identity_skip(layer.operation, k) for k in range(len(inputs))]
        left_out = not self.splitting.identity_skips and not all(identity)
        return Split(self.splitting, tuple(not (left_out and skip) for skip in identity))

    def __str__(self) -> str:
        rows = [("splitting at joins", str(self.splitting)), ("products with a gate", self.gates)]
        rows += [(f"module {pattern}", str(rule)) for pattern, rule in self.names.items()]
        if self.blocks:
            rows.append((f"blocks {', '.join(self.blocks)}", str(self.block_rule)))
        if self.first is not None:
            rows.append(("first linear operation", str(self.first)))
        if self.last is not None:
            rows.append(("last linear operation", str(self.last)))
        if self.after is not None:
            rows.append((f"linear, after join {self.after[0]}", str(self.after[1])))
        rows += [(f"type {kind}", str(rule)) for kind, rule in self.types.items()]
        width = max(len(where) for where, _ in rows)
        return "\n".join([self.name, *(f"  {where:<{width}}  {rule}" for where, rule in rows)])


class _Shape:
    """What a composite asks about a graph: places, joins, identity skips, and values that are never negative."""

    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        self.shapes = graph.shapes
        self.batch = graph.batch
        self.producers = {layer.operation.name: layer for layer in layers}
        self.joins_before: dict[str, int] = {}
        self.nonnegative: set[str] = set()
        self.uses: dict[str, int] = {}
        after_linear: set[str] = set()
        self.first: set[str] = set()
        joins = 0
        for layer in layers:
            operation = layer.operation
            self.joins_before[operation.name] = joins
            joins += isinstance(layer, Join) and len(operation.inputs) > 1
            for name in operation.inputs:
                self.uses[name] = self.uses.get(name, 0) + 1
            parametrised = isinstance(layer, Linear) and not isinstance(layer, Average)
            if any(name in after_linear for name in operation.inputs):
                after_linear.add(operation.name)
            elif parametrised:
                self.first.add(operation.name)
            if parametrised or layer.category == "block":
                after_linear.add(operation.name)
            if self._never_negative(layer):
                self.nonnegative.add(operation.name)
        self.last = self._last(graph, layers)

    def _never_negative(self, layer: Layer) -> bool:
        operation = layer.operation
        if operation.kind in ("relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "_softmax", "softplus"):
            return True
        if operation.kind == "hardtanh":
            return layer.argument(1, "min_val", -1.0) >= 0
        keeps = isinstance(layer, (MaxPool, Winner, Average, Rearrange)) or operation.kind in (
            "dropout",
            "clone",
            "add",
        )
        keeps = keeps and layer.argument(2, "alpha", 1) == 1 if operation.kind == "add" else keeps
        tensors = len(operation.args) if operation.kind == "add" else 1
        return keeps and len(operation.inputs) >= min(tensors, 2) and self.nonnegative.issuperset(operation.inputs)

    def _last(self, graph: Graph, layers: Sequence[Layer]) -> set[str]:
        last: set[str] = set()
        before_linear: set[str] = set()
        for layer in reversed(layers):
            operation = layer.operation
            parametrised = isinstance(layer, Linear) and not isinstance(layer, Average)
            if parametrised and operation.name not in before_linear:
                last.add(operation.name)
            if parametrised or operation.name in before_linear:
                before_linear.update(operation.inputs)
        return last

    def gate_shares(self, layer: Layer, gates: str) -> tuple[float, float]:
        """Part of the relevance that each of two factors gets."""
        names = layer.operation.inputs
        if gates == "half" or len(names) != 2 or names[0] == names[1]:
            return (0.5, 0.5)
        if layer.operation.kind == "div":
            return (1.0, 0.0)
        signs = [self._spread(names), [self._bounded(name) for name in names]]
        if isinstance(layer, MatrixProduct):
            signs = signs[1:]
        for first, second in signs:
            if first != second:
                return (0.0, 1.0) if first else (1.0, 0.0)
        return (0.5, 0.5)

    def _spread(self, names: Sequence[str]) -> list[bool]:
        """Whether each of two values is broadcast to the other."""
        sizes = [self.shapes.get(name, ()) for name in names]
        rank = max(len(size) for size in sizes)
        first, second = ((1,) * (rank - len(size)) + size for size in sizes)
        pairs = list(zip(first, second, strict=True))
        return [any(a == 1 != b for a, b in pairs), any(b == 1 != a for a, b in pairs)]

    def _bounded(self, name: str) -> bool:
        """Whether a value comes from a sigmoid, a softmax or the like, with no other function after it."""
        while True:
            layer = self.producers.get(name)
            if layer is None:
                return False
            if layer.operation.kind in _BOUNDED:
                return True
            passes = isinstance(layer, Rearrange) or layer.operation.kind in ("mul", "div", "add", "dropout", "clone")
            if not passes or len(layer.operation.inputs) != 1:
                return False
            (name,) = layer.operation.inputs

    def check_batch_comes_first(self, operation: Operation) -> None:
        """What is handed on picture by picture needs to know where each picture is."""
        for name in (operation.name, *operation.inputs):
            shape = self.shapes.get(name, ())
            if self.batch is None and shape and shape[0] is not None:
                raise UnsupportedOperationError(
                    f"operation {operation.kind!r} in module {operation.module!r} adds constants to a value of shape "
                    f"{shape} whose first dimension is not the batch; this is not supported"
                )

    def is_identity_skip(self, join: Operation, branch: int) -> bool:
        """Whether this input of ``join`` reaches the fan-out with no parametrised operation on its way."""
        name = join.inputs[branch]
        others = {n for k, n in enumerate(join.inputs) if k != branch}
        ancestors = self._ancestors(others)
        while True:
            if self.uses.get(name, 0) > 1 and name in ancestors:
                return True
            layer = self.producers.get(name)
            if layer is None or layer.operation.weights or len(layer.operation.inputs) != 1:
                return False
            name = layer.operation.inputs[0]

    def _ancestors(self, names: set[str]) -> set[str]:
        found, pending = set(names), list(names)
        while pending:
            layer = self.producers.get(pending.pop())
            for name in layer.operation.inputs if layer else ():
                if name not in found:
                    found.add(name)
                    pending.append(name)
        return found


_BOUNDED = frozenset(
    ("sigmoid", "hardsigmoid", "softmax", "_softmax", "tanh", "hardtanh", "relu6", "clamp", "silu", "gelu", "hardswish")
)
_EXACT: dict[str, Rule] = {
    "linear": ZPlus(),
    "average": ZPlus(),
    "max_pool": WinnerTakesAll(),
    "elementwise": Pass(),
    "rearrange": Follow(),
}
_PUBLISHED_ZPLUS = ZPlus(eps=1e-5, fallback=False, signed=False)
_PUBLISHED: dict[str, Rule] = {
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


_REGISTERED: dict[str, Rule] = {}


def register_rule(name: str, rule: Rule) -> None:
    """Say how relevance passes an operation or a module that Headwater does not know, in every composite.

    Args:
        name: an ATen name (``"logsumexp"``, as an error message gives it), or the name of a module's class, whose
            operations are then taken as one layer.
        rule: a rule of :mod:`headwater.rules` or your own. Composites that name a rule for the operation keep it.

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
    _REGISTERED[name] = rule


def register_composite(composite: Composite) -> None:
    """Make ``composite`` known by its name, to :func:`load_composite`, methods and the command line."""
    _COMPOSITES[composite.name] = composite


for _suffix, _splitting in _SPLITTINGS.items():
    register_composite(Composite(f"otsuki2024{_suffix}", _EXACT, first=WPlus(), splitting=_splitting))
    register_composite(
        Composite(
            f"otsuki2024{_suffix}-published",
            _PUBLISHED,
            first=WPlus(eps=1e-5, fallback=False),
            splitting=_splitting,
        )
    )
register_composite(Composite("otsuki2024-mixture", _EXACT, first=WPlus(), after=(8, Epsilon())))
register_composite(
    Composite("epsilon", {**_EXACT, "linear": Epsilon(bias=True), "average": Epsilon(), "max_pool": WinnerTakesAll()})
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
        blocks=("BasicBlock", "Bottleneck"),
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
      type rearrange          Follow()
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
