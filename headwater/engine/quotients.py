"""Quotients where the divisor may be 0."""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.engine.guards.modes import observed


def finite_or(q: Tensor, otherwise: float) -> Tensor:
    """Quotients with ``otherwise`` in place of NaN and infinity; they may be written over.

    torch's compiler turns ``nan_to_num`` into a loop over single values, and a comparison into vector operations.
    """
    if observed():
        return torch.where(q.abs() <= torch.finfo(q.dtype).max, q, otherwise)
    return q.nan_to_num_(otherwise, otherwise, otherwise)
