"""Where the sweep begins: relevance at the network's output, for the class and the place to be explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headwater.engine.graph import Activation
from headwater.engine.guards.checks import check_classes
from headwater.engine.heads import logits_before, probabilities
from headwater.errors import InputError, TraceError

Start = Literal["probability", "logit", "one"]
Target = int | Tensor | None
Region = tuple[int, ...] | Tensor | None


@dataclass(frozen=True)
class Seed:
    """The beginning of a sweep.

    Attributes:
        relevance: relevance of the output, of its shape.
        total: its sum per image, ``(N,)``.
        logits: the output with a class dimension, ``(N, K)`` or ``(N, K, H, W)``.
        target: the explained class, long ``(N,)``.
        probability: its probability, its mean over the region for per-pixel outputs, ``(N,)``.
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


def make_seed(
    output: Tensor,
    count: int,
    target: Target,
    start: Start,
    region: Region,
    against: Target = None,
    contrast: float = 0.0,
    activation: Activation = "softmax",
    head: str | None = None,
) -> Seed:
    """The seed for an output ``(N,)``, ``(N, K)`` or ``(N, K, ...)``.

    ``activation`` makes probabilities of its logits; by ``head`` the output is these itself, or probabilities.

    Raises:
        TraceError: the output has another shape.
        InputError: the target, the region or the class against it does not fit.
    """
    logits = logits_before(with_classes(output, count), head)
    mask = None if region is None else region_mask(region, logits)
    classes = check_target(target, class_scores(logits, mask, activation))
    if against is None:
        return seed_at(output, logits, classes, start, mask, contrast=contrast, activation=activation)
    other = chosen_classes(against, count, logits.shape[1], logits.device, "against")
    check_different(classes, other)
    return seed_at(output, logits, classes, start, mask, other, activation=activation)


def with_classes(output: Tensor, count: int) -> Tensor:
    """The output with a class dimension, ``(N, K)`` or ``(N, K, ...)``.

    Raises:
        TraceError: it does not have the batch first.
    """
    if output.ndim == 0 or output.shape[0] != count:
        raise TraceError(
            f"the network returns {tuple(output.shape)} for {count} examples; supported are logits (N, K), one value "
            "per example (N,), and logits of each pixel, voxel or token (N, K, ...). Wrap it in a module that returns "
            "one of these."
        )
    return output[:, None] if output.ndim == 1 else output


def class_scores(logits: Tensor, mask: Tensor | None, activation: Activation = "softmax") -> Float[Tensor, "n k"]:
    """Of which the largest is the predicted class: the logits; for per-pixel logits mean probabilities."""
    if logits.ndim == 2:
        return logits
    return _mean(probabilities(logits, activation), torch.ones_like(logits[:, 0]) if mask is None else mask)


def seed_at(
    output: Tensor,
    logits: Tensor,
    classes: Tensor,
    start: Start,
    mask: Tensor | None,
    against: Tensor | None = None,
    contrast: float = 0.0,
    activation: Activation = "softmax",
) -> Seed:
    """The seed for classes that are known to fit; tensor operations alone, which can be traced.

    Args:
        output: of the network.
        logits: the same with a class dimension.
        classes: long ``(N,)``.
        start: relevance to begin with.
        mask: the region of per-pixel logits, ``(N, H, W)``; ``None`` for the pixels where the class is predicted.
        against: other classes, long ``(N,)``, or ``None``.
        contrast: part of the beginning that the other classes lose and the target gains; none with ``against``, and
            none with ``"sigmoid"``, where labels do not compete.
        activation: what makes probabilities of the logits.
    """
    chances = probabilities(logits, activation)
    inside = torch.ones_like(logits[:, 0]) if mask is None else mask
    each = (-1, *[1] * (inside.ndim - 1))
    if logits.ndim > 2 and mask is None:
        predicted = (logits.argmax(1) == classes.view(each)).to(logits.dtype)
        found = predicted.flatten(1).sum(1).view(each) > 0
        inside = torch.where(found, predicted, inside)  # a class that is predicted nowhere: everywhere
    part = inside / inside.flatten(1).sum(1).view(each) if logits.ndim > 2 else inside
    probability = _of_class(chances, classes)
    starts = {"probability": chances, "logit": logits, "one": torch.ones_like(logits)}[start]
    beginning = _of_class(starts, classes) * part
    seed, size = _placed(logits, classes, beginning), None
    if against is not None:
        less = _of_class(starts, against) * part
        seed = seed - _placed(logits, against, less)
        size = _total(beginning.abs() + less.abs())
        beginning = beginning - less
    elif contrast and logits.shape[1] > 1 and activation == "softmax":
        others = logits.scatter(1, _at(classes, logits), -torch.inf).softmax(1)
        seed = (1 + contrast) * seed - contrast * others * beginning[:, None]
    return Seed(
        seed.reshape(output.shape),
        _total(beginning),
        logits,
        classes,
        _total(probability * part),
        against,
        size,
    )


def _of_class(values: Tensor, classes: Tensor) -> Tensor:
    """One class's of values ``(N, K, ...)``, ``(N, ...)``."""
    return values.gather(1, _at(classes, values))[:, 0]


def _placed(logits: Tensor, classes: Tensor, values: Tensor) -> Tensor:
    """Zeros shaped as the logits, with values at one class."""
    return torch.zeros_like(logits).scatter_(1, _at(classes, logits), values[:, None])


def _at(classes: Tensor, values: Tensor) -> Tensor:
    """Where one class's of values ``(N, K, ...)`` are, ``(N, 1, ...)``."""
    return classes.view(-1, *[1] * (values.ndim - 1)).expand(-1, 1, *values.shape[2:])


def _total(values: Tensor) -> Tensor:
    """Sum of each image's values."""
    return values.flatten(1).sum(1) if values.ndim > 1 else values


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


def chosen_classes(given: int | Tensor, count: int, classes: int, device: torch.device, name: str = "target") -> Tensor:
    """The class of each image, long ``(N,)``, of a network with so many classes.

    Raises:
        InputError: wrong type, shape or range.
    """
    chosen = check_classes(given, name, count, device)
    if ((chosen < 0) | (chosen >= classes)).any():
        raise InputError(f"{name} {chosen.tolist()} is out of range; the network has classes 0 to {classes - 1}")
    return chosen.expand(count)


def check_different(target: Int[Tensor, " n"], against: Int[Tensor, " n"]) -> None:
    """Refuse to explain a class against itself.

    Raises:
        InputError: the two are the same for an image.
    """
    same = [k for k, equal in enumerate((against == target).tolist()) if equal]
    if same:
        raise InputError(
            f"target and against are the same class, {int(target[same[0]])}, for images {same} of this batch; a map of "
            "why one class and not another needs two (without a target, the predicted class is explained)"
        )


def check_start(start: str) -> None:
    """Raise an ``InputError`` for an unknown ``start``."""
    if start not in get_args(Start):
        raise InputError(f"start must be one of {', '.join(get_args(Start))}, got {start!r}")


def _mean(chances: Tensor, inside: Tensor) -> Tensor:
    """Mean probability of each class over a region, ``(N, K)``."""
    return (chances * inside[:, None]).flatten(2).sum(2)


def region_mask(region: tuple[int, ...] | Tensor, logits: Tensor) -> Tensor:
    """The region as ones and zeros, ``(N, H, W)``; of the logits only shape, dtype and device count.

    Raises:
        InputError: it does not fit the logits, or is empty.
    """
    if logits.ndim < 3:
        shape = tuple(logits.shape)
        raise InputError(f"region is for networks with per-pixel outputs; this one returns {shape}")
    count, _, *size = logits.shape
    if isinstance(region, tuple):
        if len(region) != len(size) or not all(0 <= at < side for at, side in zip(region, size, strict=True)):
            raise InputError(f"region {region} lies outside the output of {' x '.join(map(str, size))} pixels")
        mask = torch.zeros_like(logits[:, 0])
        places: Any = (slice(None), *region)
        mask[places] = 1
        return mask
    if not isinstance(region, Tensor) or region.shape not in ((*size,), (count, *size)):
        given = tuple(region.shape) if isinstance(region, Tensor) else type(region).__name__
        raise InputError(f"region must be (row, column) or a mask of {(*size,)} or {(count, *size)}, got {given}")
    mask = (region != 0).to(logits).expand(count, *size)
    if (mask.flatten(1).sum(1) == 0).any():
        raise InputError("region is empty for at least one image")
    return mask
