r"""How relevance passes a linear operation: convolution, dense layer, average, product with a parameter.

A rule is a list of terms (a, w): what stands for the input, and what stands for the weight. Together they say how much
input i contributes to output j, and each output hands on its relevance in proportion:

.. math::

    z_{ij} = \sum_k a^{(k)}_i w^{(k)}_{ij}, \qquad
    R_i = \sum_j \frac{z_{ij}}{\sum_{i'} z_{i'j}} R_j \; + \; \text{fallback}_i

What an output cannot hand on that way goes by the fallback,
:meth:`~headwater.engine.linear_layers.Linear.spread_remainder`: in equal parts to the inputs at the output's own
position, all channels of its group (a dense layer's output has all inputs at its position). So no unit loses or creates
relevance. That is the case where nothing contributes to the output, where a stabiliser takes a part, and, for rules
with contributions of either sign, where these cancel each other, see :mod:`headwater.engine.signed_rules`. What
rounding leaves over goes by it too, unless the outputs are so many that it averages out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from headwater.engine.guards.modes import spare, unwatched
from headwater.engine.layers import Layer
from headwater.engine.linear_layers import Linear
from headwater.engine.quotients import bounded, largest
from headwater.engine.rules import Prepared, Rule
from headwater.errors import InputError

_MANY = 2**14
"""Outputs for one image from which on what rounding leaves of their relevance is not followed, see :func:`_many`."""

Term = tuple[Tensor, Tensor | None]
"""A pair (a, w). ``a`` has the shape of the input, or batch size 1 where it is the same for all images."""


@dataclass(frozen=True)
class Part:
    """Contributions, in proportion to which each output hands on a share of its relevance.

    Attributes:
        terms: the pairs (a, w) that make them.
        share: of the relevance; what the shares of all parts lack to 1 goes by the fallback.
        bias: is counted among the contributions, and keeps what falls to it.
        sizes: the pair that makes the sum of the first term's absolute contributions; needed for a threshold. Further
            terms must contribute nothing negative.
        threshold: outputs with ``|z| < threshold * sum|z_ij|`` hand on nothing by the terms.
    """

    terms: Sequence[Term]
    share: float = 1.0
    bias: Tensor | None = None
    sizes: Term | None = None
    threshold: float = 0.0


@dataclass(frozen=True, kw_only=True, repr=False)
class LinearRule(Rule):
    """Base of the rules that are given by terms; see the module's docstring.

    Args:
        eps: added to each denominator with its sign; 0 for exact shares.
        fallback: hand on by the fallback what the terms cannot; ``False``: it is lost, as in published code.
    """

    layers: ClassVar[type[Layer]] = Linear
    eps: float = 0.0
    fallback: bool = True

    def __post_init__(self) -> None:
        if not self.eps >= 0:
            raise InputError(f"eps is added to denominators and cannot be negative, got {self.eps}")

    @abstractmethod
    def terms(self, h: Tensor, prepared: Prepared) -> list[Term]:
        """What the inputs ``h`` contribute to the outputs."""

    def parts(self, h: Tensor, prepared: Prepared) -> list[Part]:
        """Relevance by :meth:`terms`, all of it; a rule that treats kinds of contributions apart has several parts."""
        return [Part(self.terms(h, prepared))]

    def __call__(
        self, layer: Linear, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        (h,) = inputs
        return [redistribute(layer, self.parts(h, prepared), relevance, h, eps=self.eps, fallback=self.fallback)]

    def __repr__(self) -> str:
        """As it would be constructed: what goes by position first."""
        ordered = sorted(fields(self), key=lambda f: bool(f.kw_only))
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in ordered)})"


def redistribute(
    layer: Linear, parts: Sequence[Part], relevance: Tensor, like: Tensor, eps: float = 0.0, fallback: bool = True
) -> Tensor:
    """Relevance of a linear operation's input, see the module's docstring.

    Args:
        layer: the operation.
        parts: what contributes to its outputs.
        relevance: of the output, shaped as it.
        like: a tensor of the input's shape.
        eps: added to each denominator with its sign.
        fallback: hand on by the fallback what the parts cannot; else it is lost. Where a bias counts, it is lost.

    Returns:
        Relevance shaped as ``like``, in a new tensor.
    """
    fallback = fallback and all(part.bias is None for part in parts)
    quotients: list[tuple[Tensor, Sequence[Term]]] = []
    beside = round(1 - sum(part.share for part in parts), 12)
    left = beside * relevance if fallback and beside else None  # what the fallback is to hand on, shaped as the output
    for part in parts:
        given = relevance if part.share == 1 else part.share * relevance
        s, rest = _quotients(layer, part, given, eps, fallback)
        quotients.append((s, part.terms))
        if rest is not None:
            left = rest if left is None else left.add_(rest)
    back = None if left is None else layer.spread_remainder(left, parts[0].terms[0][1], like)
    for s, terms in quotients:
        for a, w in terms:
            share = layer.transpose(s, w, like)
            back = share.mul_(a) if back is None else torch.addcmul(back, share, a, out=spare(share))
    assert back is not None
    return back


def _quotients(
    layer: Linear, part: Part, relevance: Tensor, eps: float, fallback: bool
) -> tuple[Tensor, Tensor | None]:
    """Relevance over each output's sum of contributions, and what the fallback is to hand on; shaped as the output."""
    (a, w), *further = part.terms
    z = layer.apply(a, w, part.bias)
    size = None if part.sizes is None else layer.apply(*part.sizes)
    for a, w in further:
        more = layer.apply(a, w)
        z = z + more
        size = None if size is None else size + more
    memory = _memory_of(z, part.terms[0][0], relevance)
    # Where nothing contributes, or so little that a float has lost digits of it, all is left to the fallback.
    if size is None and not eps and _many(relevance):
        s = torch.div(relevance, z, out=memory)
        if s.sum().abs() <= largest(s.dtype):
            return s, None
        lost = (s.abs() <= largest(s.dtype)).logical_not_()
        return s.masked_fill_(lost, 0), relevance * lost if fallback else None
    s = bounded(relevance / (torch.where(z < 0, z - eps, z + eps) if eps else z))
    if size is not None:
        s = s.masked_fill_(z.abs() < part.threshold * size, 0)
    if not fallback:
        return s, None
    return s, torch.addcmul(relevance, s, z, value=-1, out=memory)


def _memory_of(z: Tensor, a: Tensor, relevance: Tensor) -> Tensor | None:
    """That of the denominators, for what replaces them, unless the operation has returned its input or a view of it.

    None, too, where the terms are the same for all images, so that the denominators are fewer.
    """
    memory = spare(z)
    if memory is None or z.shape != relevance.shape:
        return None
    return None if z.untyped_storage().data_ptr() == a.untyped_storage().data_ptr() else memory


def _many(relevance: Tensor) -> bool:
    """Whether an image has so many outputs that the rounding errors of their quotients average out.

    Then they need no fallback, which spares passes over them, and memory. Only on the CPU: another device would have to
    be waited for. Only with four dimensions, of which the first counts images (or windows of them); with three, as in
    ``nn.MultiheadAttention``, it may be the second.
    """
    return (
        unwatched() and relevance.device.type == "cpu" and relevance.ndim == 4 and relevance.shape[1:].numel() >= _MANY
    )


@dataclass(frozen=True, repr=False)
class ZPlus(LinearRule):
    r"""z+ rule: positive contributions alone, bias left out.

    Source: Montavon et al. 2017; Otsuki et al. 2024, Eq. 2.

    .. math:: z_{ij} = h_i^+ w_{ij}^+ + h_i^- w_{ij}^-

    For inputs that are never negative, as after a ReLU, only the first product exists.

    Args:
        eps: added to each denominator; 0 for exact conservation.
        fallback: whether units without positive contribution hand on what they have, see the module's docstring.
        signed: count products of negative inputs and negative weights. ``False`` reproduces the published code, which
            is the same for inputs that are not negative.
    """

    _: KW_ONLY
    signed: bool = True

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Prepared:
        if weight is None:
            return (None,)
        return (weight.clamp(min=0), weight.clamp(max=0)) if self.signed else (weight.clamp(min=0),)

    def terms(self, h: Tensor, prepared: Prepared) -> list[Term]:
        if not self.signed:
            return [(h, prepared[0])]
        positive: list[Term] = [(h.clamp(min=0), prepared[0])]
        return positive + [(h.clamp(max=0), w) for w in prepared[1:]]

    def for_nonnegative(self) -> ZPlus:
        """At half the cost; a subclass stays as it is."""
        return replace(self, signed=False) if type(self) is ZPlus else self


@dataclass(frozen=True, repr=False)
class WeightRule(LinearRule):
    """Base of the rules that go by the weights alone: :meth:`prepare` makes what takes their place, inputs are ones."""

    needs_inputs = False

    def terms(self, h: Tensor, prepared: Prepared) -> list[Term]:
        (w,) = prepared
        return [(torch.ones_like(h if w is None else h[:1]), w)]  # weights are there only where the batch comes first


@dataclass(frozen=True, repr=False)
class WPlus(WeightRule):
    r"""z+ with ones in place of the input: relevance spreads by positive weights alone, :math:`z_{ij} = w_{ij}^+`.

    For the first convolution, where a normalised image has negative values. (What the code of Otsuki et al. does.)
    """

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Prepared:
        return (None if weight is None else weight.clamp(min=0),)


@dataclass(frozen=True, repr=False)
class Flat(WeightRule):
    r"""Flat rule: every input that an output sees gets the same, :math:`z_{ij} = 1`.

    Source: Bach et al. 2015; Lapuschkin et al. 2019.
    """

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Prepared:
        return (None if weight is None else torch.ones_like(weight),)


@dataclass(frozen=True, repr=False)
class WSquare(WeightRule):
    r"""w² rule: by squared weights, :math:`z_{ij} = w_{ij}^2`, whatever the input.

    Source: Montavon et al. 2017.
    """

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Prepared:
        return (None if weight is None else weight.square(),)


@dataclass(frozen=True, repr=False)
class ZBox(LinearRule):
    r"""zB rule for inputs between ``low`` and ``high``: :math:`z_{ij} = h_i w_{ij} - l_i w_{ij}^+ - u_i w_{ij}^-`.

    Source: Montavon et al. 2017.

    Args:
        low: smallest value an input can take, a number or one per channel; in normalised space for a normalised image.
        high: largest value.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Prepared:
        return (None, None, None) if weight is None else (weight, weight.clamp(min=0), weight.clamp(max=0))

    def terms(self, h: Tensor, prepared: Prepared) -> list[Term]:
        low, high = self._bound(self.low, h), self._bound(self.high, h)
        if prepared[0] is None:
            return [(h - low, None)]
        return [(h, prepared[0]), (-low, prepared[1]), (-high, prepared[2])]

    def _bound(self, value: float | tuple[float, ...], h: Tensor) -> Tensor:
        channels = torch.tensor(value, dtype=h.dtype, device=h.device)
        if channels.ndim and len(channels) != h.shape[1]:
            raise InputError(f"ZBox has {len(channels)} bounds for an input of {h.shape[1]} channels")
        return torch.ones_like(h[:1]) * (channels.view(-1, *[1] * (h.ndim - 2)) if channels.ndim else channels)
