"""Randomisation test: does a map depend on what the network has learned?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor, nn

from headwater.engine.explanation import Explanation
from headwater.errors import InputError


@dataclass(frozen=True)
class Randomisation:
    """Rank correlation of the maps with those of the trained network, as more layers become random.

    Attributes:
        layers: the last module that was randomised at each comparison, from the output down; those above it are random
            too.
        counts: how many layers were random then.
        correlation: Spearman's, of absolute values, ``(N, layers)``, in [-1, 1].
    """

    layers: tuple[str, ...]
    counts: tuple[int, ...]
    correlation: Float[Tensor, "n layers"]


def randomisation(
    model: nn.Module,
    make_method: Callable[[nn.Module], Callable[..., Explanation]],
    x: Float[Tensor, "n c h w"],
    target: int | Int[Tensor, " n"],
    *,
    comparisons: int = 6,
    seed: int = 0,
) -> Randomisation:
    """Randomise the layers of a copy of ``model`` from the output down and compare the maps.

    Source: Adebayo et al. 2018 (cascading randomisation). A map that stays the same has explained the image or the
    architecture, not what the network learned.

    Args:
        model: the trained network; it is copied, not changed.
        make_method: makes a method for a network, for example ``lambda m: headwater.load_method("gradcam", m)``.
        x: images ``(N, C, H, W)``.
        target: class to explain, one or ``(N,)``; it stays the same while the network changes.
        comparisons: how often the maps are compared: after evenly many further layers, and after the last.
        seed: of the random weights.

    Raises:
        InputError: the network has no layers with parameters, or ``comparisons`` is below 1.

    >>> import torch, headwater as hw
    >>> model = hw.load_model("tiny20")
    >>> x = torch.rand(1, 3, 64, 64)
    >>> result = randomisation(model, lambda m: hw.load_method("otsuki2024", m), x, target=3, comparisons=2)
    >>> result.layers[-1], result.correlation.shape
    ('conv1', torch.Size([1, 2]))
    """
    if comparisons < 1:
        raise InputError(f"comparisons must be at least 1, got {comparisons}")
    network = copy.deepcopy(model).eval()
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if any(True for _ in module.parameters(recurse=False)) and hasattr(module, "reset_parameters")
    ]
    if not layers:
        raise InputError(f"{type(model).__name__} has no layers whose parameters can be made random")
    before = make_method(network)(x, target).heatmap
    counts = sorted({math.ceil(len(layers) * k / comparisons) for k in range(1, comparisons + 1)})
    names, correlations = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for count, (name, module) in enumerate(reversed(layers), 1):
            module.reset_parameters()
            if count in counts:
                names.append(name)
                after = make_method(network)(x, target).heatmap
                correlations.append(rank_correlation(before.abs().flatten(1), after.abs().flatten(1)))
    return Randomisation(tuple(names), tuple(counts), torch.stack(correlations, 1))


def rank_correlation(first: Float[Tensor, "n pixels"], second: Float[Tensor, "n pixels"]) -> Float[Tensor, " n"]:
    """Spearman's rank correlation of each row, in [-1, 1]; equal values share their mean rank; 0 for a constant row."""
    pairs = zip(first.double().cpu().numpy(), second.double().cpu().numpy(), strict=True)
    values = [spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64, device=first.device)
