"""How relevance divides where branches join: h = h_m + h_s, R = R_m + R_s, element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from headwater.engine.guards.modes import spare
from headwater.engine.quotients import finite_or
from headwater.errors import InputError


class Splitting(Protocol):
    """Divides the relevance of a sum among its terms.

    ``identity_skips`` says whether identity skips take part; where they do not, their share is zero and the other
    branches divide the relevance among themselves (the engine sees to that).
    """

    @property
    def identity_skips(self) -> bool:
        """Whether identity skips take part."""
        ...

    def __call__(self, terms: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
        """Shares of ``relevance``, one for each term; they sum to it.

        ``terms`` and ``relevance`` have one shape and are not to be written to; the shares are new tensors.
        """
        ...


@dataclass(frozen=True)
class Ratio:
    r"""Ratio-based splitting (Otsuki et al. 2024, Eq. 5): in proportion to absolute value.

    .. math:: R_s = R \, |h_s| / (|h_m| + |h_s|), \quad R_m = R - R_s

    Where every term is 0 (the equation has no answer there), each gets an equal part.

    >>> import torch
    >>> [share.tolist() for share in Ratio()([torch.tensor([3., 0.]), torch.tensor([-1., 0.])], torch.tensor([8., 2.]))]
    [[6.0, 1.0], [2.0, 1.0]]
    """

    identity_skips: bool = True

    def __call__(self, terms: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
        sizes = [term.abs() for term in terms]
        *others, total = sizes  # the last branch gets the rest, so its size is only needed in the total
        for size in others:
            total += size
        shares = [finite_or(size.div_(total), 1 / len(terms)).mul_(relevance) for size in others]
        rest = torch.sub(relevance, shares[0], out=spare(total))
        for share in shares[1:]:
            rest -= share
        return [*shares, rest]


@dataclass(frozen=True)
class Signed:
    r"""Splitting by sign, as the epsilon rule has it: :math:`R_s = R \, h_s / (h_m + h_s)`.

    Where the terms nearly cancel, :math:`|\sum_k h_k| \le \tau \sum_k |h_k|`, they share by absolute value, as
    :class:`Ratio` does, so no term gets more than :math:`1 / \tau` times what the sum received.

    Args:
        identity_skips: see :class:`Splitting`.
        threshold: :math:`\tau`, in (0, 1); as for :class:`~headwater.rules.SignedRule`.

    >>> import torch
    >>> [share.tolist() for share in Signed()([torch.tensor([3.]), torch.tensor([-1.])], torch.tensor([8.]))]
    [[12.0], [-4.0]]
    """

    identity_skips: bool = True
    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def __call__(self, terms: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
        total, size = torch.stack(list(terms)).sum(0), torch.stack([term.abs() for term in terms]).sum(0)
        limits = torch.finfo(size.dtype)
        cancels = (total.abs() <= self.threshold * size) | (size < limits.tiny / limits.eps)
        quotient = relevance / total.masked_fill(cancels, 1)
        by_size = Ratio()(terms, relevance)
        shares = [torch.where(cancels, a, quotient * h) for a, h in zip(by_size[:-1], terms, strict=False)]
        return [*shares, relevance - torch.stack(shares).sum(0)]


def check_threshold(threshold: float) -> None:
    """Refuse a threshold outside (0, 1).

    Raises:
        InputError: it is outside.
    """
    if not 0 < threshold < 1:
        raise InputError(f"threshold must be between 0 and 1, got {threshold}")


@dataclass(frozen=True)
class Symmetric:
    r"""Symmetric splitting (Otsuki et al. 2024, Eq. 4): :math:`R_s = R_m = R / 2`.

    >>> import torch
    >>> [share.tolist() for share in Symmetric()([torch.tensor([3.]), torch.tensor([-1.])], torch.tensor([8.]))]
    [[4.0], [4.0]]
    """

    identity_skips: bool = True

    def __call__(self, terms: Sequence[Tensor], relevance: Tensor) -> list[Tensor]:
        return [relevance / len(terms) for _ in terms]


@dataclass(frozen=True)
class Gates:
    """How relevance divides at a product of two values of the image: features, and the gate that they pass.

    A gate is the factor that is broadcast, else the one that a sigmoid, softmax or another bounded function made; where
    neither tells, each factor gets half.

    Args:
        to: ``"features"``: all of it to what passes the gate, none to the gate (Arras et al. 2017); ``"half"``: half to
            each factor (Achtibat et al. 2024).
    """

    to: Literal["features", "half"] = "features"

    def __post_init__(self) -> None:
        if self.to not in ("features", "half"):
            raise InputError(f"gates must be 'features' or 'half', got {self.to!r}")


@dataclass(frozen=True)
class SignedGates(Gates):
    """The same, but in matrix products contributions count by their sign: :class:`~headwater.rules.SignedGate`."""
