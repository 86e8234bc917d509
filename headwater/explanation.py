"""What every explanation method returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conservation:
    """How exactly relevance was conserved, per picture.

    Attributes:
        seed: relevance that the sweep began with, ``(N,)``.
        input: sum of relevance at the picture, ``(N,)``.
        checkpoints: sum of relevance at each checkpoint, ``(N,)``.
        error: ``|input - seed| / |seed|``, ``(N,)``.
    """

    seed: Tensor
    input: Tensor
    checkpoints: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def error(self) -> Tensor:
        return self._error(self.input)

    @property
    def checkpoint_errors(self) -> dict[str, Tensor]:
        """Relative error at each checkpoint, ``(N,)``."""
        return {module: self._error(total) for module, total in self.checkpoints.items()}

    def _error(self, total: Tensor) -> Tensor:
        smallest = torch.finfo(self.seed.dtype).tiny
        return (total - self.seed).abs() / self.seed.abs().clamp(min=smallest)

    @classmethod
    def measure(cls, seed: Tensor, relevance: Tensor, checkpoints: Mapping[str, Tensor]) -> Conservation:
        """Sum up in double precision, so that the summing adds no error of its own."""

        def total(r: Tensor) -> Tensor:
            return r.flatten(1).sum(1, dtype=torch.float64 if r.device.type != "mps" else torch.float32)

        return cls(total(seed[:, None]), total(relevance), {module: total(r) for module, r in checkpoints.items()})


@dataclass(frozen=True)
class Explanation:
    """Maps for a batch of pictures.

    Attributes:
        heatmap: relevance of each pixel, ``(N, H, W)``.
        logits: the network's output, ``(N, K)``.
        probability: softmax probability of the explained class, ``(N,)``, in [0, 1].
        target: the explained class, long ``(N,)``.
        relevance: relevance of each input value, ``(N, C, H, W)``; ``None`` for methods that have none.
        checkpoints: relevance at the input of each asked module.
        conservation: the account; ``None`` for methods that do not keep one.
    """

    heatmap: Tensor
    logits: Tensor
    probability: Tensor
    target: Tensor
    relevance: Tensor | None = None
    checkpoints: Mapping[str, Tensor] = field(default_factory=dict)
    conservation: Conservation | None = None

    def select(self, index: int) -> Explanation:
        """The explanation of one picture, as a batch of one."""
        part = slice(index, index + 1)
        account = self.conservation
        return Explanation(
            heatmap=self.heatmap[part],
            logits=self.logits[part],
            probability=self.probability[part],
            target=self.target[part],
            relevance=None if self.relevance is None else self.relevance[part],
            checkpoints={module: r[part] for module, r in self.checkpoints.items()},
            conservation=None
            if account is None
            else Conservation(
                account.seed[part],
                account.input[part],
                {module: total[part] for module, total in account.checkpoints.items()},
            ),
        )
