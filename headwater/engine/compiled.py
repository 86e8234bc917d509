"""The sweep by ``torch.compile``: one program without a graph break, the maps of the plain sweep to rounding."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable

import torch
from torch import Tensor

from headwater.engine.account import Account
from headwater.engine.graph import Activation
from headwater.engine.inputs import Inputs
from headwater.engine.plan import Plan
from headwater.engine.program import Request, SweepProgram
from headwater.engine.seed import (
    Region,
    Seed,
    Start,
    Target,
    check_different,
    check_scores,
    chosen_classes,
    class_scores,
    region_mask,
)
from headwater.engine.sweep import back, forward
from headwater.engine.weights import widened
from headwater.errors import CompileError, HeadwaterError


class CompiledSweep:
    """A sweep for one plan, compiled at its first run, and again for another number of images.

    Weights are inputs of the program: that they change does not compile it again.

    Args:
        plan: the network's steps.
        request: what is asked for.
        inputs: of the size, dtype and device that it is compiled for.

    Raises:
        CompileError: an operation cannot be traced.
    """

    def __init__(self, plan: Plan, request: Request, inputs: Inputs) -> None:
        try:
            self._program = SweepProgram(plan, request, inputs, derive=False)
        except HeadwaterError:
            raise
        except Exception as error:  # whatever a rule or torch's tracer raises
            raise CompileError(f"the sweep cannot be compiled: {reason_of(error)}") from error
        self._run: Callable[..., tuple[Tensor, ...]] = torch.compile(self._program.graph, fullgraph=True)

    def __call__(self, inputs: Inputs, given: list[Tensor], account: Account) -> tuple[Seed, tuple[Tensor, ...]]:
        """Sweep, as :func:`~headwater.engine.sweep.sweep` does; weights must be refreshed, bindings computed.

        Args:
            inputs: what the network is called with.
            given: classes, other classes and mask, where the request has them.
            account: told what has arrived where.

        Raises:
            CompileError: torch cannot compile an operation.
        """
        try:
            results = self._run(*self._program.tensors(), *inputs.tensors, *given)
        except Exception as error:  # the compiler's errors have no common base
            raise CompileError(f"the sweep cannot be compiled: {reason_of(error)}") from error
        found = dict(zip(self._program.outputs, results, strict=True))
        for name, tensor in found.items():
            kind, _, value = name.partition(".")
            noted = {
                "join": account.joins,
                "total": account.totals,
                "relevance": account.relevance,
                "map": account.maps,
            }.get(kind)
            if value and noted is not None:
                noted[value] = tensor
        seed = Seed(
            found["relevance"],
            found["total"],
            found["logits"],
            found["target"],
            found["probability"],
            found.get("against"),
            found.get("size"),
        )
        return seed, tuple(
            found[f"relevance_{k}" if k else "relevance"] for k in range(len(self._program.plan.graph.sources))
        )


def compiled_sweep(
    plan: Plan,
    inputs: Inputs,
    target: Target,
    start: Start,
    region: Region,
    against: Target,
    account: Account,
    activation: Activation,
) -> Callable[[Inputs], tuple[Seed, tuple[Tensor, ...]]]:
    """The compiled sweep for these inputs and this request, made if there is none yet.

    Raises:
        CompileError: it cannot be compiled.
        InputError: the target, the region or the class against it does not fit the network.
    """
    x = inputs.floating
    count = len(inputs)
    shape = (count, *(size for size in plan.graph.shapes[plan.graph.output][1:] if size is not None))
    like = widened(x.new_empty(())).expand(shape if len(shape) > 1 else (*shape, 1))  # of the logits, without memory
    given = [] if target is None else [chosen_classes(target, count, like.shape[1], x.device).contiguous()]
    other = None if against is None else chosen_classes(against, count, like.shape[1], x.device, "against").contiguous()
    given += [] if other is None else [other]
    mask = None if region is None else region_mask(region, like).contiguous()
    given += [] if mask is None else [mask]
    request = Request(
        start,
        target is not None,
        mask is not None,
        dict(account.places),
        account.keep,
        other is not None,
        bool(account.layouts),
        activation,
    )
    kinds = ("start", "chosen", "region", "keep", "against", "scales", "activation")
    key = (*(getattr(request, name) for name in kinds), *request.places.items())
    if key not in plan.programs:
        plan.programs[key] = CompiledSweep(plan, request, inputs)
    run: CompiledSweep = plan.programs[key]

    def begin(prepared: Inputs) -> tuple[Seed, tuple[Tensor, ...]]:
        seed, relevance = run(prepared, given, account)
        check_scores(class_scores(seed.logits, mask, activation))
        if other is not None:
            check_different(seed.target, other)
        return seed, relevance

    return begin


def reason_of(error: BaseException) -> str:
    """Which operation an error of torch's is about, and what it says, in one line."""
    told: BaseException = error
    while told.__cause__ is not None and not isinstance(told, HeadwaterError):
        told = told.__cause__
    text = " ".join(str(told).split()) or type(told).__name__
    what = text.split(". ")[0][:300]
    for frame, _ in traceback.walk_tb(error.__traceback__):
        step = frame.f_locals.get("step") if frame.f_code in (forward.__code__, back.__code__) else None
        if step is not None:
            operation = step.layer.operation
            return f"operation {operation.kind!r} in module {operation.module!r}, rule {step.rule}: {what}"
    named = re.search(r"(?:target: |target=torch\.ops\.|OpOverload\(op=')(aten\.\w+)", f"{error} {text}")
    return f"operation {named[1]!r}: {what}" if named else what
