"""How relevance passes one operation, whatever it is; rules for linear operations are in ``linear_rules``.

A rule is told tensors, never graphs or models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from headwater.engine.layers import Join, Layer, MatrixProduct, MaxPool, MaxSelect, Product, Rearrange, TokenPath
from headwater.engine.splitting import Splitting, check_threshold
from headwater.errors import InputError

aten = torch.ops.aten

Prepared = tuple[Tensor | None, ...]
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

    def for_nonnegative(self) -> Rule:
        """The same rule for inputs known not to be negative, where that costs less."""
        return self

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> Prepared:
        """Whatever is derived from the parameters alone."""
        return ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abstractmethod
    def __call__(
        self, layer: Any, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor | None]:
        """Relevance of each input from the relevance of the output; ``None`` where an input gets nothing.

        Args:
            layer: the operation, see :mod:`headwater.engine.layers`.
            prepared: what ``prepare`` returned.
            inputs: the values that went in; uninitialised tensors of their shape where ``needs_inputs`` is false.
            relevance: shaped as the output; not to be written to, but it may be returned.

        Returns:
            One tensor per input, no two sharing memory, each of which the caller may write to.
        """


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes unchanged, element by element (activations, normalisation, dropout)."""

    needs_inputs = False

    def __call__(
        self, layer: Layer, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        return [relevance.sum_to_size(inputs[0].shape)]


@dataclass(frozen=True)
class Follow(Rule):
    """Relevance goes back to where each element came from (views, permutations, slices, concatenation).

    What lands on constants, such as padding or a class token put in front of the patches, has no place in the image
    to go back to. It is handed on in equal parts to all elements that came from the image, image by image.

    Args:
        batches: the dimension that counts the images, of the output and of each input; the first if not given.
    """

    needs_inputs = False
    batches: tuple[int, ...] = field(default=(), repr=False)

    def __call__(
        self, layer: Rearrange, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        back = torch.func.vjp(lambda *h: layer.run(h), *inputs)[1](relevance)
        if not layer.has_constants:
            return back
        first, *others = self.batches or (0,) * (1 + len(back))
        arrived, *back = [h.movedim(d, 0) for h, d in zip((relevance, *back), (first, *others), strict=True)]
        count = min(h.shape[0] for h in (arrived, *back))  # windows may be counted with the images
        lost = arrived.reshape(count, -1).sum(1) - sum(h.reshape(count, -1).sum(1) for h in back)
        each = lost / sum(h[:1].numel() * (h.shape[0] // count) for h in back)
        given = [(h.reshape(count, -1) + each[:, None]).reshape(h.shape) for h in back]
        return [h.movedim(0, d).contiguous(memory_format=_layout(h)) for h, d in zip(given, others, strict=True)]


@dataclass(frozen=True)
class ToTokens(Rule):
    """Relevance of a token's features, and of what is computed from its id, goes to the token itself.

    Of several inputs with the same places the first gets it.
    """

    needs_inputs = False
    layers: ClassVar[type[Layer]] = TokenPath

    def passes_to(self, index: int) -> bool:
        return index == 0

    def __call__(
        self, layer: TokenPath, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor | None]:
        first, *others = inputs
        if relevance.shape[: first.ndim] == first.shape:
            share = relevance.flatten(first.ndim).sum(-1) if relevance.ndim > first.ndim else relevance.clone()
        else:
            share = torch.func.vjp(lambda h: layer.run_on_floats([h, *others]), first)[1](relevance)[0]
            if layer.has_constants:  # what lies on added tokens, such as a decoder's first, goes to all in equal parts
                lost = relevance.flatten(1).sum(1) - share.flatten(1).sum(1)
                share = share + (lost / share[0].numel()).view(-1, *[1] * (share.ndim - 1))
        return [share, *[None for _ in others]]


@dataclass(frozen=True)
class WinnerTakesAll(Rule):
    """Max pooling as the linear projection that picks each window's largest value: that input gets everything."""

    layers: ClassVar = (MaxPool, MaxSelect)

    def __call__(
        self, layer: MaxPool | MaxSelect, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
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
        self, layer: MaxPool, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
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

    def __call__(
        self, layer: Layer, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
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
        self, layer: Product, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
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
    halves are the uniform rule for bilinear operations (Achtibat et al. 2024). An output without positive contributions
    hands on by :math:`|A_{ik}| |V_{kj}|`, so that a token which attention does not look at gets nothing; where all of
    these are 0, in equal parts.

    Args:
        shares: part of the relevance that the first and the second factor get; they sum to 1.
    """

    shares: tuple[float, float] = (0.0, 1.0)
    layers: ClassVar[type[Layer]] = MatrixProduct

    def passes_to(self, index: int) -> bool:
        return self.shares[index] > 0

    def __call__(
        self, layer: MatrixProduct, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor | None]:
        ups, downs = [h.clamp(min=0) for h in inputs], [h.clamp(max=0) for h in inputs]
        z = layer.run(ups) + layer.run(downs)
        s = _quotient(relevance, z)
        return self._shared(layer, inputs, relevance - s * z, [(ups, s), (downs, s)])

    def _shared(
        self,
        layer: MatrixProduct,
        inputs: Sequence[Tensor],
        left: Tensor,
        terms: Sequence[tuple[Sequence[Tensor], Tensor]],
    ) -> Sequence[Tensor | None]:
        """Relevance of the factors.

        Args:
            layer: the product.
            inputs: its factors.
            left: relevance that the terms do not hand on, shaped as the output.
            terms: what stands for the factors, and relevance over what they contribute.
        """
        sizes, ones = [h.abs() for h in inputs], [torch.ones_like(h) for h in inputs]
        size = layer.run(sizes)
        by_size = _quotient(left, size)
        equally = (left - by_size * size) / layer.run(ones)
        given: list[Tensor | None] = []
        for index, share in enumerate(self.shares):
            if not share:
                given.append(None)
                continue
            back = self._adjoint(layer, ones, index, equally)
            for factors, s in (*terms, (sizes, by_size)):
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


def _quotient(relevance: Tensor, z: Tensor) -> Tensor:
    """Relevance over what contributes; 0 where that is too small a float to share anything out exactly.

    Masked attention leaves weights near the smallest float.
    """
    limits = torch.finfo(z.dtype)
    return torch.where(z.abs() > limits.tiny / limits.eps, relevance / z, 0)


@dataclass(frozen=True)
class SignedGate(MatrixGate):
    r"""A matrix product of two values, each factor's share by its sign: :math:`z_{ikj} = A_{ik} V_{kj}`.

    Where the contributions nearly cancel, :math:`|z| \le \tau \sum |z_{ikj}|`, they are shared by absolute value. In
    a transformer this keeps what a token's negative values say, which z+ drops.

    Args:
        shares: as for :class:`MatrixGate`.
        threshold: :math:`\tau`, in (0, 1); as for :class:`~headwater.rules.SignedRule`.
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def __call__(
        self, layer: MatrixProduct, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor | None]:
        z, size = layer.run(inputs), layer.run([h.abs() for h in inputs])
        s = _quotient(relevance, z).masked_fill(z.abs() <= self.threshold * size, 0)
        return self._shared(layer, inputs, relevance - s * z, [(inputs, s)])


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
        self, layer: Join, prepared: Prepared, inputs: Sequence[Tensor], relevance: Tensor
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


def _layout(h: Tensor) -> torch.memory_format:
    return torch.channels_last if h.ndim == 4 else torch.contiguous_format
