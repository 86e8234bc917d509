"""Where relevance flows: at every join, how much goes on through each branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.layers import Average, Join, Layer, Linear


@dataclass(frozen=True)
class JoinFlow:
    """Relevance at one join.

    Attributes:
        name: the operation's name, unique in the network.
        module: path of the module that adds, such as ``layer1.0``; ``""`` is the network itself.
        branches: for each branch ``"skip"`` or ``"branch"``; the skip is the one with the fewest convolutions and
            linear layers since the branches parted. Where that is a tie, all are ``"branch"``.
        relevance: what went through each branch, ``(N, branches)``; a row sums to the relevance at the join.
    """

    name: str
    module: str
    branches: tuple[str, ...]
    relevance: Tensor

    @property
    def skip(self) -> Tensor:
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
        """The flow of one picture, as a batch of one."""
        part = slice(index, index + 1)
        return Flow(tuple(JoinFlow(j.name, j.module, j.branches, j.relevance[part]) for j in self.joins))

    @staticmethod
    def mean(flows: Sequence[Flow]) -> Flow:
        """Average over pictures, each of which counts as the parts of its relevance at the network's output end."""
        joins = []
        for same in zip(*(flow.joins for flow in flows), strict=True):
            parts = torch.cat([j.relevance for j in same])
            joins.append(JoinFlow(same[0].name, same[0].module, same[0].branches, parts.mean(0, keepdim=True)))
        return Flow(tuple(joins))

    def as_rows(self) -> list[dict[str, object]]:
        """One dictionary a join, with lists of numbers, for JSON."""
        return [
            {
                "name": join.name,
                "module": join.module,
                "branches": list(join.branches),
                "relevance": join.relevance.tolist(),
            }
            for join in self.joins
        ]


def name_branches(layers: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    """For each join, which of its inputs is the skip, see :class:`JoinFlow`."""
    place = {layer.operation.name: k for k, layer in enumerate(layers)}
    ancestors: dict[str, frozenset[str]] = {}
    for layer in layers:
        names = layer.operation.inputs
        ancestors[layer.operation.name] = frozenset().union(
            (layer.operation.name,), *(ancestors.get(name, frozenset((name,))) for name in names)
        )
    named = {}
    for layer in layers:
        names = layer.operation.inputs
        if isinstance(layer, Join) and len(names) > 1:
            paths = [ancestors.get(name, frozenset((name,))) for name in names]
            shared = frozenset.intersection(*paths)
            before = max((ancestors.get(n, frozenset((n,))) for n in shared), key=len, default=frozenset())
            sizes = [sum(_has_parameters(layers[place[n]]) for n in path - before if n in place) for path in paths]
            fewest = min(sizes)
            kinds = ["skip" if size == fewest and sizes.count(fewest) == 1 else "branch" for size in sizes]
            named[layer.operation.name] = tuple(kinds)
    return named


def _has_parameters(layer: Layer) -> bool:
    return isinstance(layer, Linear) and not isinstance(layer, Average)
