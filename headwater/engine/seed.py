"""Where the sweep begins: relevance at the network's output, for the class and the place to be explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.engine.guards.checks import check_classes
from headwater.errors import InputError, TraceError

Start = Literal["probability", "logit", "one"]
Target = int | Tensor | None
Region = tuple[int, int] | Tensor | None


@dataclass(frozen=True)
class Seed:
    """The beginning of a sweep.

    Attributes:
        relevance: relevance of the output, of its shape.
        total: its sum per image, ``(N,)``.
        logits: the output with a class dimension, ``(N, K)`` or ``(N, K, H, W)``.
        target: the explained class, long ``(N,)``.
        probability: its softmax probability, its mean over the region for per-pixel outputs, ``(N,)``.
    """

    relevance: Float[Tensor, "n ..."]
    total: Float[Tensor, " n"]
    logits: Float[Tensor, "n k *pixels"]
    target: Int[Tensor, " n"]
    probability: Float[Tensor, " n"]


def make_seed(output: Tensor, count: int, target: Target, start: Start, region: Region) -> Seed:
    """The seed for an output ``(N,)``, ``(N, K)`` or ``(N, K, H, W)``.

    Raises:
        TraceError: the output has another shape.
        InputError: the target or the region does not fit.
    """
    logits = with_classes(output, count)
    mask = None if region is None else region_mask(region, logits)
    return seed_at(output, logits, check_target(target, class_scores(logits, mask)), start, mask)


def with_classes(output: Tensor, count: int) -> Tensor:
    """The output with a class dimension, ``(N, K)`` or ``(N, K, H, W)``.

    Raises:
        TraceError: it has another shape than ``(N,)``, ``(N, K)`` and ``(N, K, H, W)``.
    """
    if output.ndim not in (1, 2, 4) or output.shape[0] != count:
        raise TraceError(
            f"the network returns {tuple(output.shape)} for {count} images; supported are logits (N, K), one value per "
            "image (N,), and per-pixel logits (N, K, H, W). Wrap it in a module that returns one of these."
        )
    return output[:, None] if output.ndim == 1 else output


def class_scores(logits: Tensor, mask: Tensor | None) -> Float[Tensor, "n k"]:
    """Of which the largest is the predicted class: the logits; for per-pixel logits mean probabilities."""
    if logits.ndim == 2:
        return logits
    return _mean(logits.softmax(1), torch.ones_like(logits[:, 0]) if mask is None else mask)


def seed_at(output: Tensor, logits: Tensor, classes: Tensor, start: Start, mask: Tensor | None) -> Seed:
    """The seed for classes that are known to fit; tensor operations alone, which can be traced.

    Args:
        output: of the network.
        logits: the same with a class dimension.
        classes: long ``(N,)``.
        start: relevance to begin with.
        mask: the region of per-pixel logits, ``(N, H, W)``; ``None`` for the pixels where the class is predicted.
    """
    probabilities = logits.softmax(1)
    inside = torch.ones_like(logits[:, 0]) if mask is None else mask
    if logits.ndim == 4 and mask is None:
        predicted = (logits.argmax(1) == classes[:, None, None]).to(logits.dtype)
        found = predicted.flatten(1).sum(1)[:, None, None] > 0
        inside = torch.where(found, predicted, inside)  # a class that is predicted nowhere: everywhere
    at = classes.view(-1, *[1] * (logits.ndim - 1)).expand(-1, 1, *logits.shape[2:])
    part = inside / inside.flatten(1).sum(1).view(-1, *[1] * (inside.ndim - 1)) if logits.ndim == 4 else inside
    probability, value = probabilities.gather(1, at)[:, 0], logits.gather(1, at)[:, 0]
    beginning = {"probability": probability, "logit": value, "one": torch.ones_like(value)}[start] * part
    seed = torch.zeros_like(logits).scatter_(1, at, beginning[:, None])
    return Seed(
        seed.reshape(output.shape),
        beginning.flatten(1).sum(1) if logits.ndim == 4 else beginning,
        logits,
        classes,
        (probability * part).flatten(1).sum(1) if logits.ndim == 4 else probability,
    )


def check_target(target: Target, logits: Tensor) -> Tensor:
    """The explained class of each image, long ``(N,)``, given scores ``(N, K)``.

    Raises:
        InputError: wrong type, shape or range, or scores that are not finite.
    """
    count, classes = logits.shape
    check_scores(logits)
    return logits.argmax(1) if target is None else chosen_classes(target, count, classes, logits.device)


def check_scores(logits: Tensor) -> None:
    """Refuse scores ``(N, K)`` that are not finite.

    Raises:
        InputError: some are NaN or infinity.
    """
    finite = logits.isfinite().all(1)
    if not finite.all():
        which = [k for k, fine in enumerate(finite.tolist()) if not fine]
        raise InputError(
            f"the network's output holds NaN or infinity for images {which} of this batch; a map made from it would "
            "mean nothing. In half precision, try float32"
        )


def chosen_classes(target: int | Tensor, count: int, classes: int, device: torch.device) -> Tensor:
    """The class of each image, long ``(N,)``, of a network with so many classes.

    Raises:
        InputError: wrong type, shape or range.
    """
    chosen = check_classes(target, "target", count, device)
    if ((chosen < 0) | (chosen >= classes)).any():
        raise InputError(f"target {chosen.tolist()} is out of range; the network has classes 0 to {classes - 1}")
    return chosen.expand(count)


def class_probability(logits: Float[Tensor, "n k"], classes: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Softmax probability of one class per image."""
    return logits.softmax(1).gather(1, classes[:, None])[:, 0]


def check_start(start: str) -> None:
    """Raise an ``InputError`` for an unknown ``start``."""
    if start not in get_args(Start):
        raise InputError(f"start must be one of {', '.join(get_args(Start))}, got {start!r}")


def _mean(probabilities: Tensor, inside: Tensor) -> Tensor:
    """Mean probability of each class over a region, ``(N, K)``."""
    return (probabilities * inside[:, None]).flatten(2).sum(2)


def region_mask(region: tuple[int, int] | Tensor, logits: Tensor) -> Tensor:
    """The region as ones and zeros, ``(N, H, W)``; of the logits only shape, dtype and device count.

    Raises:
        InputError: it does not fit the logits, or is empty.
    """
    if logits.ndim != 4:
        shape = tuple(logits.shape)
        raise InputError(f"region is for networks with per-pixel outputs; this one returns {shape}")
    count, _, height, width = logits.shape
    if isinstance(region, tuple):
        row, column = region
        if not (0 <= row < height and 0 <= column < width):
            raise InputError(f"region {region} lies outside the output of {height} x {width} pixels")
        mask = torch.zeros_like(logits[:, 0])
        mask[:, row, column] = 1
        return mask
    if not isinstance(region, Tensor) or region.shape not in ((height, width), (count, height, width)):
        given = tuple(region.shape) if isinstance(region, Tensor) else type(region).__name__
        raise InputError(
            f"region must be (row, column) or a mask of {(height, width)} or {(count, height, width)}, got {given}"
        )
    mask = (region != 0).to(logits).expand(count, height, width)
    if (mask.flatten(1).sum(1) == 0).any():
        raise InputError("region is empty for at least one image")
    return mask
