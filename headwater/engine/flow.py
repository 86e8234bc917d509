"""Where relevance flows: at every join, how much goes on through each branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class JoinFlow:
    """Relevance at one join.

    Attributes:
        name: the operation's name, unique in the network.
        module: path of the module that adds, such as ``layer1.0``; ``""`` is the network itself.
        branches: for each branch ``"skip"`` or ``"branch"``, see :meth:`headwater.engine.structure.Structure.branches`.
        relevance: what went through each branch, ``(N, branches)``; a row sums to the relevance at the join.
    """

    name: str
    module: str
    branches: tuple[str, ...]
    relevance: Float[Tensor, "n branches"]

    @property
    def skip(self) -> Float[Tensor, " n"]:
        """Part of the join's relevance that went through the skip, ``(N,)``, in [0, 1]; 0 without a skip."""
        total = self.relevance.sum(1)
        skips = [k for k, kind in enumerate(self.branches) if kind == "skip"]
        return (self.relevance[:, skips].sum(1) / total).nan_to_num(0.0)


@dataclass(frozen=True)
class Flow:
    """Relevance at every join that it reaches, in the order of the network.

    >>> import torch, headwater as hw
    >>> e = hw.LRP(hw.load_model("tiny20"))(torch.rand(2, 3, 64, 64))
    >>> e.flow.joins[0].module, e.flow.joins[0].branches
    ('layer1.0', ('branch', 'skip'))
    >>> torch.allclose(e.flow.joins[0].relevance.sum(1), e.probability)
    True
    """

    joins: tuple[JoinFlow, ...]

    def select(self, index: int) -> Flow:
        """The flow of one image, as a batch of one."""
        part = slice(index, index + 1)
        return Flow(tuple(JoinFlow(j.name, j.module, j.branches, j.relevance[part]) for j in self.joins))

    @staticmethod
    def mean(flows: Sequence[Flow]) -> Flow:
        """Average over images, each of which counts as the parts of its relevance at the network's output end."""
        joins = []
        for same in zip(*(flow.joins for flow in flows), strict=True):
            parts = torch.cat([j.relevance for j in same])
            joins.append(JoinFlow(same[0].name, same[0].module, same[0].branches, parts.mean(0, keepdim=True)))
        return Flow(tuple(joins))

    def as_rows(self) -> list[dict[str, object]]:
        """One dictionary per join, with lists of numbers, for JSON."""
        return [
            {
                "name": join.name,
                "module": join.module,
                "branches": list(join.branches),
                "relevance": join.relevance.tolist(),
            }
            for join in self.joins
        ]
