"""The sweep: a graph and a composite made into steps; forward keeping what the rules need, then back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from headwater.composites import Composite
from headwater.errors import InputError
from headwater.graph import Constant, Graph, Operation, Value, Weight
from headwater.layers import Activation, BatchNorm, Block, Layer, Linear, layer_for
from headwater.rules import Rule
from headwater.weights import WeightStore


@dataclass
class Step:
    """One layer with its rule.

    Attributes:
        drops: values that nothing needs any more once this step has run forward.
        forgets: values that no rule needs any more once this step has run backward.
        inplace: the layer may write over its input, which nothing else needs.
    """

    layer: Layer
    rule: Rule
    inputs: tuple[str, ...]
    output: str
    drops: tuple[str, ...] = ()
    forgets: tuple[str, ...] = ()
    inplace: bool = False


class Plan:
    """Steps of one network at one picture size."""

    def __init__(self, graph: Graph, composite: Composite, weights: WeightStore) -> None:
        self.graph = graph
        self.weights = weights
        self._constants: dict[str, Any] = {}
        self._plain, main = self._separate(graph)
        self.layers = self._group(main, composite)
        rules = composite.assign(graph, self.layers)
        self.steps = [
            Step(layer, rule, layer.operation.inputs, layer.operation.name)
            for layer, rule in zip(self.layers, rules, strict=True)
        ]
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
        self, seed: Tensor, values: dict[str, Tensor], shapes: Mapping[str, torch.Size], keep: Sequence[str] = ()
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Walk back from ``seed``. Returns the relevance of the picture, and of the values named in ``keep``."""
        relevance: dict[str, Tensor] = {self.graph.output: seed}
        kept: dict[str, Tensor] = {}
        for step in reversed(self.steps):
            arriving = relevance.pop(step.output, None)
            if arriving is None:  # a branch that was left out
                arriving = seed.new_zeros(shapes[step.output])
            if step.output in keep:
                kept[step.output] = arriving.clone()
            inputs = [
                values[name] if step.rule.keeps_inputs else self._blank(shapes[name], seed) for name in step.inputs
            ]
            shares = step.rule(step.layer, self._prepared(step), inputs, arriving)
            for name, share in zip(step.inputs, shares, strict=True):
                if share is not None:
                    relevance[name] = relevance[name].add_(share) if name in relevance else share
            for name in step.forgets:
                values.pop(name, None)
        picture = relevance.pop(self.graph.input)
        if self.graph.input in keep:
            kept[self.graph.input] = picture
        return picture, kept

    def _run(self, step: Step, inputs: list[Tensor]) -> Tensor:
        if step.inplace and isinstance(step.layer, (Activation, BatchNorm)):
            return step.layer.run_inplace(inputs[0])
        return step.layer.run(inputs)

    def _prepared(self, step: Step) -> tuple[Tensor | None, ...]:
        layer = step.layer
        if not isinstance(layer, Linear):
            return ()

        def prepare() -> tuple[Tensor | None, ...]:
            return tuple(w if w is None else channels_last(w) for w in step.rule.prepare(layer.weight, layer.bias))

        return self.weights.derived((step.output, step.rule), prepare)

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
            return self._constants[leaf.name]
        return leaf

    @staticmethod
    def _separate(graph: Graph) -> tuple[list[Operation], list[Operation]]:
        """Operations that the picture's values do not enter, and the others."""
        plain = [operation for operation in graph.operations if not operation.inputs or operation.kind == "sym_size"]
        names = {operation.name for operation in plain}
        return plain, [operation for operation in graph.operations if operation.name not in names]

    def _compute_plain(self, x: Tensor) -> None:
        self._constants = {self.graph.input: x}
        for operation in self._plain:
            args, kwargs = operation.bind(self._lookup)
            self._constants[operation.name] = operation.target(*args, **kwargs)
        del self._constants[self.graph.input]

    # -- making the steps ---------------------------------------------------------------------------------------------

    def _group(self, operations: list[Operation], composite: Composite) -> list[Layer]:
        """One layer an operation, or one for all operations of a module that the composite takes as a block."""
        layers: list[Layer] = []
        index = 0
        while index < len(operations):
            key = _block_key(operations[index], composite.blocks)
            if key is None:
                layers.append(layer_for(operations[index], self._lookup))
                index += 1
                continue
            end = index
            while end < len(operations) and any(call.key == key for call in operations[end].calls):
                end += 1
            block = operations[index:end]
            inside = {operation.name for operation in block}
            outside = operations[end:]
            inputs = tuple(dict.fromkeys(n for operation in block for n in operation.inputs if n not in inside))
            taken = {name for operation in outside for name in operation.inputs} | {self.graph.output}
            leaving = [name for name in inside & taken if name != block[-1].name]
            if leaving:
                raise InputError(f"block {key!r} cannot be one layer: {leaving} leave it besides its output")
            layers.append(Block(block, inputs, self._lookup))
            index = end
        return layers

    def _schedule(self) -> None:
        """When to let go of each value."""
        last_use = {name: step for step in self.steps for name in step.inputs}
        keeper: dict[str, Step] = {}  # the last step, on the way back, whose rule needs the value
        for step in reversed(self.steps):
            if step.rule.keeps_inputs:
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

    def _modules(self) -> str:
        paths = list(
            dict.fromkeys(c.path.split(".")[0] for operation in self.graph.operations for c in operation.calls)
        )
        return ", ".join(paths[:12])


def channels_last(tensor: Tensor) -> Tensor:
    """The layout that convolutions are fastest in."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _block_key(operation: Operation, blocks: Sequence[str]) -> str | None:
    """The key of the outermost enclosing module call that a composite takes as one layer."""
    for call in operation.calls:
        if any(call.kind == pattern or fnmatchcase(call.path, pattern) for pattern in blocks):
            return call.key
    return None
