"""What every explanation method returns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.engine.flow import Flow
from headwater.engine.scales import enlarge
from headwater.errors import ConservationWarning

NOT_CONSERVING = frozenset(("doublet2024", "epsilon"))
"""Presets that lose relevance by the rules that they are named after; those called ``*-published`` do too."""


@dataclass(frozen=True)
class Conservation:
    """How exactly relevance was conserved, per image.

    Attributes:
        seed: relevance that the sweep began with, ``(N,)``.
        input: sum of relevance at the image, ``(N,)``.
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
    """Maps for a batch of images.

    Attributes:
        heatmap: relevance of each pixel, ``(N, H, W)``.
        logits: the network's output, ``(N, K)``, or ``(N, K, H, W)`` for a network with per-pixel outputs.
        probability: softmax probability of the explained class, ``(N,)``, in [0, 1]; its mean over the explained region
            for a network with per-pixel outputs.
        target: the explained class, long ``(N,)``.
        relevance: relevance of each input value, ``(N, C, H, W)``; ``None`` for methods that have none.
        checkpoints: relevance at the input of each asked module.
        conservation: the account; ``None`` for methods that do not keep one.
        flow: how relevance divided at each join; ``None`` for methods that do not tell.
        coarse: relevance at the cuts between image and output, channels summed, each in its own resolution
            ``(N, h, w)``, from the output to the image; empty for methods that do not tell. :attr:`scales` enlarges it.
        against: the class against which the target is explained, long ``(N,)``; ``None`` without one.
    """

    heatmap: Float[Tensor, "n h w"]
    logits: Float[Tensor, "n k *pixels"]
    probability: Float[Tensor, " n"]
    target: Int[Tensor, " n"]
    relevance: Float[Tensor, "n c h w"] | None = None
    checkpoints: Mapping[str, Float[Tensor, "n ..."]] = field(default_factory=dict)
    conservation: Conservation | None = None
    flow: Flow | None = None
    coarse: Mapping[str, Float[Tensor, "n h w"]] = field(default_factory=dict)
    against: Int[Tensor, " n"] | None = None

    def __repr__(self) -> str:
        """What fits in a line; tensors are shown by their attributes.

        >>> import torch, headwater as hw
        >>> hw.LRP(hw.load_model("tiny20"))(torch.rand(2, 3, 64, 64), target=5)
        Explanation(heatmap (2, 64, 64), target [5, 5], probability [..., ...], conservation error ...)
        """
        parts = [f"heatmap {tuple(self.heatmap.shape)}", f"target {self.target.tolist()}"]
        parts += [] if self.against is None else [f"against {self.against.tolist()}"]
        parts.append(f"probability [{', '.join(f'{p:.4f}' for p in self.probability.tolist())}]")
        if self.conservation is not None:
            parts.append(f"conservation error {self.conservation.error.max().item():.1e}")
        return f"{type(self).__name__}({', '.join(parts)})"

    @property
    def scales(self) -> dict[str, Float[Tensor, "n h w"]]:
        """Relevance at every scale, from coarse (where the network looked) to fine (what it saw), in the image's size.

        One map ``(N, H, W)`` for each cut that has rows and columns, by the name that :attr:`Conservation.cuts` has for
        it, and last the image's own. All relevance passes a cut, so each map sums to the seed as the image's does. A
        network without such cuts has the image's alone; a method that propagates no relevance has none.

        >>> import torch, headwater as hw
        >>> e = hw.LRP(hw.load_model("tiny20"))(torch.rand(2, 3, 64, 64))
        >>> [tuple(maps.shape[1:]) for maps in e.coarse.values()][:3]
        [(4, 4), (4, 4), (8, 8)]
        >>> all(torch.allclose(maps.sum((1, 2)), e.probability) for maps in e.scales.values())
        True
        """
        if self.relevance is None:
            return {}
        size = (self.relevance.shape[2], self.relevance.shape[3])
        enlarged = {name: enlarge(maps, size).to(self.relevance.dtype) for name, maps in self.coarse.items()}
        return {**enlarged, "image": self.relevance.sum(1)}

    def select(self, index: int) -> Explanation:
        """The explanation of one image, as a batch of one."""
        part = slice(index, index + 1)
        return Explanation(
            heatmap=self.heatmap[part],
            logits=self.logits[part],
            probability=self.probability[part],
            target=self.target[part],
            relevance=None if self.relevance is None else self.relevance[part],
            checkpoints={module: r[part] for module, r in self.checkpoints.items()},
            conservation=None if self.conservation is None else self.conservation.select(index),
            flow=None if self.flow is None else self.flow.select(index),
            coarse={name: maps[part] for name, maps in self.coarse.items()},
            against=None if self.against is None else self.against[part],
        )

    # Notebooks call these. What draws is above the engine, and only imported when a notebook asks.

    def _repr_html_(self) -> str:
        import headwater

        return headwater.report.explanation_html(self)

    def _repr_png_(self) -> bytes:
        import headwater

        return headwater.report.explanation_png(self)


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
