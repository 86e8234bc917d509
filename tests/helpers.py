"""Small networks with closed forms, layers to test, a full disk, and where the data lie."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from headwater.engine.layer_table import layer_for
from headwater.engine.linear_layers import Linear
from headwater.engine.registrations import register_rule, registered_rules, unregister_rule
from headwater.engine.trace import trace

SHARED = Path(__file__).resolve().parents[2] / "shared"
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


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


def linear_layer(module: nn.Module, x: torch.Tensor) -> Linear:
    """The layer that stands for a module of one operation, bound to the module's weights."""
    *_, operation = (found for found in trace(module, x).operations if found.kind != "movedim")

    def lookup(leaf):
        return dict(module.named_parameters()).get(leaf.name) if hasattr(leaf, "name") else leaf

    layer = layer_for(operation, lookup)
    assert isinstance(layer, Linear)
    return layer


@contextmanager
def no_registrations() -> Iterator[None]:
    """No rule is registered inside, and what was registered before is again afterwards."""
    before = dict(registered_rules())
    try:
        for name in before:
            unregister_rule(name)
        yield
    finally:
        for name in list(registered_rules()):
            unregister_rule(name)
        for name, rule in before.items():
            register_rule(name, rule)


def fill_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on files can be created, but nothing can be written to them."""

    class Full(io.FileIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def opening(path: Path, mode: str = "r", **options: object) -> object:
        return Full(path, mode) if mode == "xb" else opened(path, mode, **options)

    opened = Path.open
    monkeypatch.setattr(Path, "open", opening)
