"""Insertion and deletion: how the class probability follows the pixels that a map calls important."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from headwater.engine.graph import Activation, GraphInput
from headwater.engine.guards.checks import check_classes, check_maps, check_whole
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.outputs import Output
from headwater.engine.prediction import Predictor
from headwater.errors import InputError

Protocol = Literal["published", "budget"]
Baseline = Literal["black", "mean", "blur"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InsertionDeletion:
    """Curves and the areas under them, for each image.

    Attributes:
        insertion: area under the insertion curve, ``(N,)``, in [0, 1]; the higher the better.
        deletion: area under the deletion curve, ``(N,)``, in [0, 1]; the lower the better.
        insertion_curve: probability of the label at each point, ``(N, points)``.
        deletion_curve: likewise.
        fraction: part of the pixels that are inserted (or deleted) at each point, ``(N, points)``, in [0, 1].
        protocol: which of the two protocols it is.
    """

    insertion: Float[Tensor, " n"]
    deletion: Float[Tensor, " n"]
    insertion_curve: Float[Tensor, "n points"]
    deletion_curve: Float[Tensor, "n points"]
    fraction: Float[Tensor, "n points"]
    protocol: Protocol

    @property
    def id(self) -> Float[Tensor, " n"]:
        """Insertion minus deletion, ``(N,)``."""
        return self.insertion - self.deletion


def published_step(pixels: int) -> int:
    """Pixels between two points of the curves: 500 of 224 x 224, as in the papers, in proportion for other sizes.

    >>> published_step(224 * 224), published_step(64 * 64)
    (500, 41)
    """
    return max(1, round(500 * pixels / 224**2))


def insertion_deletion(
    model: nn.Module,
    x: NetworkInput,
    heatmap: Float[Tensor, "n ..."],
    label: int | Int[Tensor, " n"],
    protocol: Protocol = "published",
    step: int | None = None,
    *,
    baseline: Baseline | int | Tensor | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    resolution: tuple[int, ...] | None = None,
    batch_size: int = 32,
    seed: int = 42,
    progress: Callable[[int, int], None] | None = None,
    output: Output = None,
    activation: Activation | None = None,
) -> InsertionDeletion:
    """Insert pixels into an empty image, and delete them from the full one, in the order of a map.

    Of a signal it is samples, of a volume voxels, of a video frames' pixels, of a text tokens, and of a row of features
    these; pixel stands for all of them in the following.

    Source: Petsiuk et al. 2018; the published protocol is that of Otsuki et al. 2024.

    ``"published"``: point k (from 0) takes the map's value at sorted position ``min(step (k + 1), pixels - 1)`` as the
    threshold, and *every* pixel at or above it enters. Tied pixels enter together, so a map of few values jumps, and
    there is no point without pixels. The area is the trapezoid over evenly spaced points.

    ``"budget"``: exactly ``k step`` pixels at point k, from none to all, ties broken at random (``seed``; the same
    order for every image). The area is the trapezoid over the part of the pixels.

    A constant map lets everything enter at the first point of ``"published"``, and is a random order in ``"budget"``.

    Args:
        model: maps inputs to logits ``(N, K)`` or probabilities; it is not changed, and runs as in eval mode.
        x: images ``(N, C, H, W)``, normalised as the network expects, or other inputs as for :class:`headwater.LRP`, of
            which one has relevance.
        heatmap: one map per image ``(N, h, w)``; a map smaller than the image is enlarged linearly along each axis,
            pixel centres aligned as in ``torch.nn.functional.interpolate(..., align_corners=False)``.
        label: class whose probability is followed, one or ``(N,)``; the true one in the papers' protocol.
        protocol: see above.
        step: pixels between two points, at least 1 and fewer than the image has; ``None``: 500 as in the papers, of
            inputs with no more places a hundredth of them.
        baseline: replacement for missing pixels: ``"black"`` (0 before normalisation), ``"mean"`` (0 after
            it), ``"blur"`` (the image, blurred by a Gaussian of a tenth of its side), or a tensor shaped as the input;
            for token ids a token, such as the tokenizer's ``mask_token_id``. ``None``: black for images, and else the
            mean; token ids need one.
        mean: of each channel in the network's normalisation, for ``"black"``.
        std: likewise.
        resolution: rank the cells of a grid, of (rows, columns) for images, instead of pixels; ``step`` then counts
            cells.
        batch_size: images at a time in the network.
        seed: of the random order of ties.
        progress: called after each batch with the images done and the images in all; what it raises ends the work.
        output: which output is followed, as for :class:`headwater.LRP`.
        activation: what makes probabilities of the logits, likewise.

    Raises:
        InputError: shapes that don't fit, a map that is not finite, labels outside the classes, an unknown option, a
            step that is no whole number or covers the whole image.

    >>> import torch, headwater as hw
    >>> model = hw.load_model("tiny20")
    >>> x = torch.rand(2, 3, 64, 64)
    >>> result = insertion_deletion(model, x, torch.rand(2, 64, 64), label=3, protocol="budget", step=512)
    >>> result.id.shape, result.insertion_curve.shape
    (torch.Size([2]), torch.Size([2, 9]))
    """
    inputs = Inputs.of(x)
    network = Predictor(model, inputs, output, activation)
    if len(network.graph.sources) > 1:
        raise InputError("insertion and deletion need one input with relevance; this network has several")
    (source,) = network.graph.sources
    at = [given.name for given in network.graph.inputs].index(source.name)
    values = inputs.tensors[at]
    places = tuple(size for d, size in enumerate(values.shape) if d not in (0, source.channels))
    check_maps(heatmap, len(places) + 1)
    size = places if resolution is None else _grid(resolution, len(places))
    total = math.prod(size)
    step = (500 if total > 500 else max(1, total // 100)) if step is None else step
    _check(len(values), places, heatmap, protocol, step, batch_size, math.prod(size))
    check_whole(seed, "seed", -(2**63), 2**63 - 1)
    with torch.no_grad():
        rank, ordered = _rank(heatmap.to(values.device), size, protocol, seed)
        counts = _counts(ordered, protocol, step)
        missing = _missing(values, source, baseline, mean, std)
        labels = check_classes(label, "label", len(values), values.device).expand(len(values))
        curves = _curves(network, inputs, at, missing, rank, counts, labels, batch_size, progress)
    fraction = counts.to(torch.promote_types(inputs.floating.dtype, torch.float32)) / rank[0].numel()
    insertion, deletion = curves

    def area(curve: Tensor) -> Tensor:
        curve = curve.to(fraction.dtype)
        if protocol == "budget":
            return torch.trapezoid(curve, fraction)
        return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1))

    return InsertionDeletion(area(insertion), area(deletion), insertion, deletion, fraction, protocol)


def pixel_ranks(
    heatmap: Float[Tensor, "n ..."],
    protocol: Protocol = "published",
    seed: int = 42,
    resolution: tuple[int, ...] | None = None,
) -> Int[Tensor, "n ..."]:
    """Place of each pixel in the order in which :func:`insertion_deletion` takes them, from 0.

    At a point of a curve where the part ``f`` of the pixels has entered, those are the pixels whose rank is below
    ``f`` times their number.

    Args:
        heatmap: one map per image.
        protocol: as there.
        seed: as there.
        resolution: rows and columns of the images, if the maps are smaller.

    Raises:
        InputError: maps that are not finite or of another shape, or an unknown protocol.

    >>> import torch
    >>> pixel_ranks(torch.tensor([[[0.1, 0.4], [0.3, 0.2]]]))
    tensor([[[3, 0],
             [1, 2]]])
    """
    check_maps(heatmap, getattr(heatmap, "ndim", 0))
    _check_protocol(protocol)
    check_whole(seed, "seed", -(2**63), 2**63 - 1)
    return _rank(
        heatmap, tuple(heatmap.shape[1:]) if resolution is None else _grid(resolution, heatmap.ndim - 1), protocol, seed
    )[0]


_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""Linear interpolation by the number of axes."""


def _rank(heatmap: Tensor, size: tuple[int, ...], protocol: Protocol, seed: int) -> tuple[Tensor, Tensor]:
    """Place of each pixel in the order of falling relevance, ``(N, *size)``, and the values in that order."""
    if heatmap.shape[1:] != size:
        if len(size) not in _LINEAR:
            raise InputError(f"maps of {len(size)} axes must have the input's size {size}, got {tuple(heatmap.shape)}")
        heatmap = functional.interpolate(heatmap[:, None], size, mode=_LINEAR[len(size)], align_corners=False)[:, 0]
    flat = heatmap.flatten(1)
    shuffle = torch.arange(flat.shape[1])
    if protocol == "budget":
        shuffle = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    shuffle = shuffle.to(flat.device)
    ordered, order = flat[:, shuffle].sort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, shuffle[order], places)
    return rank.view(-1, *size), ordered


def _counts(ordered: Tensor, protocol: Protocol, step: int) -> Tensor:
    """How many pixels have entered at each point, ``(N, points)``."""
    count, pixels = ordered.shape
    points = math.ceil(pixels / step)
    if protocol == "budget":
        return (torch.arange(points + 1, device=ordered.device) * step).clamp(max=pixels).expand(count, -1)
    positions = (torch.arange(1, points + 1, device=ordered.device) * step).clamp(max=pixels - 1)
    thresholds = ordered[:, positions]
    # The values fall, so those at or above the threshold are counted by where it would be inserted behind its equals.
    return torch.searchsorted(-ordered, -thresholds.contiguous(), right=True)


def _missing(
    x: Tensor,
    source: GraphInput,
    baseline: Baseline | int | Tensor | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """What replaces missing pixels: an image for each, or one colour, such as ``(1, C, 1, 1)``, for all."""
    if source.ids:
        if isinstance(baseline, Tensor) and baseline.shape == x.shape:
            return baseline.to(x)
        if not isinstance(baseline, Integral) or isinstance(baseline, bool):
            raise InputError(
                f"the baseline of token ids is a token id, such as tokenizer.mask_token_id, got {baseline!r}"
            )
        return x.new_full([1] * x.ndim, int(baseline))
    if baseline is None:
        baseline = "black" if x.ndim == 4 else "mean"
    if isinstance(baseline, Tensor):
        if baseline.shape != x.shape:
            raise InputError(f"baseline is {tuple(baseline.shape)}, the images are {tuple(x.shape)}")
        return baseline.to(x)
    if baseline == "black":
        try:
            offset, scale = (torch.tensor(values, device=x.device, dtype=x.dtype) for values in (mean, std))
        except (TypeError, ValueError, RuntimeError):
            offset = scale = x.new_empty(0)
        channels = 1 if source.channels is None else x.shape[source.channels]
        if not offset.shape == scale.shape == (channels,) or not (offset / scale).isfinite().all():
            raise InputError(f"mean and std need a number for each of {channels} channels, got {mean!r} and {std!r}")
        black = -offset / scale
        return black.view([-1 if d == (source.channels or 0) else 1 for d in range(x.ndim)])
    if baseline == "mean":
        return x.new_zeros([size if d == source.channels else 1 for d, size in enumerate(x.shape)])
    if baseline == "blur" and source.channels is None:
        raise InputError("features have no neighbours to blur with; take baseline='mean', or a tensor")
    if baseline == "blur":
        return _blurred(x, tuple(d for d in range(1, x.ndim) if d != source.channels))
    raise InputError(f"baseline must be one of {', '.join(get_args(Baseline))} or images, got {baseline!r}")


def _blurred(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Gaussian blur along these axes, its deviation a tenth of the shorter side, the border repeated."""
    from scipy.ndimage import gaussian_filter

    sigma = min(x.shape[d] for d in axes) / 10
    values = x.to(torch.promote_types(x.dtype, torch.float32)).cpu().numpy()
    blurred = gaussian_filter(values, sigma, mode="nearest", radius=math.ceil(3 * sigma), axes=axes)
    return torch.from_numpy(blurred).to(x)


def _curves(
    network: Predictor,
    inputs: Inputs,
    at: int,
    missing: Tensor,
    rank: Tensor,
    counts: Tensor,
    labels: Tensor,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, Tensor]:
    """Probability of the label at each point of both curves, every different image evaluated once, in full batches.

    A job is an image with its first ``count`` pixels (insertion), or without them (deletion). A deletion of nothing
    is the insertion of everything, and the other way round.
    """
    x, channels = inputs.tensors[at], network.graph.inputs[at].channels
    pixels, places = rank[0].numel(), tuple(size for d, size in enumerate(x.shape) if d not in (0, channels))
    dtype = inputs.floating.dtype
    image = torch.arange(len(x), device=x.device)[:, None]
    # One number for each job: the image, whether it deletes, and how many pixels.
    inserted = image * 2 * (pixels + 1) + counts
    ends = (counts == 0) | (counts == pixels)
    deleted = torch.where(ends, inserted - counts + pixels - counts, inserted + pixels + 1)
    jobs, where = torch.stack([inserted, deleted]).unique(return_inverse=True)
    probabilities = torch.empty(len(jobs), device=x.device, dtype=dtype)
    # Channels last, as the mixed images are built: a row per pixel.
    ordered = [part[..., None] if channels is None else part.movedim(channels, -1) for part in (x, missing)]
    full, empty = (part.flatten(1, -2).contiguous() for part in ordered)
    for start in range(0, len(jobs), batch_size):
        job = jobs[start : start + batch_size, None]
        which, deletes, count = (job // (2 * (pixels + 1)))[:, 0], job // (pixels + 1) % 2 == 1, job % (pixels + 1)
        kept = (rank.flatten(1)[which] < count) != deletes
        if rank.shape[1:] != places:
            cells = kept.view(-1, 1, *rank.shape[1:])
            kept = functional.interpolate(cells.to(dtype), places).bool().flatten(1)
        mixed = torch.where(kept[..., None], full[which], empty if len(empty) == 1 else empty[which])
        mixed = mixed.view(-1, *places, mixed.shape[-1])
        mixed = mixed[..., 0] if channels is None else mixed.movedim(-1, channels)
        tensors = [mixed if k == at else tensor[which] for k, tensor in enumerate(inputs.tensors)]
        chances = network.probabilities(Inputs(tuple(tensors), inputs.keys, inputs.alone))
        if start == 0:
            _check_labels(labels, chances)
        chosen = chances.gather(1, labels[which][:, None])[:, 0]
        probabilities[start : start + batch_size] = chosen.to(dtype)
        if progress is not None:
            progress(min(start + batch_size, len(jobs)), len(jobs))
    insertion, deletion = probabilities[where]
    return insertion, deletion


def _grid(resolution: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """Cells along each axis."""
    names = ("rows", "columns") if axes == 2 else tuple(f"axis {k + 1}" for k in range(axes))
    if not isinstance(resolution, Sequence) or len(resolution) != axes:
        raise InputError(f"resolution must be ({', '.join(names)}), got {resolution!r}")
    for what, value in zip(names, resolution, strict=True):
        check_whole(value, f"{what} of resolution", 1, 100_000)
    return tuple(int(value) for value in resolution)


def _check(
    count: int, places: tuple[int, ...], heatmap: Tensor, protocol: str, step: int, batch_size: int, pixels: int
) -> None:
    _check_protocol(protocol)
    for name, value in (("step", step), ("batch_size", batch_size)):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
    if step >= pixels:
        raise InputError(f"a step of {step} leaves no curve on images of {pixels} pixels (or cells); take fewer")
    if count != len(heatmap):
        raise InputError(f"there must be one map per image, got {len(heatmap)} maps for {count} images")
    if any(size > place for size, place in zip(heatmap.shape[1:], places, strict=True)):
        raise InputError(f"maps of {tuple(heatmap.shape[1:])} are larger than the images {places}; reduce them first")


def _check_protocol(protocol: str) -> None:
    if protocol not in get_args(Protocol):
        raise InputError(f"protocol must be one of {', '.join(get_args(Protocol))}, got {protocol!r}")


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    if logits.ndim != 2:
        raise InputError(f"the network returns {tuple(logits.shape)}; logits (N, K) are needed")
    if ((labels < 0) | (labels >= logits.shape[1])).any():
        raise InputError(
            f"labels {labels.tolist()} are out of range; the network has classes 0 to {logits.shape[1] - 1}"
        )
