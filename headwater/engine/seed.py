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
        against: the class against which it is explained, long ``(N,)``; ``None`` without one.
        size: sum of the sizes of ``relevance``, ``(N,)``, where there are two classes; else ``None``.
    """

    relevance: Float[Tensor, "n ..."]
    total: Float[Tensor, " n"]
    logits: Float[Tensor, "n k *pixels"]
    target: Int[Tensor, " n"]
    probability: Float[Tensor, " n"]
    against: Int[Tensor, " n"] | None = None
    size: Float[Tensor, " n"] | None = None


def make_seed(output: Tensor, count: int, target: Target, start: Start, region: Region, against: Target = None) -> Seed:
    """The seed for an output ``(N,)``, ``(N, K)`` or ``(N, K, H, W)``.

    Raises:
        TraceError: the output has another shape.
        InputError: the target, the region or the class against it does not fit.
    """
    if output.ndim not in (1, 2, 4) or len(output) != count:
        raise TraceError(
            f"the network returns {tuple(output.shape)} for {count} images; supported are logits (N, K), one value per "
            "image (N,), and per-pixel logits (N, K, H, W). Wrap it in a module that returns one of these."
        )
    logits = output[:, None] if output.ndim == 1 else output
    if region is not None and logits.ndim != 4:
        raise InputError(f"region is for networks with per-pixel outputs; this one returns {tuple(output.shape)}")
    probabilities = logits.softmax(1)
    given = None if region is None else _mask(region, logits)
    inside = torch.ones_like(logits[:, 0]) if given is None else given
    classes = check_target(target, _mean(probabilities, inside) if logits.ndim == 4 else logits)
    if logits.ndim == 4 and given is None:
        predicted = (logits.argmax(1) == classes[:, None, None]).to(logits.dtype)
        found = predicted.flatten(1).sum(1)[:, None, None] > 0
        inside = torch.where(found, predicted, inside)  # a class that is predicted nowhere: everywhere
    part = inside / inside.flatten(1).sum(1).view(-1, *[1] * (inside.ndim - 1)) if logits.ndim == 4 else inside
    probability = _of_class(probabilities, classes)
    starts = {"probability": probabilities, "logit": logits, "one": torch.ones_like(logits)}[start]
    beginning = _of_class(starts, classes) * part
    seed, size, other = _placed(logits, classes, beginning), None, None
    if against is not None:
        other = check_against(against, classes, logits)
        less = _of_class(starts, other) * part
        seed -= _placed(logits, other, less)
        size = _total(beginning.abs() + less.abs())
        beginning = beginning - less
    return Seed(
        seed.reshape(output.shape),
        _total(beginning),
        logits,
        classes,
        _total(probability * part),
        other,
        size,
    )


def _of_class(values: Tensor, classes: Tensor) -> Tensor:
    """One class's of values ``(N, K, ...)``, ``(N, ...)``."""
    return torch.take_along_dim(values, _at(classes, values), 1)[:, 0]


def _placed(logits: Tensor, classes: Tensor, values: Tensor) -> Tensor:
    """Zeros shaped as the logits, with values at one class."""
    at = _at(classes, logits).expand(-1, 1, *logits.shape[2:])
    return torch.zeros_like(logits).scatter_(1, at, values[:, None])


def _at(classes: Tensor, values: Tensor) -> Tensor:
    return classes.view(-1, *[1] * (values.ndim - 1))


def _total(values: Tensor) -> Tensor:
    """Sum of each image's values."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


def check_target(target: Target, logits: Tensor) -> Tensor:
    """The explained class of each image, long ``(N,)``, given scores ``(N, K)``.

    Raises:
        InputError: wrong type, shape or range, or scores that are not finite.
    """
    count, classes = logits.shape
    finite = logits.isfinite().all(1)
    if not finite.all():
        which = [k for k, fine in enumerate(finite.tolist()) if not fine]
        raise InputError(
            f"the network's output holds NaN or infinity for images {which} of this batch; a map made from it would "
            "mean nothing. In half precision, try float32"
        )
    if target is None:
        return logits.argmax(1)
    return _in_range(target, "target", count, classes, logits.device)


def check_against(against: int | Tensor, target: Int[Tensor, " n"], logits: Tensor) -> Int[Tensor, " n"]:
    """The class against which each image is explained, long ``(N,)``, given the explained ones and the logits.

    Raises:
        InputError: wrong type, shape or range, or the class is the explained one.
    """
    chosen = _in_range(against, "against", len(logits), logits.shape[1], logits.device)
    same = [k for k, equal in enumerate((chosen == target).tolist()) if equal]
    if same:
        raise InputError(
            f"target and against are the same class, {int(target[same[0]])}, for images {same} of this batch; a map of "
            "why one class and not another needs two (without a target, the predicted class is explained)"
        )
    return chosen


def _in_range(given: int | Tensor, name: str, count: int, classes: int, device: torch.device) -> Tensor:
    chosen = check_classes(given, name, count, device)
    if ((chosen < 0) | (chosen >= classes)).any():
        raise InputError(f"{name} {chosen.tolist()} is out of range; the network has classes 0 to {classes - 1}")
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


def _mask(region: tuple[int, int] | Tensor, logits: Tensor) -> Tensor:
    """The region as ones and zeros, ``(N, H, W)``."""
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
