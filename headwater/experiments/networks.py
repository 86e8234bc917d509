"""Which networks a method is measured on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from headwater.methods.abn import ATTENTION, branch_of, has_attention


def networks_for(method: str, models: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """The networks that ``method`` is measured on: attention branch networks for ``abn``, the plain ones for others.

    ``abn-published`` is measured on those with the published branch, ``abn`` on those with another. Where all are
    attention branch networks, every other method is measured on them; where none is, ``abn`` on none.
    """
    branch = tuple(m for m in models if has_attention(m))
    plain = tuple(m for m in models if not has_attention(m))
    if method in ATTENTION:
        return tuple(m for m in branch if branch_of(m) == ATTENTION[method])
    return plain or branch
