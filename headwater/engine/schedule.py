"""When each value may be dropped, so that memory holds only what is still needed; what can be computed again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from headwater.engine.graph import Shape
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


def segments(steps: Sequence[Step], shapes: Mapping[str, Shape]) -> tuple[tuple[Step, ...], ...]:
    """The steps in a row of segments, each of which can be run again from one value.

    A segment begins with the one value that enters it, which is kept; of what is inside, only one segment's is held at
    a time. They are chosen so that both together are least: a segment ends where what its rules need reaches a limit,
    and the best of some limits is taken.

    Args:
        steps: scheduled ones.
        shapes: of the values, for their sizes.
    """
    needed = {name for step in steps for name in step.forgets}
    last_use = {name: k for k, step in enumerate(steps) for name in step.inputs}
    overwritten = {name for step in steps if step.in_place for name in step.inputs}

    def size(name: str) -> int:
        return math.prod(n for n in shapes.get(name, ()) if n is not None)

    ends, held = [], set[str]()  # where one value alone is held
    for k, step in enumerate(steps):
        held = {name for name in (*held, *step.inputs, step.output) if last_use.get(name, -1) > k}
        if held == {step.output} and step.output not in overwritten:
            ends.append(k + 1)
    inside = [size(step.output) if step.output in needed else 0 for step in steps]

    def divided(limit: int) -> tuple[list[int], int]:
        """Ends of segments that hold about so much, and what is held at most."""
        chosen, begin, kept, largest = list[int](), 0, 0, 0
        for end in (*ends, len(steps)):
            filled = sum(inside[begin:end])
            if end == len(steps) or filled >= limit:
                chosen.append(end)
                kept, largest, begin = kept + size(steps[end - 1].output), max(largest, filled), end
        return chosen, kept + largest

    limits = [sum(inside) // n for n in range(1, 2 * len(ends) + 2)]
    chosen, _ = min((divided(limit) for limit in limits), key=lambda found: found[1])
    return tuple(tuple(steps[a:b]) for a, b in zip((0, *chosen), chosen, strict=False))
