"""The bundled network: a small bottleneck ResNet for 64x64 images of twenty everyday classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

CLASSES: tuple[str, ...] = (
    "goldfish",
    "koala",
    "jellyfish",
    "king penguin",
    "golden retriever",
    "tabby",
    "lion",
    "brown bear",
    "ladybug",
    "monarch",
    "African elephant",
    "beacon",
    "school bus",
    "sports car",
    "teapot",
    "umbrella",
    "mushroom",
    "lemon",
    "pizza",
    "espresso",
)
"""Class names in the order of the network's logits."""

WNIDS: tuple[str, ...] = (
    "n01443537",
    "n01882714",
    "n01910747",
    "n02056570",
    "n02099601",
    "n02123045",
    "n02129165",
    "n02132136",
    "n02165456",
    "n02279972",
    "n02504458",
    "n02814860",
    "n04146614",
    "n04285008",
    "n04398044",
    "n04507155",
    "n07734744",
    "n07749582",
    "n07873807",
    "n07920052",
)
"""WordNet numbers of the classes, in the same order."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SIZE = 64
RESIZE = 76
"""Short side of a photograph before its centre is cut out: training crops show 0.84 of an image's side on average."""


class Tiny20(nn.Module):
    """Bottleneck ResNet with a 3x3 stem of stride 2 and four stages of identity and projected blocks.

    Args:
        widths: bottleneck width of each stage; a stage puts out four times as many channels.
        depths: blocks per stage; the first of each has a projected shortcut.
        num_classes: number of logits.

    Shape: images ``(N, 3, H, W)``, trained at 64x64, any size works; logits ``(N, num_classes)``.

    >>> import torch
    >>> Tiny20()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 20])
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 64, 128, 256),
        depths: Sequence[int] = (1, 2, 3, 2),
        num_classes: int = len(CLASSES),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu = nn.ReLU(inplace=True)
        channels, stages = 32, []
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [_block(channels, width, stride=1 if index == 0 else 2)]
            channels = width * Bottleneck.expansion
            blocks += [Bottleneck(channels, width) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def _block(channels: int, width: int, stride: int) -> Bottleneck:
    """A block whose shortcut is projected, after averaging: a strided 1x1 would not see three in four pixels."""
    out = width * Bottleneck.expansion
    pooling = [nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)] if stride > 1 else []
    projection = nn.Sequential(*pooling, nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))
    return Bottleneck(channels, width, stride, projection)
