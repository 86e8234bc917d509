"""The sweep: a graph and a composite made into steps; forward keeping what the rules need, then back."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from headwater.engine.composites import Composite
from headwater.engine.flow import Flow, JoinFlow
from headwater.engine.graph import Constant, Graph, Operation, Value, Weight
from headwater.engine.layer_table import layer_for
from headwater.engine.layers import Activation, BatchNorm, Block, Layer
from headwater.engine.linear_layers import Linear
from headwater.engine.rules import Rule
from headwater.engine.structure import Structure
from headwater.engine.weights import WeightStore
from headwater.errors import InputError


@dataclass
class Step:
    """One layer with its rule.

    Attributes:
        drops: values that nothing needs any more once this step has run forward.
        forgets: values that no rule needs any more once this step has run backward.
        inplace: the layer may write over its input, which nothing else needs.
    """

    layer: Layer
    rule: Rule | None
    inputs: tuple[str, ...]
    output: str
    drops: tuple[str, ...] = ()
    forgets: tuple[str, ...] = ()
    inplace: bool = False


@dataclass
class Account:
    """What the walk back is asked to keep, by names of values, and what it has kept.

    Attributes:
        count: number of images, N.
        keep: values whose relevance is kept, and summed.
        add_up: values whose relevance is only summed, one number per image.
        relevance: of the values in ``keep``.
        totals: of the values in ``keep`` and ``add_up``, each ``(N,)``.
        joins: for each join that relevance reached, the sums of its shares, ``(N, inputs)``.
    """

    count: int
    keep: Collection[str] = ()
    add_up: Collection[str] = ()
    relevance: dict[str, Tensor] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)
    joins: dict[str, Tensor] = field(default_factory=dict)

    def note(self, name: str, relevance: Tensor, batch: int = 0) -> None:
        """See the relevance of a value, which may be written over afterwards; ``batch`` is its batch dimension."""
        if name in self.keep:
            self.relevance[name] = relevance.clone()
        if name in self.keep or name in self.add_up:
            self.totals[name] = total(relevance.movedim(batch, 0), self.count)

    def note_join(self, name: str, shares: Sequence[Tensor | None], batch: int = 0) -> None:
        """See how a join has divided what reached it."""
        like = next(share for share in shares if share is not None)
        none = like.new_zeros(self.count)
        sums = [none if s is None else _per_image(s.movedim(batch, 0), self.count, s.dtype) for s in shares]
        self.joins[name] = torch.stack(sums, 1)


def total(relevance: Tensor, count: int) -> Tensor:
    """Sum over each of ``count`` images, in double precision so that the summing adds no error of its own."""
    return _per_image(relevance, count, torch.float64 if relevance.device.type != "mps" else torch.float32)


def _per_image(values: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Sums of values ``(N, ...)``, or ``(N * k, ...)`` where an image's k windows are counted with the images.

    Over dimensions as they lie: flattening a channels-last tensor would copy it.
    """
    dimensions = list(range(1, values.ndim))
    sums = values.sum(dimensions, dtype=dtype) if dimensions else values.to(dtype)
    return sums if len(sums) == count else sums.view(count, -1).sum(1)


class Plan:
    """Steps of one network at one image size.

    Attributes:
        cuts: values that all relevance passes. They include :meth:`Graph.cuts`; where branches get no relevance, also
            values on the others.
    """

    def __init__(self, graph: Graph, composite: Composite, weights: WeightStore) -> None:
        self.graph = graph
        self.weights = weights
        self._constants = threading.local()
        self._plain, main = self._separate(graph)
        self.layers = self._group(main, composite)
        rules = composite.assign(graph, self.layers)
        structure = Structure(graph, self.layers)
        self._branches = {join: structure.branches(join) for join in structure.joins}
        self.steps = [
            Step(layer, rule, layer.operation.inputs, layer.operation.name)
            for layer, rule in zip(self.layers, rules, strict=True)
        ]
        self.cuts = self._cuts()
        self._schedule()

    # -- the sweep ----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, torch.Size]]:
        """Run the network. Returns its output, the values that rules need, and every value's shape."""
        self._compute_plain(x)
        values, shapes = {self.graph.input: x}, {self.graph.input: x.shape}
        for step in self.steps:
            output = self._run(step, [values[name] for name in step.inputs])
            values[step.output] = output
            shapes[step.output] = output.shape
            for name in step.drops:
                del values[name]
        return values[self.graph.output], values, shapes

    def backward(
        self, seed: Tensor, values: dict[str, Tensor], shapes: Mapping[str, torch.Size], account: Account
    ) -> Tensor:
        """Walk back from ``seed`` and return the relevance of the image."""
        relevance: dict[str, Tensor] = {self.graph.output: seed}
        for step in reversed(self.steps):
            arriving = relevance.pop(step.output, None)
            if arriving is not None and step.rule is not None:
                batch = self._batch_dimension(step.output)
                account.note(step.output, arriving, batch)
                inputs = [
                    values[name] if step.rule.needs_inputs else self._blank(shapes[name], seed) for name in step.inputs
                ]
                shares = step.rule(step.layer, self._prepared(step), inputs, arriving)
                if step.output in self._branches:
                    account.note_join(step.output, shares, batch)
                for name, share in zip(step.inputs, shares, strict=True):
                    if share is not None:
                        relevance[name] = relevance[name].add_(share) if name in relevance else share
            elif step.output in account.keep:  # a branch that was left out, or a gate's
                account.note(step.output, seed.new_zeros(shapes[step.output]), self._batch_dimension(step.output))
            for name in step.forgets:
                values.pop(name, None)
        image = relevance.pop(self.graph.input)
        account.note(self.graph.input, image)
        return image

    def _batch_dimension(self, name: str) -> int:
        """Which dimension of a value counts the images."""
        shape = self.graph.shapes.get(name, ())
        return shape.index(None) if None in shape else 0

    def flow(self, account: Account) -> Flow:
        """How relevance divided, at the joins that it reached."""
        return Flow(
            tuple(
                JoinFlow(step.output, step.layer.operation.module, self._branches[step.output], joins)
                for step in self.steps
                if (joins := account.joins.get(step.output)) is not None
            )
        )

    def _run(self, step: Step, inputs: list[Tensor]) -> Tensor:
        if step.inplace and isinstance(step.layer, (Activation, BatchNorm)):
            return step.layer.run_inplace(inputs[0])
        return step.layer.run(inputs)

    def _prepared(self, step: Step) -> tuple[Tensor | None, ...]:
        layer = step.layer
        rule = step.rule
        if not isinstance(layer, Linear) or rule is None:
            return ()

        def prepare() -> tuple[Tensor | None, ...]:
            return tuple(w if w is None else channels_last(w) for w in rule.prepare(layer.weight, layer.bias))

        return self.weights.derived((step.output, rule), prepare)

    @staticmethod
    def _blank(shape: torch.Size, like: Tensor) -> Tensor:
        """A tensor of that shape with nothing in it, for rules that need the shape alone."""
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)

    # -- values that carry no relevance: weights, constants, sizes -----------------------------------------------------

    def _lookup(self, leaf: Any) -> Any:
        if isinstance(leaf, Weight):
            return self.weights.tensors[leaf.name]
        if isinstance(leaf, Constant):
            return leaf.tensor
        if isinstance(leaf, Value):
            return self._constants.values[leaf.name]
        return leaf

    @staticmethod
    def _separate(graph: Graph) -> tuple[list[Operation], list[Operation]]:
        """Operations that the image's values do not enter, and the others."""
        plain = [operation for operation in graph.operations if not operation.inputs]
        names = {operation.name for operation in plain}
        return plain, [operation for operation in graph.operations if operation.name not in names]

    def _compute_plain(self, x: Tensor) -> None:
        values: dict[str, Any] = {self.graph.input: x}
        self._constants.values = values  # each thread its own, which may explain another number of images
        for operation in self._plain:
            args, kwargs = operation.bind(self._lookup)
            values[operation.name] = operation.target(*args, **kwargs)
        del values[self.graph.input]

    # -- making the steps ---------------------------------------------------------------------------------------------

    def _group(self, operations: list[Operation], composite: Composite) -> list[Layer]:
        """One layer per operation, or one for all operations that the composite takes as a block."""
        groups = composite.find_blocks(self.graph, operations, self._lookup)
        inside = {operation.name for group in groups for operation in group.operations}
        ends = {group.operations[-1].name: group for group in groups}
        layers: list[Layer] = []
        for operation in operations:
            if operation.name not in inside:
                layers.append(layer_for(operation, self._lookup))
            elif operation.name in ends:
                group = ends[operation.name]
                layers.append(Block(group.operations, group.inputs, self._lookup, group.call))
        return layers

    def _schedule(self) -> None:
        """When to let go of each value."""
        last_use = {name: step for step in self.steps for name in step.inputs}
        keeper: dict[str, Step] = {}  # the last step, on the way back, whose rule needs the value
        for step in reversed(self.steps):
            if step.rule is not None and step.rule.needs_inputs:
                keeper.update(dict.fromkeys(step.inputs, step))
        fresh = {  # values in memory of their own
            step.output
            for step in self.steps
            if isinstance(step.layer, (Linear, BatchNorm)) or step.layer.operation.kind == "add"
        }
        for step in self.steps:
            going = [name for name in dict.fromkeys(step.inputs) if last_use[name] is step and name not in keeper]
            step.drops = tuple(going)
            step.forgets = tuple(name for name, last in keeper.items() if last is step)
            step.inplace = (
                isinstance(step.layer, (Activation, BatchNorm))
                and going == list(step.inputs)
                and step.inputs[0] in fresh
            )

    # -- places -------------------------------------------------------------------------------------------------------

    def input_of(self, module: str) -> str:
        """The value that enters ``module``, at its first call.

        Raises:
            InputError: there is no such module, it is inside a block, or several values enter it.
        """
        if module == "":
            return self.graph.input
        keys = [c.key for operation in self.graph.operations for c in operation.calls if c.path == module]
        if not keys:
            raise InputError(
                f"no module {module!r} takes part in the network's forward; its operations come from {self._modules()}"
            )
        inside = [operation for operation in self.graph.operations if any(c.key == keys[0] for c in operation.calls)]
        names = {operation.name for operation in inside}
        entering = list(dict.fromkeys(n for operation in inside for n in operation.inputs if n not in names))
        if len(entering) != 1:
            raise InputError(f"{len(entering)} values enter module {module!r}; a checkpoint needs one")
        (name,) = entering
        if name not in {self.graph.input, *(step.output for step in self.steps)}:
            raise InputError(f"module {module!r} lies inside a block that the composite takes as one layer")
        return name

    def _cuts(self) -> frozenset[str]:
        """Values that all relevance passes, so that its sum there is the seed's if nothing is lost."""
        cuts, waiting = set(), {self.graph.output}  # values that relevance has reached and not yet left
        for step in reversed(self.steps):
            if step.rule is None:
                continue
            if waiting == {step.output}:
                cuts.add(step.output)
            waiting.discard(step.output)
            waiting.update(name for k, name in enumerate(step.inputs) if step.rule.passes_to(k))
        return frozenset((*cuts, self.graph.input))

    def _modules(self) -> str:
        paths = list(
            dict.fromkeys(c.path.split(".")[0] for operation in self.graph.operations for c in operation.calls)
        )
        return ", ".join(paths[:12])


def channels_last(tensor: Tensor) -> Tensor:
    """The layout that convolutions are fastest in."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
