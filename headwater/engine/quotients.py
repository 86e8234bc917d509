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


def largest(dtype: torch.dtype) -> float:
    """Quotients beyond this have a divisor of which a float has lost digits, or none."""
    limits = torch.finfo(dtype)
    return float((limits.eps / limits.tiny) ** 0.5)


def bounded(q: Tensor) -> Tensor:
    """Quotients with 0 in place of NaN and of what is beyond :func:`largest`; they may be written over."""
    limit = largest(q.dtype)
    if observed() or q.device.type != "cpu":
        return torch.where(q.abs() <= limit, q, 0.0)
    q = q.nan_to_num_(0.0, 0.0, 0.0)
    return q if q.sum().abs() <= limit else q.masked_fill_(q.abs() > limit, 0.0)
