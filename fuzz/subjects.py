"""Small networks, images and comparisons that the areas share."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import headwater as hw
from fuzz.case import Draw, must

CLASSES = ("tabby", "lion", "brown bear", "ladybug")
SIDE = 16


class Residual(nn.Module):
    """Two residual blocks on a few channels, one of them projected; in-place activations."""

    def __init__(self, channels: int = 4, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, 2, 1)
        self.project = nn.Conv2d(channels, 2 * channels, 1, 2)
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.relu(self.conv1(x) + self.project(x))
        x = self.relu(self.conv2(x) + x)
        return self.head(x.mean((2, 3)))


def residual(seed: int = 0) -> nn.Module:
    """A small classifier with a card, the same for the same seed; torch's global generator keeps its state."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = Residual().eval()
    model.card = hw.ModelCard("small", "random", hw.Preprocessing(SIDE, SIDE), CLASSES)  # type: ignore[assignment]
    return model


@lru_cache(maxsize=1)
def kept_residual() -> nn.Module:
    return residual()


def photo(seed: int, size: tuple[int, int] = (20, 18)) -> bytes:
    """A PNG of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "png")
    return stream.getvalue()


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))


def compare(draw: Draw, got: hw.Explanation, fresh: hw.Explanation, what: str) -> None:
    """The map, the logits and the target must be those of the fresh explanation, bit for bit."""
    draw.maps += len(got.heatmap)
    must(same(got.logits, fresh.logits), f"{what}: logits differ from a fresh explanation's")
    must(same(got.target, fresh.target), f"{what}: target differs from a fresh explanation's")
    if not same(got.heatmap, fresh.heatmap):
        off = (got.heatmap - fresh.heatmap).abs().max() / fresh.heatmap.abs().max().clamp(min=1e-30)
        must(False, f"{what}: the map is off by {off:.2e} of a fresh one's maximum")


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
    return path
