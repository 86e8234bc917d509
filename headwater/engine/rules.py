r"""How relevance passes one operation.

Every rule for a linear operation is a list of terms (a, w): what stands for the input, and what stands for the weight.
Together they say how much input i contributes to output j, and each output hands on its relevance in proportion:

.. math::

    z_{ij} = \sum_k a^{(k)}_i w^{(k)}_{ij}, \qquad
    R_i = \sum_j \frac{z_{ij}}{\sum_{i'} z_{i'j}} R_j \; + \; \text{fallback}_i

What an output cannot hand on that way, because nothing contributes to it or a stabiliser takes a part, goes by the
fallback: it stays in place, in equal parts on the inputs at the output's own position, all channels of its group (a
dense layer's output has all inputs at its position). So no unit loses or creates relevance. With
``fallback=False`` that part is lost, as in the published code.

A rule is told tensors, never graphs or models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from headwater.engine.layers import Join, Layer, Linear, MatrixProduct, MaxPool, MaxSelect, Product, Rearrange, aten
from headwater.engine.splitting import Splitting
from headwater.errors import InputError

Weights = tuple[Tensor | None, ...]
"""What a rule has made of a layer's parameters; made once and kept until the parameters change."""


class Rule(ABC):
    """How relevance passes one operation.

    Attributes:
        needs_inputs: the rule needs the values that went into the operation, not only their shapes.
        layers: the kind of layer that the rule is for; patterns of module names pass over others. A rule is for joins
            only if it names :class:`~headwater.engine.layers.Join` here.
    """

    needs_inputs: bool = True
    layers: ClassVar[type[Layer] | tuple[type[Layer], ...]] = Layer

    def passes_to(self, index: int) -> bool:
        """Whether the input at this place gets relevance at all."""
        return True

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Weights:
        """Whatever is derived from the parameters alone."""
        return ()

    @abstractmethod
    def __call__(
        self, layer: Any, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor | None]:
        """Relevance of each input from the relevance of the output; ``None`` where an input gets nothing.

        Args:
            layer: the operation, see :mod:`headwater.engine.layers`.
            weights: what ``prepare`` returned.
            inputs: the values that went in; uninitialised tensors of their shape where ``needs_inputs`` is false.
            relevance: shaped as the output; not to be written to, but it may be returned.

        Returns:
            One tensor per input, no two sharing memory, each of which the caller may write to.
        """


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes unchanged, element by element (activations, normalisation, dropout)."""

    needs_inputs = False

    def __call__(self, layer: Layer, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor) -> Sequence[Tensor]:
        return [relevance.sum_to_size(inputs[0].shape)]


@dataclass(frozen=True)
class Follow(Rule):
    """Relevance goes back to where each element came from (views, permutations, slices, concatenation).

    What lands on constants, such as padding or a class token put in front of the patches, has no place in the image
    to go back to. It is handed on in equal parts to all elements that came from the image, image by image.
    """

    needs_inputs = False

    def __call__(
        self, layer: Rearrange, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        back = torch.func.vjp(lambda *h: layer.run(h), *inputs)[1](relevance)
        if not layer.has_constants:
            return back
        count = min(len(h) for h in (relevance, *back))  # windows may be counted with the images
        lost = relevance.reshape(count, -1).sum(1) - sum(h.reshape(count, -1).sum(1) for h in back)
        each = lost / sum(h[:1].numel() * (len(h) // count) for h in back)
        return [
            (h.reshape(count, -1) + each[:, None]).reshape(h.shape).contiguous(memory_format=_layout(h)) for h in back
        ]


class LinearRule(Rule):
    """Base of the rules that are given by terms; see the module's docstring.

    Attributes:
        eps: added to the denominators, with their sign.
        fallback: hand on what the terms cannot, in place; else it is lost.
    """

    eps: float
    fallback: bool
    layers: ClassVar[type[Layer]] = Linear

    @abstractmethod
    def terms(self, h: Tensor, weights: Weights) -> list[tuple[Tensor, Tensor | None]]:
        """The pairs (a, w). ``a`` has the shape of ``h``, or batch size 1 where it is the same for all images."""

    def __call__(
        self, layer: Linear, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        (h,) = inputs
        return [redistribute(layer, self.terms(h, weights), relevance, h, self.eps, self.fallback)]


def redistribute(
    layer: Linear,
    terms: Sequence[tuple[Tensor, Tensor | None]],
    relevance: Tensor,
    like: Tensor,
    eps: float = 0.0,
    fallback: bool = True,
    bias: Tensor | None = None,
) -> Tensor:
    """Relevance of an input shaped as ``like``, by the contributions that ``terms`` make, as in Eq. 2."""
    z = layer.apply(*terms[0], bias)
    for a, w in terms[1:]:
        z = z + layer.apply(a, w)
    stable = torch.where(z < 0, z - eps, z + eps) if eps else z
    # Where nothing contributes, the quotient is infinite or NaN and becomes 0: all of it is left to the fallback.
    s = (relevance / stable).nan_to_num_(0.0, 0.0, 0.0)
    (a, w), *others = terms
    back = layer.transpose(s, w, like).mul_(a)
    for a, w in others:
        back.addcmul_(a, layer.transpose(s, w, like))
    if fallback:
        left = torch.addcmul(relevance, s, z, value=-1, out=z) if z.shape == relevance.shape else relevance - s * z
        back += layer.spread_remainder(left, terms[0][1], like)
    return back


@dataclass(frozen=True)
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

    eps: float = 0.0
    fallback: bool = True
    signed: bool = True

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Weights:
        if weight is None:
            return (None,)
        return (weight.clamp(min=0), weight.clamp(max=0)) if self.signed else (weight.clamp(min=0),)

    def terms(self, h: Tensor, weights: Weights) -> list[tuple[Tensor, Tensor | None]]:
        if not self.signed:
            return [(h, weights[0])]
        positive: list[tuple[Tensor, Tensor | None]] = [(h.clamp(min=0), weights[0])]
        return positive + [(h.clamp(max=0), w) for w in weights[1:]]

    def for_nonnegative(self) -> ZPlus:
        """The same rule for inputs known not to be negative, at half the cost; a subclass stays as it is."""
        return replace(self, signed=False) if type(self) is ZPlus else self


@dataclass(frozen=True)
class WPlus(LinearRule):
    r"""z+ with ones in place of the input: relevance spreads by positive weights alone, :math:`z_{ij} = w_{ij}^+`.

    For the first convolution, where a normalised image has negative values. (What the code of Otsuki et al. does.)
    """

    needs_inputs = False
    eps: float = 0.0
    fallback: bool = True

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Weights:
        return (None if weight is None else weight.clamp(min=0),)

    def terms(self, h: Tensor, weights: Weights) -> list[tuple[Tensor, Tensor | None]]:
        return [(_ones(h, weights[0]), weights[0])]


@dataclass(frozen=True)
class Flat(LinearRule):
    r"""Flat rule: every input that an output sees gets the same, :math:`z_{ij} = 1`.

    Source: Bach et al. 2015; Lapuschkin et al. 2019.
    """

    needs_inputs = False
    eps: float = 0.0
    fallback: bool = True

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Weights:
        return (None if weight is None else torch.ones_like(weight),)

    def terms(self, h: Tensor, weights: Weights) -> list[tuple[Tensor, Tensor | None]]:
        return [(_ones(h, weights[0]), weights[0])]


@dataclass(frozen=True)
class WSquare(LinearRule):
    r"""w² rule: by squared weights, :math:`z_{ij} = w_{ij}^2`, whatever the input.

    Source: Montavon et al. 2017.
    """

    needs_inputs = False
    eps: float = 0.0
    fallback: bool = True

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Weights:
        return (None if weight is None else weight.square(),)

    def terms(self, h: Tensor, weights: Weights) -> list[tuple[Tensor, Tensor | None]]:
        return [(_ones(h, weights[0]), weights[0])]


@dataclass(frozen=True)
class ZBox(LinearRule):
    r"""zB rule for inputs between ``low`` and ``high``: :math:`z_{ij} = h_i w_{ij} - l_i w_{ij}^+ - u_i w_{ij}^-`.

    Source: Montavon et al. 2017.

    Args:
        low: smallest value an input can take, a number or one per channel; in normalised space for a normalised image.
        high: largest value.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    eps: float = 0.0
    fallback: bool = True

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Weights:
        return (None, None, None) if weight is None else (weight, weight.clamp(min=0), weight.clamp(max=0))

    def terms(self, h: Tensor, weights: Weights) -> list[tuple[Tensor, Tensor | None]]:
        low, high = self._bound(self.low, h), self._bound(self.high, h)
        if weights[0] is None:
            return [(h - low, None)]
        return [(h, weights[0]), (-low, weights[1]), (-high, weights[2])]

    def _bound(self, value: float | tuple[float, ...], h: Tensor) -> Tensor:
        channels = torch.tensor(value, dtype=h.dtype, device=h.device)
        if channels.ndim and len(channels) != h.shape[1]:
            raise InputError(f"ZBox has {len(channels)} bounds for an input of {h.shape[1]} channels")
        return torch.ones_like(h[:1]) * (channels.view(-1, *[1] * (h.ndim - 2)) if channels.ndim else channels)


@dataclass(frozen=True)
class Epsilon(Rule):
    r"""Epsilon rule: contributions as they are, :math:`z_{ij} = h_i w_{ij}`, stabilised.

    Source: Bach et al. 2015.

    Args:
        eps: added to each denominator with its sign.
        bias: count the bias in the denominator, so that it absorbs relevance, as in the textbook rule.
        fallback: hand on what the stabiliser takes; makes no sense together with ``bias``.
    """

    eps: float = 1e-6
    bias: bool = False
    fallback: bool = True
    layers: ClassVar[type[Layer]] = Linear

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Weights:
        return (weight, bias if self.bias else None)

    def __call__(
        self, layer: Linear, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        (h,) = inputs
        fallback = self.fallback and weights[1] is None
        return [redistribute(layer, [(h, weights[0])], relevance, h, self.eps, fallback, weights[1])]


@dataclass(frozen=True)
class Gamma(LinearRule):
    r"""Gamma rule: positive contributions count more, :math:`z_{ij} = h_i w_{ij} + \gamma (h_i w_{ij})^+`.

    Source: Montavon et al. 2019.

    Args:
        gamma: 0 is the epsilon rule; the larger, the closer to z+.
        eps: added to each denominator with its sign.
        fallback: hand on what the stabiliser takes.
    """

    gamma: float = 0.25
    eps: float = 1e-6
    fallback: bool = True

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Weights:
        if weight is None:
            return (None,)
        return (weight, self.gamma * weight.clamp(min=0), self.gamma * weight.clamp(max=0))

    def terms(self, h: Tensor, weights: Weights) -> list[tuple[Tensor, Tensor | None]]:
        if weights[0] is None:
            return [(h + self.gamma * h.clamp(min=0), None)]
        return [(h, weights[0]), (h.clamp(min=0), weights[1]), (h.clamp(max=0), weights[2])]


@dataclass(frozen=True)
class AlphaBeta(Rule):
    r"""Alpha-beta rule: positive and negative contributions apart.

    Source: Bach et al. 2015.

    .. math::

        R_i = \sum_j \Big(\alpha \frac{z_{ij}^+}{\sum_{i'} z_{i'j}^+}
            - \beta \frac{z_{ij}^-}{\sum_{i'} z_{i'j}^-}\Big) R_j

    with :math:`\alpha - \beta = 1`; alpha 1, beta 0 is :class:`ZPlus`. What a unit lacking one of the two kinds cannot
    hand on goes by the fallback.
    """

    alpha: float = 2.0
    beta: float = 1.0
    fallback: bool = True
    layers: ClassVar[type[Layer]] = Linear

    def __post_init__(self) -> None:
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise InputError(f"AlphaBeta needs alpha - beta = 1, got alpha={self.alpha}, beta={self.beta}")

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Weights:
        return (None, None) if weight is None else (weight.clamp(min=0), weight.clamp(max=0))

    def __call__(
        self, layer: Linear, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        (h,) = inputs
        up, down = h.clamp(min=0), h.clamp(max=0)
        groups: list[tuple[float, list[tuple[Tensor, Tensor | None]]]]
        if weights[0] is None:
            groups = [(self.alpha, [(up, None)]), (-self.beta, [(down, None)])]
        else:
            groups = [
                (self.alpha, [(up, weights[0]), (down, weights[1])]),
                (-self.beta, [(up, weights[1]), (down, weights[0])]),
            ]
        back, left = torch.zeros_like(h), relevance
        for factor, terms in groups:
            z = layer.apply(*terms[0])
            for a, w in terms[1:]:
                z = z + layer.apply(a, w)
            s = (factor * relevance / z).nan_to_num_(0.0, 0.0, 0.0)
            for a, w in terms:
                back = back + a * layer.transpose(s, w, h)
            left = left - s * z
        return [back + layer.spread_remainder(left, weights[0], h) if self.fallback else back]


@dataclass(frozen=True)
class WinnerTakesAll(Rule):
    """Max pooling as the linear projection that picks each window's largest value: that input gets everything."""

    layers: ClassVar = (MaxPool, MaxSelect)

    def __call__(
        self, layer: MaxPool | MaxSelect, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        if isinstance(layer, MaxSelect):
            return torch.func.vjp(lambda *h: layer.run(h), *inputs)[1](relevance)
        (h,) = inputs
        kernel, stride, padding, dilation, ceil = layer.settings
        _, indices = aten.max_pool2d_with_indices(h, kernel, stride, padding, dilation, ceil)
        return [aten.max_pool2d_with_indices_backward(relevance, h, kernel, stride, padding, dilation, ceil, indices)]


@dataclass(frozen=True)
class MeanPool(Rule):
    """Max pooling as a mean over windows of the stride's size, by z+; what the code of Otsuki et al. does."""

    layers: ClassVar[type[Layer]] = MaxPool
    eps: float = 1e-5

    def __call__(
        self, layer: MaxPool, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        (h,) = inputs
        stride = layer.settings[1]
        window = [stride, stride] if isinstance(stride, int) else list(stride)
        z = functional.avg_pool2d(h, window, ceil_mode=True)
        if z.shape != relevance.shape:
            raise InputError(
                f"MeanPool: windows of {window} give {tuple(z.shape[2:])} where the network's max pooling gives "
                f"{tuple(relevance.shape[2:])}; use WinnerTakesAll for this network"
            )
        s = relevance / (z + self.eps)
        return [aten.avg_pool2d_backward(s, h, window, window, [0, 0], True, True, None).mul_(h)]


@dataclass(frozen=True)
class Gradient(Rule):
    r"""Gradient rule: gradient times input over output, of one operation or of a whole block.

    Source: Doublet et al., Eq. 1.

    .. math::

        R(z) = z \odot \frac{\partial}{\partial z}
            \sum z' \odot \operatorname{stopgrad}\Big(\frac{R'}{z' + \epsilon}\Big)

    The sign of eps follows z'. The rule does not guarantee conservation.
    """

    eps: float = 1e-6

    def __call__(self, layer: Layer, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor) -> Sequence[Tensor]:
        output, back, *_ = torch.func.vjp(lambda *h: layer.run(h), *inputs)
        gradients = back(relevance / torch.where(output < 0, output - self.eps, output + self.eps))
        return [h * gradient for h, gradient in zip(inputs, gradients, strict=True)]


@dataclass(frozen=True)
class Gate(Rule):
    """A product of features and a gate, element by element (squeeze-and-excitation, attention branch, gated unit).

    Every element of the product has one element of each factor, so whatever the shares, nothing is lost.

    Args:
        shares: part of the relevance that the first and the second factor get; they sum to 1.
    """

    needs_inputs = False
    shares: tuple[float, float] = (1.0, 0.0)
    layers: ClassVar[type[Layer]] = Product

    def passes_to(self, index: int) -> bool:
        return self.shares[index] > 0

    def __call__(
        self, layer: Product, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor | None]:
        return [
            (relevance * share).sum_to_size(h.shape) if share else None
            for h, share in zip(inputs, self.shares, strict=True)
        ]


@dataclass(frozen=True)
class MatrixGate(Rule):
    r"""A matrix product of two values of the image, such as attention weights A and values V.

    Each factor gets its share by the z+ rule, the other factor standing for the weights:

    .. math:: z_{ikj} = A_{ik}^+ V_{kj}^+ + A_{ik}^- V_{kj}^-

    With all relevance on the values, attention weights act as the fixed weights of a linear layer (Ali et al. 2022);
    halves are the uniform rule for bilinear operations (Achtibat et al. 2024).

    Args:
        shares: part of the relevance that the first and the second factor get; they sum to 1.
    """

    shares: tuple[float, float] = (0.0, 1.0)
    layers: ClassVar[type[Layer]] = MatrixProduct

    def passes_to(self, index: int) -> bool:
        return self.shares[index] > 0

    def __call__(
        self, layer: MatrixProduct, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor | None]:
        parts = [(h.clamp(min=0), h.clamp(max=0)) for h in inputs]
        ones = [torch.ones_like(h) for h in inputs]
        z = layer.run([up for up, _ in parts]) + layer.run([down for _, down in parts])
        # Masked attention leaves weights near the smallest float, too coarse to share anything out exactly: none count.
        limits = torch.finfo(z.dtype)
        s = torch.where(z > limits.tiny / limits.eps, relevance / z, 0)
        left = (relevance - s * z) / layer.run(ones)
        given: list[Tensor | None] = []
        for index, share in enumerate(self.shares):
            if not share:
                given.append(None)
                continue
            back = self._adjoint(layer, ones, index, left)
            for sign in (0, 1):
                factors = [part[sign] for part in parts]
                back = back + factors[index] * self._adjoint(layer, factors, index, s)
            given.append(back * share)
        return given

    @staticmethod
    def _adjoint(layer: MatrixProduct, factors: Sequence[Tensor], index: int, s: Tensor) -> Tensor:
        """The derivative of the product by one factor, applied to ``s``."""

        def product(h: Tensor) -> Tensor:
            return layer.run([h if k == index else factor for k, factor in enumerate(factors)])

        back, *_ = torch.func.vjp(product, factors[index])[1](s)
        return back


@dataclass(frozen=True)
class Split(Rule):
    """A join: relevance divides among the branches by a splitting; branches left out get nothing.

    Args:
        splitting: see :mod:`headwater.engine.splitting`.
        takes_part: for each branch, whether it gets a share.
    """

    layers: ClassVar[type[Layer]] = Join
    splitting: Splitting
    takes_part: tuple[bool, ...]

    def passes_to(self, index: int) -> bool:
        return self.takes_part[index]

    def __call__(
        self, layer: Join, weights: Weights, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor | None]:
        terms = [
            term.expand(relevance.shape)
            for term, taken in zip(layer.terms(inputs), self.takes_part, strict=True)
            if taken
        ]
        shares = iter(self.splitting(terms, relevance) if len(terms) > 1 else [relevance])
        return [
            next(shares).sum_to_size(h.shape) if taken else None
            for h, taken in zip(inputs, self.takes_part, strict=True)
        ]


def _ones(h: Tensor, weight: Tensor | None) -> Tensor:
    """Ones in place of an input; one image's are enough where the batch is known to come first."""
    return torch.ones_like(h if weight is None else h[:1])


def _layout(h: Tensor) -> torch.memory_format:
    return torch.channels_last if h.ndim == 4 else torch.contiguous_format
