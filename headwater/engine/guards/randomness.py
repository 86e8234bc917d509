"""Networks that are random in eval mode too, whose two forwards differ."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def refusal(what: str) -> str:
    """The message for a network of which ``what`` is random."""
    return (
        f"{what} is random in eval mode too, so two forwards of one image differ, and a map of the one is none of the "
        "other; make it depend on self.training, as dropout(x, p, self.training), or take it out"
    )


def draws(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation draws random numbers: marked so by torch, and neither in eval mode nor with p = 0."""
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    arguments = target._schema.arguments
    given = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    given.update(zip((argument.name for argument in arguments), args, strict=False))
    given.update(kwargs)
    probability = given.get("dropout", given.get("p") if "dropout" in target.overloadpacket.__name__ else None)
    return False not in (given.get("train"), given.get("training")) and probability != 0


def generators() -> tuple[Any, ...]:
    """Where the random numbers of Python and of numpy are; a traced forward draws none of torch's."""
    kind, keys, *position = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *position


def equal_programs(one: torch.export.ExportedProgram, other: torch.export.ExportedProgram) -> bool:
    """Whether two traces run the same operations with the same numbers."""
    if str(one.graph) != str(other.graph) or one.constants.keys() != other.constants.keys():
        return False
    pairs = ((value, other.constants[key]) for key, value in one.constants.items())
    return all(not isinstance(value, Tensor) or torch.equal(value, again) for value, again in pairs)
