"""Small networks with closed forms, and the data beside the project."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

SHARED = Path(__file__).resolve().parents[2] / "shared"
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def pytest_configure() -> None:
    """``HEADWATER_ONEDNN=0``: torch's own kernels, which round otherwise, as on processors that oneDNN is not for."""
    if os.environ.get("HEADWATER_ONEDNN") == "0":
        torch.backends.mkldnn.set_flags(False)
    settings.register_profile("gate", deadline=None, derandomize=True)  # the same on busy machines and in every run
    settings.load_profile("gate")


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (data beside the project), which a user's clone does not have")
    return SHARED


@pytest.fixture(scope="session")
def parity(shared: Path) -> Any:
    """The module that rebuilds the parity networks, with the reference arrays as ``reference``."""
    sys.path.insert(0, str(shared / "parity"))
    import parity_models

    parity_models.reference = np.load(shared / "parity" / "parity.npz")
    return parity_models


class TinyResidual(nn.Module):
    """Two blocks on a few channels: one projected, one identity shortcut, in-place activations, dropout."""

    def __init__(self, channels: int = 6, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.block1 = TinyBlock(channels, 2 * channels, 2)
        self.block2 = TinyBlock(2 * channels, 2 * channels, 1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.block2(self.block1(x))
        return self.head(self.dropout(x.mean((2, 3))))


class TinyBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(before, after, 1, stride) if stride != 1 or before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return self.relu(out)


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights with realistic normalisation statistics, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


@pytest.fixture
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return settle(TinyResidual())


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(3, 3, 16, 12, generator=torch.Generator().manual_seed(1))
