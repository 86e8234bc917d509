"""Places in a network: joins, branches, identity skips, gates, residual blocks, first and last operations.

Each is defined here and nowhere else. Nothing here knows rules, weights or images: only which operation takes what.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.engine.graph import Graph
from headwater.engine.layer_table import layer_for
from headwater.engine.layers import Block, Join, Layer, MatrixProduct, MaxPool, MaxSelect, Rearrange
from headwater.engine.linear_layers import Average, Linear

ACTIVATIONS = frozenset(
    (
        *("relu", "relu6", "leaky_relu", "prelu", "elu", "celu", "selu", "silu", "hardswish", "gelu", "mish", "tanh"),
        *("hardtanh", "sigmoid", "hardsigmoid", "softplus", "softsign", "clamp", "clamp_min"),
    )
)
"""Functions of one value, element by element, that end a residual block when they come right after its join."""
_GATE_FUNCTIONS = frozenset(
    (
        "sigmoid",
        "hardsigmoid",
        "softmax",
        "_softmax",
        "_safe_softmax",
        "tanh",
        "hardtanh",
        "relu6",
        "clamp",
        "silu",
        "gelu",
        "hardswish",
    )
)
_GATES = frozenset(("sigmoid", "hardsigmoid", "softmax", "_softmax", "_safe_softmax"))
_KEEPS_A_GATE = frozenset(
    ("mul", "div", "add", "sub", "rsub", "dropout", "clone", "to", "_to_copy", "alias", "detach", "contiguous")
)
_NEVER_NEGATIVE = frozenset(
    ("relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "_softmax", "_safe_softmax", "softplus")
)


def is_join(layer: Layer) -> bool:
    """Whether branches meet here: different values of the image are added or subtracted.

    A constant that is added makes no join, nor does a value that is added to itself.
    """
    return isinstance(layer, Join) and len(set(layer.operation.inputs)) > 1


def is_parametrised(layer: Layer) -> bool:
    """Whether the operation is linear and has parameters: a convolution or a dense layer, but no average."""
    return isinstance(layer, Linear) and not isinstance(layer, Average)


def layers_of(graph: Graph) -> list[Layer]:
    """One layer for each operation that the image's values enter; to ask about, not to run."""
    return [layer_for(operation, lambda leaf: leaf) for operation in graph.operations if operation.inputs]


@dataclass(frozen=True)
class ResidualBlock:
    """The operations between the value that skip and branch share and their join, and the activation after the join.

    Attributes:
        join: the join's name.
        entry: the value that skip and branch share.
        operations: names, in order; the last one gives the block's output.
        path: the innermost module that holds all of them, the activation aside; ``""`` is the network itself.
    """

    join: str
    entry: str
    operations: tuple[str, ...]
    path: str


class Structure:
    """What can be asked about the layers of a graph.

    Attributes:
        joins: names of the joins, in order.
        joins_before: for each operation, how many joins come before it in the list.
        first: linear operations with parameters that see the image itself, by name.
        last: linear operations with parameters after which no other comes.
        classifier: linear operations with parameters after rows and columns are gone: the dense layers after the
            pooling or the class token, back to the nearest join. Where there are none, as with a 1 x 1 convolution
            before the pooling, those of ``last``.
        nonnegative: values that are never negative.
    """

    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        self.graph, self.layers = graph, layers
        self.producers = {layer.operation.name: layer for layer in layers}
        self.joins = tuple(layer.operation.name for layer in layers if is_join(layer))
        self.users: dict[str, list[str]] = {}
        self.joins_before: dict[str, int] = {}
        self.nonnegative: set[str] = set()
        joins = 0
        for layer in layers:
            operation = layer.operation
            self.joins_before[operation.name] = joins
            joins += is_join(layer)
            for name in operation.inputs:
                self.users.setdefault(name, []).append(operation.name)
            if self._never_negative(layer):
                self.nonnegative.add(operation.name)
        self.first, self.last = _first(layers), _last(layers)
        self.classifier = self._classifier() or self.last
        self._number_values()

    # -- who comes from whom ------------------------------------------------------------------------------------------

    def _number_values(self) -> None:
        """A bit for each value, and for each the bits of all that it is computed from, itself included."""
        sources = [source.name for source in self.graph.sources]
        self._bit = {name: 1 << place for place, name in enumerate(sources)}
        self._ancestors = dict(self._bit)
        self._names = list(sources)  # by the place of their bit
        self._parametrised = 0
        for place, layer in enumerate(self.layers, len(sources)):
            name, bit = layer.operation.name, 1 << place
            self._names.append(name)
            self._bit[name] = bit
            self._ancestors[name] = bit
            for given in layer.operation.inputs:
                self._ancestors[name] |= self._ancestors[given]
            if is_parametrised(layer) or (isinstance(layer, Block) and _weights(layer)):
                self._parametrised |= bit

    def comes_from(self, name: str, other: str) -> bool:
        """Whether ``name`` is ``other``, or computed from it."""
        return bool(self._ancestors[name] & self._bit[other])

    def branches(self, join: str) -> tuple[str, ...]:
        """For each input of a join ``"skip"`` or ``"branch"``.

        The skip is the one with the fewest convolutions and dense layers since the branches parted. Where that is a
        tie, all are ``"branch"``.
        """
        paths = [self._ancestors[name] for name in self.producers[join].operation.inputs]
        shared = paths[0]
        for path in paths[1:]:
            shared &= path
        latest = self._ancestors[self._names[shared.bit_length() - 1]] if shared else 0
        before = latest
        if latest != shared:  # no one value has all that the branches share
            common = (self._ancestors[n] for n, bit in self._bit.items() if shared & bit)
            before = max(common, key=int.bit_count, default=0)
        sizes = [(path & ~before & self._parametrised).bit_count() for path in paths]
        fewest = min(sizes)
        return tuple("skip" if size == fewest and sizes.count(fewest) == 1 else "branch" for size in sizes)

    def is_identity_skip(self, join: str, branch: int) -> bool:
        """Whether this input of a join reaches the fan-out with no operation that has parameters on its way."""
        inputs = self.producers[join].operation.inputs
        name, others = inputs[branch], [n for k, n in enumerate(inputs) if k != branch]
        while True:
            if len(self.users.get(name, ())) > 1 and any(self.comes_from(other, name) for other in others):
                return True
            layer = self.producers.get(name)
            if layer is None or _weights(layer) or len(layer.operation.inputs) != 1:
                return False
            name = layer.operation.inputs[0]

    def _classifier(self) -> set[str]:
        found: set[str] = set()
        waiting = {self.graph.output}
        for layer in reversed(self.layers):
            operation = layer.operation
            if operation.name not in waiting or is_join(layer) or self._has_extent(operation.name):
                continue
            if is_parametrised(layer):
                found.add(operation.name)
            waiting.update(operation.inputs)
        return found

    def _has_extent(self, name: str) -> bool:
        """Whether a value has more than one place per image: rows and columns, or tokens."""
        shape = self.graph.shapes.get(name, ())
        places = shape[1:-1] if len(shape) == 3 else shape[2:]
        return any(size != 1 for size in places)

    # -- residual blocks ----------------------------------------------------------------------------------------------

    def residual_blocks(self) -> tuple[ResidualBlock, ...]:
        """The network's residual blocks, in order, none inside another.

        A join with a skip (see :meth:`branches`) makes one if no value inside is used outside of it. Of two that lie
        inside each other the larger is taken if it holds no third (attention inside a bottleneck), else the smaller
        ones (a skip around a whole stage).
        """
        found: list[ResidualBlock] = []
        for join, entry in self.entries().items():
            block = self._residual_block(join, entry) if entry and "skip" in self.branches(join) else None
            if block is None:
                continue
            members = set(block.operations)
            touched = [other for other in found if not members.isdisjoint(other.operations)]
            if len(touched) <= 1 and all(members.issuperset(other.operations) for other in touched):
                found = [*(other for other in found if other not in touched), block]
        return tuple(found)

    def entries(self) -> dict[str, str]:
        """For each join the last value that every path to it crosses: its immediate dominator; ``""`` without one."""
        above = {source.name: "" for source in self.graph.sources}
        depth = {"": 0, **dict.fromkeys(above, 1)}
        for layer in self.layers:
            first, *others = layer.operation.inputs
            for other in others:
                while first != other:
                    first, other = (above[first], other) if depth[first] >= depth[other] else (first, above[other])
            above[layer.operation.name] = first
            depth[layer.operation.name] = depth[first] + 1
        return {join: above[join] for join in self.joins}

    def _residual_block(self, join: str, entry: str) -> ResidualBlock | None:
        """The operations from ``entry`` to ``join`` as a block, unless a value inside of it is used outside."""
        inside = [n for n in self.producers if n != entry and self.comes_from(join, n) and self.comes_from(n, entry)]
        path, after = self._shared_path(inside), self.users.get(join, [])
        if len(after) == 1 and join != self.graph.output:
            layer = self.producers[after[0]]
            if layer.operation.kind in ACTIVATIONS and len(layer.operation.inputs) == 1:
                inside.append(after[0])
        members = set(inside)
        for name in inside[:-1]:
            if name == self.graph.output or not members.issuperset(self.users.get(name, ())):
                return None
        return ResidualBlock(join, entry, tuple(inside), path)

    def _shared_path(self, names: Sequence[str]) -> str:
        """The innermost module that all of these operations belong to."""
        calls = [self.producers[name].operation.calls for name in names]
        shared = ""
        for each in zip(*calls, strict=False):
            if len({call.key for call in each}) > 1:
                break
            shared = each[0].path
        return shared

    # -- gates, signs -------------------------------------------------------------------------------------------------

    def gate_shares(self, layer: Layer, gates: str) -> tuple[float, float]:
        """Part of the relevance that each of two factors gets."""
        names = layer.operation.inputs
        if gates == "half" or len(names) != 2 or names[0] == names[1]:
            return (0.5, 0.5)
        if layer.operation.kind == "div":
            return (1.0, 0.0)
        signs: list[Sequence[int]] = [self._spread(names), [self._gate_likeness(name) for name in names]]
        if isinstance(layer, MatrixProduct):
            signs = signs[1:]
        for first, second in signs:
            if first != second:
                return (0.0, 1.0) if first > second else (1.0, 0.0)
        return (0.5, 0.5)

    def _spread(self, names: Sequence[str]) -> list[bool]:
        """Whether each of two values is broadcast to the other."""
        sizes = [self.graph.shapes.get(name, ()) for name in names]
        rank = max(len(size) for size in sizes)
        first, second = ((1,) * (rank - len(size)) + size for size in sizes)
        pairs = list(zip(first, second, strict=True))
        return [any(a == 1 != b for a, b in pairs), any(b == 1 != a for a, b in pairs)]

    def _gate_likeness(self, name: str) -> int:
        """How much a value is like a gate: 2 from a sigmoid or softmax, 1 from another bounded function, else 0.

        No other function may come after it. In an LSTM, a sigmoid is the gate of what a tanh has made.
        """
        while True:
            layer = self.producers.get(name)
            if layer is None:
                return 0
            if layer.operation.kind in _GATE_FUNCTIONS:
                return 2 if layer.operation.kind in _GATES else 1
            if not (isinstance(layer, Rearrange) or layer.operation.kind in _KEEPS_A_GATE):
                return 0
            if len(layer.operation.inputs) != 1:
                return 0
            (name,) = layer.operation.inputs

    def _never_negative(self, layer: Layer) -> bool:
        operation = layer.operation
        if operation.kind in _NEVER_NEGATIVE:
            return True
        if operation.kind == "hardtanh":
            return layer.argument(1, "min_val", -1.0) >= 0
        adds = operation.kind == "add"
        keeps = isinstance(layer, (MaxPool, MaxSelect, Average, Rearrange)) or operation.kind in ("dropout", "clone")
        keeps = layer.argument(2, "alpha", 1) == 1 if adds else keeps
        tensors = len(operation.args) if adds else 1
        return keeps and len(operation.inputs) >= min(tensors, 2) and self.nonnegative.issuperset(operation.inputs)


def _weights(layer: Layer) -> bool:
    """Whether an operation, or any of a block's, has parameters or buffers among its arguments."""
    operations = layer.operations if isinstance(layer, Block) else (layer.operation,)
    return any(operation.weights for operation in operations)


def _first(layers: Sequence[Layer]) -> set[str]:
    first: set[str] = set()
    behind: set[str] = set()  # values that a linear operation with parameters, or a block, has gone into
    for layer in layers:
        operation = layer.operation
        if not behind.isdisjoint(operation.inputs):
            behind.add(operation.name)
        elif is_parametrised(layer):
            first.add(operation.name)
        if is_parametrised(layer) or isinstance(layer, Block) or operation.looks_up:
            behind.add(operation.name)
    return first


def _last(layers: Sequence[Layer]) -> set[str]:
    last: set[str] = set()
    ahead: set[str] = set()  # values that go into a linear operation with parameters, or into a block with weights
    for layer in reversed(layers):
        operation = layer.operation
        linear = is_parametrised(layer)
        if linear and operation.name not in ahead:
            last.add(operation.name)
        if linear or operation.name in ahead or (isinstance(layer, Block) and _weights(layer)):
            ahead.update(operation.inputs)
    return last
