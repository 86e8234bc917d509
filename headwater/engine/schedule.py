"""When each value may be dropped, so that memory holds only what is still needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headwater.engine.layers import Activation, BatchNorm
from headwater.engine.linear_layers import Linear
from headwater.engine.steps import Step


def scheduled(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps, each told what to drop after it has run forward, what after it has run back, and whether in place."""
    last_use = {name: k for k, step in enumerate(steps) for name in step.inputs}
    needed_until: dict[str, int] = {}  # the last step, on the way back, whose rule needs the value
    for k in reversed(range(len(steps))):
        rule = steps[k].rule
        if rule is not None and rule.needs_inputs:
            needed_until.update(dict.fromkeys(steps[k].inputs, k))
    fresh = {  # values in memory of their own
        step.output
        for step in steps
        if isinstance(step.layer, (Linear, BatchNorm)) or step.layer.operation.kind == "add"
    }
    result = []
    for k, step in enumerate(steps):
        drops = tuple(n for n in dict.fromkeys(step.inputs) if last_use[n] == k and n not in needed_until)
        writes = isinstance(step.layer, (Activation, BatchNorm))
        result.append(
            replace(
                step,
                drops=drops,
                forgets=tuple(name for name, last in needed_until.items() if last == k),
                in_place=writes and drops == step.inputs and step.inputs[0] in fresh,
            )
        )
    return tuple(result)
