"""The rules of ``headwater-text``, one after the other: what each adds to ``otsuki2024``."""

from __future__ import annotations

from headwater.composites import Composite, SignedGates, Type, load_composite
from headwater.rules import Epsilon
from headwater.splitting import Signed


def composites() -> dict[str, Composite]:
    """``otsuki2024`` with the epsilon rule, then signs at joins, in attention, and at both."""
    base = load_composite("otsuki2024")
    epsilon = ((Type("linear"), Epsilon()), (Type("average"), Epsilon()))
    joins, attention = (Type("join"), Signed()), (Type("matrix_product"), SignedGates())
    return {
        "epsilon": base.prepend(*epsilon, name="epsilon-rule", strict=False),
        "epsilon, signed joins": base.prepend(*epsilon, joins, name="signed-joins", strict=False),
        "epsilon, signed attention": base.prepend(*epsilon, attention, name="signed-attention", strict=False),
        "epsilon, signed joins and attention": base.prepend(*epsilon, joins, attention, name="signed", strict=False),
    }
