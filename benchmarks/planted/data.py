"""Examples with planted evidence, a function of a count and a seed: what decides the class, where, and distractors.

Each generator plants what decides the class at a random place, and beside it what looks alike and occurs in every
class, so that a map that only finds what stands out of the noise is not enough. The mask is the planted place: the
same window for every class, or the two tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

SAMPLES, WINDOW = 256, 24
"""Length of a signal, and of a shape in it."""
SIDE, CUBE = 24, 7
"""Side of a volume, and of the cube that holds a blob."""
TOKENS, VOCABULARY, SHORTEST = 32, 60, 17
"""Length of a sequence with its padding, number of token ids, and tokens of the shortest one, [CLS] included."""
PAD, CLS = 0, 1
PAIRS = torch.tensor([[2, 3], [4, 5], [6, 7], [8, 9]])
"""The two token ids that decide for each class."""
FILLER = 10


@dataclass(frozen=True)
class Examples:
    """Inputs of a network, their classes, and where the evidence was planted.

    Attributes:
        x: signals ``(N, 2, 256)``, volumes ``(N, 1, 24, 24, 24)`` or token ids ``(N, 32)``.
        labels: ``(N,)``.
        mask: the planted place, ``(N, *places)``.
        others: other places that are worth knowing about, such as distractors, each like ``mask``.
        attention: of token ids, 1 for a token and 0 for padding; else ``None``.
    """

    x: Tensor
    labels: Int[Tensor, " n"]
    mask: Bool[Tensor, "n ..."]
    others: Mapping[str, Bool[Tensor, "n ..."]] = field(default_factory=dict)
    attention: Int[Tensor, "n 32"] | None = None

    @property
    def inputs(self) -> Tensor | dict[str, Tensor]:
        """What LRP is called with."""
        return self.x if self.attention is None else {"input_ids": self.x, "attention_mask": self.attention}

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What the network is called with."""
        return (self.x,) if self.attention is None else (self.x, self.attention)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, which: Tensor | slice) -> Examples:
        """Some of the examples."""
        attention = None if self.attention is None else self.attention[which]
        others = {name: mask[which] for name, mask in self.others.items()}
        return Examples(self.x[which], self.labels[which], self.mask[which], others, attention)

    def area(self, mask: Bool[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """Share of the places that a mask covers, padding left out: what a map without information reaches."""
        places = mask[0].numel() if self.attention is None else self.attention.sum(1)
        return mask.flatten(1).sum(1) / places


# -- signals ----------------------------------------------------------------------------------------------------------


def signals(count: int, seed: int) -> Examples:
    """Two channels of coloured noise, with one of four shapes and two distractors that occur in all classes.

    Planted are an oscillation that slows down or that speeds up, a sawtooth that rises or that falls: the classes are
    mirror images, so neither energy nor frequency tells them apart. Distractors are two of a steady oscillation, a
    bump and a rectangle. Each is 24 samples long and in a random channel; none overlap.
    """
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=g)
    x = _coloured(torch.randn(count, 2, SAMPLES, generator=g))
    kinds = torch.stack([labels, *(4 + _distinct(count, 3, 2, g)).unbind(1)], 1)
    free = torch.randint(SAMPLES - 3 * WINDOW + 1, (count, 3), generator=g).sort(1)[0]
    begins = (free + WINDOW * torch.arange(3)).gather(1, _distinct(count, 3, 3, g))
    channels = torch.randint(2, (count, 3), generator=g)
    sizes = 2 + torch.rand(count, 3, generator=g)
    places = begins[:, :, None] + torch.arange(WINDOW)
    rows = torch.arange(count)[:, None, None]
    x.index_put_((rows, channels[:, :, None], places), sizes[:, :, None] * shapes()[kinds], accumulate=True)
    mask, distractors = (
        torch.zeros(count, SAMPLES, dtype=torch.bool).scatter_(1, which.flatten(1), True)
        for which in (places[:, 0], places[:, 1:])
    )
    return Examples(x, labels, mask, {"distractors": distractors})


def shapes() -> Float[Tensor, "7 24"]:
    """The four planted shapes, then the three distractors."""
    t = (torch.arange(WINDOW) + 0.5) / WINDOW
    envelope = (math.pi * t).sin()
    chirp = (2 * math.pi * (t + 3 * t.square())).sin() * envelope
    saw = 2 * (2 * t % 1) - 1
    steady = (2 * math.pi * 3 * t).sin() * envelope
    return torch.stack([chirp.flip(0), chirp, saw, saw.flip(0), steady, envelope, (t > 0.25).float() * (t < 0.75)])


def _coloured(white: Float[Tensor, "n c l"]) -> Float[Tensor, "n c l"]:
    """Noise whose power falls with the frequency, with a standard deviation of 1."""
    spectrum = torch.fft.rfft(white)
    frequency = torch.arange(spectrum.shape[2]).clamp(min=1)
    noise = torch.fft.irfft(spectrum * frequency.rsqrt(), white.shape[2])
    return noise / noise.std(2, keepdim=True)


# -- volumes ----------------------------------------------------------------------------------------------------------


def volumes(count: int, seed: int) -> Examples:
    """Blurred noise with a ball, a shell or a cube, and two distractors that occur in all classes: a rod and a plate.

    Each lies in a cube of side 7 in an octant of its own, in a random direction and of random brightness.
    """
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=g)
    noise = torch.randn(count, 1, SIDE + 2, SIDE + 2, SIDE + 2, generator=g)
    x = functional.avg_pool3d(noise, 3, stride=1)
    x /= x.std((2, 3, 4), keepdim=True)
    rods, plates = (first + torch.randint(3, (count,), generator=g) for first in (3, 6))
    kinds = torch.stack([labels, rods, plates], 1)
    octants = _distinct(count, 8, 3, g)
    corners = torch.stack([octants // 4, octants // 2 % 2, octants % 2], 2) * (SIDE // 2)
    corners = corners + torch.randint(SIDE // 2 - CUBE + 1, corners.shape, generator=g)
    sizes = 1.5 + torch.rand(count, 3, generator=g)
    templates, (mask, distractors) = blobs(), torch.zeros(2, count, SIDE, SIDE, SIDE, dtype=torch.bool)
    for n in range(count):
        for k in range(3):
            window = tuple(slice(corner, corner + CUBE) for corner in corners[n, k].tolist())
            x[n, 0][window] += sizes[n, k] * templates[kinds[n, k]]
            (distractors if k else mask)[n][window] = True
    return Examples(x, labels, mask, {"distractors": distractors})


def blobs() -> Float[Tensor, "9 7 7 7"]:
    """Ball, shell and cube, then the distractors: rods and plates along each axis."""
    z = torch.arange(CUBE) - CUBE // 2
    grid = torch.stack(torch.meshgrid(z, z, z, indexing="ij"))
    radius, depth = grid.square().sum(0).sqrt(), grid.abs()
    planted = [radius <= 3.2, (radius <= 3.2) & (radius > 2.1), depth.amax(0) <= 2]
    rods = [(depth.index_fill(0, torch.tensor(axis), 0) <= 1).all(0) for axis in range(3)]
    plates = [depth[axis] <= 0 for axis in range(3)]
    return torch.stack([*planted, *rods, *plates]).float()


# -- sequences --------------------------------------------------------------------------------------------------------


def sequences(count: int, seed: int) -> Examples:
    """Token ids in which the class is the only pair that is complete; of every other pair there is one member.

    That member occurs once or twice, so neither a single token nor the number of tokens of a pair decides: both of the
    pair must be there. Order and places are random; the rest are filler tokens, in front stands [CLS], behind padding.
    """
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=g)
    single = PAIRS[torch.arange(4), torch.randint(2, (count, 4), generator=g)]
    twice = torch.rand(count, 4, generator=g) < 0.5
    filler = torch.randint(FILLER, VOCABULARY, (count, TOKENS - 1), generator=g)
    slots = torch.stack([single, torch.where(twice, single, filler[:, :4])], 2)
    planted = (torch.arange(4) == labels[:, None])[:, :, None].expand_as(slots)
    body = torch.cat([torch.where(planted, PAIRS, slots).flatten(1), filler[:, 8:]], 1)
    evidence = functional.pad(planted.flatten(1), (0, TOKENS - 9))
    lengths = torch.randint(SHORTEST - 1, TOKENS, (count, 1), generator=g)
    beyond = torch.arange(TOKENS - 1) >= lengths
    order = (torch.rand(body.shape, generator=g) + beyond).argsort(1)
    ids = torch.cat([torch.full((count, 1), CLS), body.gather(1, order).masked_fill(beyond, PAD)], 1)
    mask = functional.pad(evidence.gather(1, order), (1, 0))
    others = {"distractors": (ids >= PAIRS.min()) & (ids < FILLER) & ~mask, "[CLS]": ids == CLS}
    return Examples(ids, labels, mask, others, (ids != PAD).long())


def _distinct(count: int, most: int, chosen: int, g: torch.Generator) -> Int[Tensor, "n k"]:
    """For each of ``count`` examples, different numbers below ``most`` in random order."""
    return torch.rand(count, most, generator=g).argsort(1)[:, :chosen]
