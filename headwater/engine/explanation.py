"""What every explanation method returns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.engine.flow import Flow
from headwater.engine.graph import Activation
from headwater.engine.heads import probabilities
from headwater.engine.scales import enlarge
from headwater.errors import ConservationWarning

NOT_CONSERVING = frozenset(("doublet2024", "epsilon"))
"""Presets that lose relevance by the rules that they are named after; those called ``*-published`` do too."""


Maps = Any
"""A tensor ``(N, ...)``, or one for each of several inputs: a tuple by position or a dict by keyword."""


@dataclass(frozen=True)
class Conservation:
    """How exactly relevance was conserved, per image.

    Attributes:
        seed: relevance that the sweep began with, ``(N,)``.
        input: sum of relevance at the inputs, ``(N,)``.
        checkpoints: sum of relevance at each checkpoint, ``(N,)``. At a cut it is the seed if nothing is lost; inside a
            branch it is that branch's share.
        cuts: names of the checkpoints that are cuts: all relevance passes there.
        size: what errors are parts of, ``(N,)``: the sum of the seed's sizes, signs left out, where a class is
            explained against another and the seed is a difference; ``None`` where it is the seed's own.
        error: ``|input - seed| / |seed|``, or ``/ size`` where there is one, ``(N,)``.
    """

    seed: Float[Tensor, " n"]
    input: Float[Tensor, " n"]
    checkpoints: Mapping[str, Float[Tensor, " n"]] = field(default_factory=dict)
    cuts: tuple[str, ...] = ()
    size: Float[Tensor, " n"] | None = None

    @property
    def error(self) -> Float[Tensor, " n"]:
        return self._error(self.input)

    @property
    def checkpoint_errors(self) -> dict[str, Float[Tensor, " n"]]:
        """Relative error at each checkpoint that is a cut, ``(N,)``.

        A checkpoint inside a branch has none: what should arrive there is not known beforehand.
        """
        return {place: self._error(self.checkpoints[place]) for place in self.cuts}

    def _error(self, total: Tensor) -> Tensor:
        smallest = torch.finfo(self.seed.dtype).tiny
        return (total - self.seed).abs() / self.begun.clamp(min=smallest)

    @property
    def begun(self) -> Float[Tensor, " n"]:
        """How much relevance there was to lose, signs left out, ``(N,)``."""
        return self.seed.abs() if self.size is None else self.size

    def select(self, index: int) -> Conservation:
        """The account of one image, as a batch of one."""
        part = slice(index, index + 1)
        totals = {place: total[part] for place, total in self.checkpoints.items()}
        size = None if self.size is None else self.size[part]
        return Conservation(self.seed[part], self.input[part], totals, self.cuts, size)


@dataclass(frozen=True)
class Explanation:
    """Maps for a batch of images, signals, volumes, texts or rows of features.

    Attributes:
        heatmap: relevance of each place of the input, channels summed: ``(N, H, W)`` of an image, ``(N, L)`` of a
            signal or of token ids, ``(N, D, H, W)`` of a volume, ``(N, F)`` of features. Where several inputs have
            relevance, one map for each, in a tuple or a dict like ``relevance``.
        logits: what the network returns, or what enters the softmax or sigmoid that it ends with: ``(N, K)``, or
            ``(N, K, ...)`` for a network with an output for each pixel, voxel or token.
        probability: of the explained class, ``(N,)``, in [0, 1]: by the network's own softmax or sigmoid where it ends
            with one; its mean over the explained region for a network with per-pixel outputs.
        target: the explained class, long ``(N,)``.
        relevance: relevance of each input value, shaped as the input: a tensor, or a tuple or dict of them where the
            network was called with one; zeros for masks. ``None`` for methods that have none.
        checkpoints: relevance at the input of each asked module.
        conservation: the account; ``None`` for methods that do not keep one.
        flow: how relevance divided at each join; ``None`` for methods that do not tell.
        coarse: relevance at the cuts between input and output, channels summed, each in its own resolution
            ``(N, h, w)``, from the output to the input; empty for methods that do not tell. :attr:`scales` enlarges it.
        against: the class against which the target is explained, long ``(N,)``; ``None`` without one.
        axes: what the dimensions of ``heatmap`` after the batch are, such as ``("row", "column")`` or ``("token",)``;
            empty where several inputs have relevance.
        finest: the input's own relevance, channels summed, shaped as ``heatmap``; ``None`` where there is none or
            several inputs have it.
        head: ``"softmax"``, ``"log_softmax"`` or ``"sigmoid"`` where the network was found to end with one;
            ``"probabilities"`` or ``"chances"`` where it returns probabilities that were made otherwise, which do or
            don't sum to one.
        activation: what makes probabilities of the logits, ``"softmax"`` or ``"sigmoid"``.
    """

    heatmap: Maps
    logits: Float[Tensor, "n k *pixels"]
    probability: Float[Tensor, " n"]
    target: Int[Tensor, " n"]
    relevance: Maps | None = None
    checkpoints: Mapping[str, Float[Tensor, "n ..."]] = field(default_factory=dict)
    conservation: Conservation | None = None
    flow: Flow | None = None
    coarse: Mapping[str, Float[Tensor, "n ..."]] = field(default_factory=dict)
    against: Int[Tensor, " n"] | None = None
    axes: tuple[str, ...] = ("row", "column")
    finest: Float[Tensor, "n ..."] | None = None
    head: str | None = None
    activation: Activation = "softmax"

    def __repr__(self) -> str:
        """What fits in a line; tensors are shown by their attributes.

        >>> import torch, headwater as hw
        >>> hw.LRP(hw.load_model("tiny20"))(torch.rand(2, 3, 64, 64), target=5)
        Explanation(heatmap (2, 64, 64), target [5, 5], probability [..., ...], conservation error ...)
        """
        parts = [f"heatmap {_shapes(self.heatmap)}", f"target {self.target.tolist()}"]
        parts += [] if self.against is None else [f"against {self.against.tolist()}"]
        parts.append(f"probability [{', '.join(f'{p:.4f}' for p in self.probability.tolist())}]")
        if self.conservation is not None:
            parts.append(f"conservation error {self.conservation.error.max().item():.1e}")
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def scales(self) -> dict[str, Float[Tensor, "n ..."]]:
        """Relevance at every scale, from coarse (where the network looked) to fine (what it saw), in the input's size.

        One map, ``(N, H, W)`` for images, for each cut that has places, by the name that :attr:`Conservation.cuts` has
        for it, and last the input's own, ``"image"``. All relevance passes a cut, so each map sums to the seed as the
        input's does. A network without such cuts has the input's alone; a method that propagates no relevance has none.

        >>> import torch, headwater as hw
        >>> e = hw.LRP(hw.load_model("tiny20"))(torch.rand(2, 3, 64, 64))
        >>> [tuple(maps.shape[1:]) for maps in e.coarse.values()][:3]
        [(4, 4), (4, 4), (8, 8)]
        >>> all(torch.allclose(maps.sum((1, 2)), e.probability) for maps in e.scales.values())
        True
        """
        if self.finest is None:
            return {}
        size, dtype = self.finest.shape[1:], self.finest.dtype
        return {**{name: enlarge(maps, size).to(dtype) for name, maps in self.coarse.items()}, "image": self.finest}

    @property
    def probabilities(self) -> Float[Tensor, "n k *pixels"]:
        """The probability of each class, ``(N, K)`` or ``(N, K, ...)``, by the network's softmax or sigmoid."""
        return probabilities(self.logits, self.activation)

    def select(self, index: int) -> Explanation:
        """The explanation of one image, as a batch of one."""
        part = slice(index, index + 1)
        return Explanation(
            heatmap=_part(self.heatmap, part),
            logits=self.logits[part],
            probability=self.probability[part],
            target=self.target[part],
            relevance=None if self.relevance is None else _part(self.relevance, part),
            checkpoints={module: r[part] for module, r in self.checkpoints.items()},
            conservation=None if self.conservation is None else self.conservation.select(index),
            flow=None if self.flow is None else self.flow.select(index),
            coarse={name: maps[part] for name, maps in self.coarse.items()},
            against=None if self.against is None else self.against[part],
            axes=self.axes,
            finest=None if self.finest is None else self.finest[part],
            head=self.head,
            activation=self.activation,
        )

    # Notebooks call these. What draws is above the engine, and only imported when a notebook asks.

    def _repr_html_(self) -> str:
        import headwater

        return headwater.pictures.explanation_html(self)

    def _repr_png_(self) -> bytes | None:
        import headwater

        return headwater.pictures.explanation_png(self)


def _part(maps: Maps, part: slice) -> Maps:
    """Some of the examples."""
    if isinstance(maps, Tensor):
        return maps[part]
    return {key: m[part] for key, m in maps.items()} if isinstance(maps, dict) else tuple(m[part] for m in maps)


def _shapes(maps: Maps) -> object:
    if isinstance(maps, Tensor):
        return tuple(maps.shape)
    named = maps.items() if isinstance(maps, dict) else enumerate(maps)
    return {key: tuple(m.shape) for key, m in named}


def warn_if_lost(conservation: Conservation, composite: str, dtype: torch.dtype = torch.float32) -> None:
    """Warn where a map does not sum to the seed, unless the composite is known not to conserve.

    The limit is the square root of the dtype's resolution: half of its digits (3.5e-4 in float32). Rules that conserve
    are far below it, and where rounding has taken over it is far exceeded. What is not finite counts as lost. A seed
    below the dtype's smallest normal number is not judged.

    Args:
        conservation: the account of the sweep.
        composite: the composite's name.
        dtype: of the sweep.
    """
    if composite in NOT_CONSERVING or composite.endswith("-published"):
        return
    resolution = torch.finfo(dtype)
    lost = (conservation.input - conservation.seed).abs()
    fine = lost <= resolution.eps**0.5 * conservation.begun + resolution.tiny
    if not fine.all():
        places = (~fine).nonzero().flatten().tolist()
        worst = conservation.error.nan_to_num(torch.inf).max().item()
        warnings.warn(
            f"composite {composite!r} did not conserve relevance for images {places} of this batch: the sum of a map "
            f"differs from the relevance that its sweep began with by {worst:.1e} of it (see .conservation). Take "
            "rules with fallback=True and, for Epsilon and Gamma, a larger threshold, or read the map as incomplete",
            ConservationWarning,
            stacklevel=3,
        )
