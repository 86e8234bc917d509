"""One step of a sweep."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headwater.engine.layers import Activation, BatchNorm, Layer
from headwater.engine.rules import Rule


@dataclass(frozen=True)
class Step:
    """One layer with its rule.

    Attributes:
        layer: the operation, or the operations of a block.
        rule: how relevance passes it; ``None`` where none arrives.
        why: the entry of the composite that says so.
        batch: which dimension of its output counts the images.
        branches: for each input of a join ``"skip"`` or ``"branch"``; empty elsewhere.
        drops: values that nothing needs any more once this step has run forward.
        forgets: values that no rule needs any more once this step has run back.
        in_place: the layer may write over its input, which nothing else needs.
    """

    layer: Layer
    rule: Rule | None
    why: str
    batch: int = 0
    branches: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()
    forgets: tuple[str, ...] = ()
    in_place: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the values that enter."""
        return self.layer.operation.inputs

    @property
    def output(self) -> str:
        """Name of the value that leaves."""
        return self.layer.operation.name

    def run(self, inputs: list[Tensor]) -> Tensor:
        """The layer forward."""
        if self.in_place and isinstance(self.layer, (Activation, BatchNorm)):
            return self.layer.run_inplace(inputs[0])
        return self.layer.run(inputs)
