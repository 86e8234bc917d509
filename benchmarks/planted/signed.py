"""Candidates, which Headwater does not have: joins and attention that count contributions with their signs.

``otsuki2024`` divides by absolute value where branches join, and takes attention's values by z+. Here both are shared
out as the epsilon rule does it, ``R z_i / z``, with the threshold and the fallback of
:class:`~headwater.rules.SignedRule`: where the contributions cancel, they are shared out by absolute value. So it stays
exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.composites import Composite, Type, load_composite
from headwater.layers import MatrixProduct
from headwater.rules import Epsilon, MatrixGate
from headwater.splitting import Ratio

THRESHOLD = 0.1
"""As :class:`~headwater.rules.SignedRule` has it."""


@dataclass(frozen=True)
class Signed(Ratio):
    """A join: every branch by its sign, or by absolute value where the sum is small beside the branches."""

    threshold: float = THRESHOLD

    def __call__(self, terms: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
        total, size = sum(terms), sum(term.abs() for term in terms)
        assert isinstance(total, Tensor) and isinstance(size, Tensor)
        cancels = total.abs() <= self.threshold * size
        by_size = super().__call__(terms, relevance)
        quotient = relevance / total.masked_fill(cancels, 1)
        shares = [torch.where(cancels, a, quotient * h) for a, h in zip(by_size[:-1], terms, strict=False)]
        return [*shares, relevance - sum(shares)]


@dataclass(frozen=True)
class SignedGate(MatrixGate):
    """A matrix product of attention weights and values: every value by its sign."""

    threshold: float = THRESHOLD

    def __call__(
        self, layer: MatrixProduct, prepared: object, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor | None]:
        sizes = [h.abs() for h in inputs]
        z, size = layer.run(inputs), layer.run(sizes)
        limits = torch.finfo(z.dtype)
        nothing = size <= limits.tiny / limits.eps
        cancels = ~nothing & (z.abs() <= self.threshold * size)
        signed = torch.where(nothing | cancels, 0, relevance / z)
        unsigned = torch.where(cancels, relevance / size, 0)
        rest = super().__call__(layer, prepared, inputs, torch.where(nothing, relevance, 0))
        return [
            None
            if left is None
            else left
            + share * inputs[k] * self._adjoint(layer, inputs, k, signed)
            + share * sizes[k] * self._adjoint(layer, sizes, k, unsigned)
            for k, (left, share) in enumerate(zip(rest, self.shares, strict=True))
        ]


def composites() -> dict[str, Composite]:
    """What is changed in ``otsuki2024``, one thing after the other."""
    base = load_composite("otsuki2024")
    epsilon = ((Type("linear"), Epsilon()), (Type("average"), Epsilon()))
    joins, attention = (Type("join"), Signed()), (Type("matrix_product"), SignedGate())
    return {
        "epsilon": base.prepend(*epsilon, name="epsilon-rule", strict=False),
        "epsilon, signed joins": base.prepend(*epsilon, joins, name="signed-joins", strict=False),
        "epsilon, signed attention": base.prepend(*epsilon, attention, name="signed-attention", strict=False),
        "epsilon, signed joins and attention": base.prepend(*epsilon, joins, attention, name="signed", strict=False),
    }
