"""Rules for linear operations that count contributions of both signs."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

from torch import Tensor

from headwater.engine.linear_rules import LinearRule, Part, Term
from headwater.engine.rules import Prepared
from headwater.errors import InputError


@dataclass(frozen=True, kw_only=True, repr=False)
class SignedRule(LinearRule):
    r"""Base of the rules by contributions of either sign, whose sum may be near zero.

    Where contributions cancel, the shares :math:`z_{ij} / z_j` are large: an output hands on
    :math:`\sum_i |z_{ij}| / |z_j|` times what it received, signs left out. Over the layers this multiplies, until
    rounding is all that is left of the sum. So an output with

    .. math:: |z_j| < \tau \sum_i |z_{ij}|

    hands on all its relevance by the fallback, and no output hands on more than :math:`1 / \tau` times what it got.

    Args:
        threshold: :math:`\tau`, in [0, 1); 0 for the textbook rule. The default is the smallest of 0.01, 0.05, 0.1 and
            0.2 with which all networks that were tried conserve to 1e-5, two trained ones among them, with these rules
            everywhere; at a trained classifier alone it changes nothing. docs/operations.md has the figures. Without
            fallback it has no effect.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold < 1:
            raise InputError(f"threshold must be at least 0 and below 1, got {self.threshold}")

    @property
    def judges(self) -> bool:
        """Whether the threshold is in effect."""
        return self.fallback and self.threshold > 0

    def parts(self, h: Tensor, prepared: Prepared) -> list[Part]:
        """One part; the last of ``prepared`` is the absolute weight where the threshold is in effect."""
        terms = self.terms(h, prepared)
        sizes = (terms[0][0].abs(), prepared[-1]) if self.judges else None
        return [Part(terms, sizes=sizes, threshold=self.threshold)]

    def absolute(self, weight: Tensor | None) -> Tensor | None:
        """What :meth:`prepare` returns last."""
        return None if weight is None or not self.judges else weight.abs()


def centre(weight: Tensor | None) -> Tensor | None:
    """A layer's weight less its mean over the outputs, for ``centred`` rules at a classifier.

    Softmax does not change when every class's weights are shifted alike. Centred, a contribution says how much more an
    input speaks for this class than for the average one; what speaks for all classes says nothing. The shares are of
    the same relevance, so the rule stays exact.
    """
    return weight if weight is None or len(weight) == 1 else weight - weight.mean(0)


@dataclass(frozen=True, repr=False)
class Epsilon(SignedRule):
    r"""Epsilon rule: contributions as they are, :math:`z_{ij} = h_i w_{ij}`, stabilised.

    Source: Bach et al. 2015.

    Args:
        eps: added to each denominator with its sign.
        bias: count the bias in the denominator, so that it absorbs relevance, as in the textbook rule. The threshold
            has no effect then; a layer with a bias hands on nothing by the fallback.
        centred: see :func:`centre`.
        fallback: hand on what the stabiliser takes.
        threshold: see :class:`SignedRule`.

    >>> Epsilon(1e-3)
    Epsilon(eps=0.001, bias=False, fallback=True, threshold=0.1, centred=False)
    """

    eps: float = 1e-6
    bias: bool = False
    _: KW_ONLY
    centred: bool = False

    @property
    def judges(self) -> bool:
        return super().judges and not self.bias

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Prepared:
        weight = centre(weight) if self.centred else weight
        return (weight, bias if self.bias else None, self.absolute(weight))

    def terms(self, h: Tensor, prepared: Prepared) -> list[Term]:
        return [(h, prepared[0])]

    def parts(self, h: Tensor, prepared: Prepared) -> list[Part]:
        return [replace(part, bias=prepared[1]) for part in super().parts(h, prepared)]


@dataclass(frozen=True, repr=False)
class Gamma(SignedRule):
    r"""Gamma rule: positive contributions count more, :math:`z_{ij} = h_i w_{ij} + \gamma (h_i w_{ij})^+`.

    Source: Montavon et al. 2019.

    Args:
        gamma: 0 is the epsilon rule; the larger, the closer to z+.
        eps: added to each denominator with its sign.
        fallback: hand on what the stabiliser takes.
        threshold: see :class:`SignedRule`.
    """

    gamma: float = 0.25
    _: KW_ONLY
    eps: float = 1e-6

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Prepared:
        if weight is None:
            return (None, None)
        up, down = self.gamma * weight.clamp(min=0), self.gamma * weight.clamp(max=0)
        return (weight, up, down, self.absolute(weight))

    def terms(self, h: Tensor, prepared: Prepared) -> list[Term]:
        if prepared[0] is None:
            return [(h + self.gamma * h.clamp(min=0), None)]
        return [(h, prepared[0]), (h.clamp(min=0), prepared[1]), (h.clamp(max=0), prepared[2])]


@dataclass(frozen=True, repr=False)
class AlphaBeta(LinearRule):
    r"""Alpha-beta rule: positive and negative contributions apart.

    Source: Bach et al. 2015.

    .. math::

        R_i = \sum_j \Big(\alpha \frac{z_{ij}^+}{\sum_{i'} z_{i'j}^+}
            - \beta \frac{z_{ij}^-}{\sum_{i'} z_{i'j}^-}\Big) R_j

    with :math:`\alpha - \beta = 1`; alpha 1, beta 0 is :class:`ZPlus`. What an output lacking one of the two kinds
    cannot hand on goes by the fallback. Nothing cancels within a kind, so no output hands on more than
    :math:`\alpha + \beta` times what it received, signs left out, and no threshold is needed.

    Args:
        alpha: part of the positive contributions.
        beta: part of the negative ones.
        centred: see :func:`centre`.
        signed: inputs can be negative; ``False`` costs half, and is the same for inputs that are not.

    Raises:
        InputError: alpha - beta is not 1.
    """

    alpha: float = 2.0
    beta: float = 1.0
    _: KW_ONLY
    centred: bool = False
    signed: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise InputError(f"AlphaBeta needs alpha - beta = 1, got alpha={self.alpha}, beta={self.beta}")

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Prepared:
        weight = centre(weight) if self.centred else weight
        return (None, None) if weight is None else (weight.clamp(min=0), weight.clamp(max=0))

    def for_nonnegative(self) -> AlphaBeta:
        """At half the cost; a subclass stays as it is."""
        return replace(self, signed=False) if type(self) is AlphaBeta else self

    def terms(self, h: Tensor, prepared: Prepared) -> list[Term]:
        """The positive contributions."""
        return self._contributions(h, prepared, 1)

    def parts(self, h: Tensor, prepared: Prepared) -> list[Part]:
        positive, negative = self._contributions(h, prepared, 1), self._contributions(h, prepared, -1)
        return [Part(positive, self.alpha), *([Part(negative, -self.beta)] if self.beta and negative else [])]

    def _contributions(self, h: Tensor, prepared: Prepared, sign: int) -> list[Term]:
        """Those of one sign: of inputs to positive weights and to negative ones; averages have no negative ones."""
        up, down = prepared
        if not self.signed:
            return [(h, up)] if sign > 0 else [(h, down)] * (down is not None)
        above, below = (h.clamp(min=0), h.clamp(max=0))[::sign]
        return [(above, None)] if up is None else [(above, up), (below, down)]
