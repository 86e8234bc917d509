"""The plan of a sweep: one step per layer of the network, each with its rule and the reason why it has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from headwater.engine.composites import Composite
from headwater.engine.graph import Graph, Operation
from headwater.engine.inputs import channels_last
from headwater.engine.layer_table import layer_for
from headwater.engine.layers import Block, Layer, Lookup
from headwater.engine.linear_layers import Linear
from headwater.engine.scales import Layout, scale_layouts
from headwater.engine.schedule import scheduled
from headwater.engine.steps import Step
from headwater.engine.structure import Structure
from headwater.engine.weights import Bindings, WeightStore
from headwater.errors import InputError


@dataclass(frozen=True)
class Plan:
    """The steps of one network at one image size. ``print(plan)`` lists them, with module, rule and why.

    Attributes:
        graph: the network's operations.
        steps: those that the image's values enter, in order.
        cuts: values that all relevance passes. They include :meth:`Graph.cuts`; where branches get no relevance, also
            values on the others.
        layouts: those cuts between image and output that have rows and columns, with their layout, in order.
        weights: the model's live parameters.
        bindings: what the operations' arguments stand for.
        varying: outputs of those steps whose weights have another shape for each number of images.
        contrast: of the composite, see :class:`~headwater.engine.composites.Composite`.
        programs: what was compiled of it, by what was asked for.

    >>> import torch, headwater as hw
    >>> plan = hw.LRP(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())).plan(torch.zeros(1, 3, 8, 8))
    >>> print(plan)
    module  operation  rule                           why
    0       conv2d     WPlus(eps=0.0, fallback=True)  first linear operation
    1       relu       Pass()                         type 'elementwise'
    """

    graph: Graph
    steps: tuple[Step, ...]
    cuts: frozenset[str]
    layouts: Mapping[str, Layout]
    weights: WeightStore
    bindings: Bindings
    varying: frozenset[str] = frozenset()
    contrast: float = 0.0
    programs: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def prepared(self, step: Step) -> tuple[Tensor | None, ...]:
        """What the step's rule makes of the layer's parameters alone, kept until they change.

        Where a weight has another shape for each number of images, it is made anew.
        """
        layer, rule = step.layer, step.rule
        if not isinstance(layer, Linear) or rule is None:
            return ()

        def make() -> tuple[Tensor | None, ...]:
            return tuple(w if w is None else channels_last(w) for w in rule.prepare(layer.weight, layer.bias))

        return make() if step.output in self.varying else self.weights.derived(derived_key(step), make)

    def input_of(self, module: str) -> str:
        """The value that enters ``module``, at its first call.

        Raises:
            InputError: there is no such module, it is inside a block, or several values enter it.
        """
        if module == "" and len(self.graph.sources) == 1:
            return self.graph.input
        keys = [c.key for operation in self.graph.operations for c in operation.calls if c.path == module]
        if not keys:
            paths = dict.fromkeys(c.path.split(".")[0] for o in self.graph.operations for c in o.calls)
            raise InputError(
                f"no module {module!r} takes part in the network's forward; its operations come from "
                f"{', '.join(list(paths)[:12])}"
            )
        inside = [operation for operation in self.graph.operations if any(c.key == keys[0] for c in operation.calls)]
        names = {operation.name for operation in inside}
        entering = list(dict.fromkeys(n for operation in inside for n in operation.inputs if n not in names))
        if len(entering) != 1:
            raise InputError(f"{len(entering)} values enter module {module!r}; a checkpoint needs one")
        (name,) = entering
        if name not in {*(source.name for source in self.graph.sources), *(step.output for step in self.steps)}:
            raise InputError(f"module {module!r} lies inside a block that the composite takes as one layer")
        return name

    def __str__(self) -> str:
        rows = [("module", "operation", "rule", "why")]
        for step in self.steps:
            block = isinstance(step.layer, Block)
            kind = "(block)" if block else step.layer.operation.kind
            path = step.layer.call.path if isinstance(step.layer, Block) else step.layer.operation.module
            rows.append((path, kind, "-" if step.rule is None else str(step.rule), step.why))
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        lines = ("  ".join(f"{cell:<{w}}" for cell, w in zip(row, (*widths, 0), strict=True)) for row in rows)
        head, left = self.graph.head, [given.name for given in self.graph.inputs if not given.carries]
        told = [] if head is None else [f"The network ends with a {head}; what enters it are the logits."]
        if head in ("probabilities", "chances"):
            told = ["The network returns probabilities; relevance begins at them."]
        told += [f"No relevance of their own: {', '.join(left)}."] if left else []
        return "\n".join([*(line.rstrip() for line in lines), *told])


def derived_key(step: Step) -> tuple[object, ...]:
    """Under which :meth:`Plan.prepared` keeps what it returns."""
    return step.output, step.rule


def make_plan(graph: Graph, composite: Composite, weights: WeightStore) -> Plan:
    """The plan by which ``composite`` explains the network ``graph``.

    Raises:
        InputError: the composite has no rule for an operation, or something in it reaches nothing.
        UnsupportedOperationError: relevance reaches an operation that nothing is registered for.
    """
    bindings = Bindings(graph, lambda: weights.tensors)
    layers = _layers(graph, composite, bindings)
    structure = Structure(graph, layers)
    steps = [
        Step(
            layer,
            assigned.rule,
            assigned.why,
            graph.batch_dimension(layer.operation.name),
            structure.branches(layer.operation.name) if layer.operation.name in structure.joins else (),
        )
        for layer, assigned in zip(layers, composite.assign(graph, layers), strict=True)
    ]
    cuts = _cuts(graph, steps)
    layouts = scale_layouts(graph, steps, cuts)
    varying = frozenset(step.output for step in steps if bindings.varies(step.layer.operation))
    return Plan(graph, scheduled(steps), cuts, layouts, weights, bindings, varying, composite.contrast)


def _layers(graph: Graph, composite: Composite, lookup: Lookup) -> list[Layer]:
    """One layer per operation, or one for all operations that the composite takes as a block."""
    operations: list[Operation] = [operation for operation in graph.operations if operation.inputs]
    groups = composite.find_blocks(graph, operations, lookup)
    inside = {operation.name for group in groups for operation in group.operations}
    ends = {group.operations[-1].name: group for group in groups}
    layers: list[Layer] = []
    for operation in operations:
        if operation.name not in inside:
            layers.append(layer_for(operation, lookup))
        elif operation.name in ends:
            group = ends[operation.name]
            layers.append(Block(group.operations, group.inputs, lookup, group.call))
    return layers


def _cuts(graph: Graph, steps: Sequence[Step]) -> frozenset[str]:
    """Values that all relevance passes, so that its sum there is the seed's if nothing is lost."""
    cuts, waiting = set(), {graph.output}  # values that relevance has reached and not yet left
    for step in reversed(steps):
        if step.rule is None:
            continue
        if waiting == {step.output}:
            cuts.add(step.output)
        waiting.discard(step.output)
        waiting.update(name for k, name in enumerate(step.inputs) if step.rule.passes_to(k))
    return frozenset((*cuts, graph.input) if len(graph.sources) == 1 else cuts)
