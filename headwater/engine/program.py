"""The sweep as one program of tensor operations, from weights and images: what is compiled or exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from headwater.engine.account import Account
from headwater.engine.graph import Activation
from headwater.engine.guards.modes import tracing
from headwater.engine.heads import logits_before
from headwater.engine.inputs import Inputs, channels_last
from headwater.engine.linear_layers import Linear
from headwater.engine.packing import recording
from headwater.engine.plan import Plan, derived_key
from headwater.engine.seed import Seed, Start, class_scores, seed_at, with_classes
from headwater.engine.steps import Step
from headwater.engine.sweep import sweep
from headwater.engine.weights import widened


@dataclass(frozen=True)
class Request:
    """What a sweep is asked for besides its images; what differs makes another program.

    Attributes:
        start: relevance to begin with.
        chosen: the classes are given, else they are the predicted ones.
        region: a mask of per-pixel logits is given.
        places: value of each checkpoint, by the checkpoint's name.
        keep: whether the relevance at checkpoints is returned, not only its sum.
        against: other classes are given, against which they are explained.
        scales: whether the maps at cuts are returned.
        activation: what makes probabilities of the logits.
    """

    start: Start = "probability"
    chosen: bool = False
    region: bool = False
    places: Mapping[str, str] = field(default_factory=dict)
    keep: bool = False
    against: bool = False
    scales: bool = False
    activation: Activation = "softmax"


class SweepProgram:
    """A sweep, traced for any number of images of one size unless the network has fixed the number.

    Args:
        plan: the network's steps. While it is traced, its weights stand for other tensors.
        request: what is asked for.
        inputs: an example; its values do not matter.
        derive: what the rules derive from the weights alone is computed in the program, else it is an input (but not
            where a weight has another shape for each number of images).

    Attributes:
        graph: the program: :meth:`tensors`, inputs, then classes, other classes and mask where the request has them;
            to a tuple.
        outputs: what the tuple holds: ``relevance`` of the first input that has it, ``relevance_1`` and so on of
            others; ``logits``, ``target``, ``probability``, ``total`` and, where
            there are other classes, ``against`` and ``size`` as :class:`~headwater.engine.seed.Seed` has them;
            ``join.NAME``, ``total.NAME``, ``relevance.NAME`` and ``map.NAME`` as
            :class:`~headwater.engine.account.Account` notes them.
    """

    def __init__(self, plan: Plan, request: Request, inputs: Inputs, derive: bool) -> None:
        self.plan, self.request, self._like = plan, request, inputs
        linear = [step for step in plan.steps if isinstance(step.layer, Linear) and step.rule is not None]
        self._kept: list[Step] = [] if derive else [step for step in linear if step.output not in plan.varying]
        self.outputs: tuple[str, ...] = ()
        count = 2 if plan.graph.batch is None else plan.graph.batch
        x = inputs.floating
        with tracing(x):
            plan.weights.refresh()
            plan.bindings.compute(inputs)
            shape = plan.graph.shapes[plan.graph.output]
            given = [channels_last(t.new_zeros((count, *t.shape[1:]))) for t in inputs.tensors]
            given += [x.new_zeros(count, dtype=torch.long) for asked in (request.chosen, request.against) if asked]
            given += [widened(x.new_zeros((count, *map(int, filter(None, shape[2:])))))] if request.region else []
            with nullcontext() if derive else recording():
                self.graph = self._traced(self.tensors(), given, plan.graph.batch is None)
            plan.weights.refresh()

    def tensors(self) -> list[Tensor]:
        """The weights as they are now, and what the rules derive from them.

        Requires: ``plan.weights`` are refreshed and ``plan.bindings`` computed.
        """
        made = [w for step in self._kept for w in self._prepared(step) if w is not None]
        return [*self.plan.weights.tensors.values(), *made]

    def _prepared(self, step: Step) -> tuple[Tensor | None, ...]:
        """As the sweep has it, in at least single precision."""
        with self.plan.bindings.widening():
            return self.plan.prepared(step)

    def _traced(self, tensors: Sequence[Tensor], given: Sequence[Tensor], any_number: bool) -> torch.fx.GraphModule:
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        here = [tensor is not None for step in self._kept for tensor in self._prepared(step)]
        batch = DimDynamic.DUCK if any_number else DimDynamic.STATIC
        fakes = [mode.from_tensor(tensor, static_shapes=True) for tensor in tensors]
        for tensor in given:
            sizes = [batch, *[DimDynamic.STATIC] * (tensor.ndim - 1)]
            fakes.append(mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes)))

        like = self._like

        def run(*arguments: Tensor) -> tuple[Tensor, ...]:
            self._stand_for(arguments[: len(tensors)], here)
            rest = list(arguments[len(tensors) :])
            inputs = Inputs(tuple(rest.pop(0) for _ in like.tensors), like.keys, like.alone)
            classes = rest.pop(0) if self.request.chosen else None
            against = rest.pop(0) if self.request.against else None
            found = self._run(inputs, classes, against, rest.pop(0) if rest else None)
            self.outputs = tuple(found)
            return tuple(found.values())

        graph = make_fx(run, tracing_mode="symbolic")(*fakes)
        for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.sym_numel.default):
            node.op, node.target = "call_method", "numel"  # which torch's compiler knows
        graph.recompile()
        return graph

    def _stand_for(self, inputs: Sequence[Tensor], here: Sequence[bool]) -> None:
        """Let the plan see these tensors in place of the weights and what is derived from them."""
        names, left, present = list(self.plan.weights.tensors), iter(inputs), iter(here)
        weights = {name: next(left) for name in names}
        derived = {
            derived_key(step): tuple(next(left) if next(present) else None for _ in self._prepared(step))
            for step in self._kept
        }
        self.plan.weights.stand_for(weights, derived)

    def _run(
        self, inputs: Inputs, target: Tensor | None, against: Tensor | None, mask: Tensor | None
    ) -> dict[str, Tensor]:
        request = self.request
        layouts = self.plan.layouts if request.scales else {}
        count = inputs.tensors[0].shape[0]  # a symbol while it is traced, which len() would fix
        account = Account(self.plan, count, request.places, request.keep, layouts)

        def begin(output: Tensor) -> Seed:
            logits = logits_before(with_classes(output, count), self.plan.graph.head)
            classes = class_scores(logits, mask, request.activation).argmax(1) if target is None else target
            return seed_at(
                output, logits, classes, request.start, mask, against, self.plan.contrast, request.activation
            )

        self.plan.bindings.compute(inputs)
        seed, relevance = sweep(self.plan, inputs, begin, account)
        return {
            **{f"relevance_{k}" if k else "relevance": arrived for k, arrived in enumerate(relevance)},
            "logits": seed.logits,
            "target": seed.target,
            "probability": seed.probability,
            "total": seed.total,
            **({} if seed.against is None else {"against": seed.against}),
            **({} if seed.size is None else {"size": seed.size}),
            **{f"join.{name}": sums for name, sums in account.joins.items()},
            **{f"total.{name}": sums for name, sums in account.totals.items()},
            **{f"relevance.{name}": kept for name, kept in account.relevance.items()},
            **{f"map.{name}": maps for name, maps in account.maps.items()},
        }
