"""Attention branch network: a ResNet whose features are weighted by an attention map that it learns."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

from headwater.errors import InputError

STAGES = ("layer1", "layer2", "layer3", "layer4")
Variant = Literal["fukui", "published"]
FUKUI: Variant = "fukui"


@dataclass(frozen=True)
class Attended:
    """The outputs of an attention branch network.

    Attributes:
        logits: of the perception branch, the network's prediction, ``(N, K)``.
        branch_logits: of the attention branch, ``(N, K)``.
        attention: the attention map, ``(N, h, w)``, in (0, 1).
    """

    logits: Tensor
    branch_logits: Tensor
    attention: Tensor


class AttentionBranchNetwork(nn.Module):
    r"""A torchvision ResNet with an attention branch.

    Source: Fukui et al. 2019. After one of the stages the features g go two ways. The attention branch (a copy of the
    next stage that keeps the resolution, batch norm, and 1x1 convolutions) makes a prediction of its own, and an
    attention map M from the same class responses; the perception branch is the rest of the ResNet on

    .. math:: g' = (1 + M) \odot g

    With the variant ``"published"``, as the code of Otsuki et al. has it (``models/attention_branch.py``), the branch
    is two new bottlenecks, batch norm and 1x1 convolutions to 10 hidden channels, from which the answer and the map
    are made, and the perception branch takes :math:`g' = M \odot g` (line 256). That code is made for ResNet-18
    alone, and cuts *before* the stage that ``--div`` names: its default ``layer2`` is ``after="layer1"`` here
    (``models/__init__.py``, line 126; ``models/attention_branch.py``, line 272).

    The training loss is the sum of both branches' cross-entropies, so that M is high where the classes are.

    Relevance passes the product as it passes every gate: all of it to the features with the composites' ``gates =
    "features"``, none to the attention branch.

    Args:
        backbone: the ResNet; it becomes part of this network. The branch begins with the weights of its next stage.
        after: the stage that the attention branch follows, ``"layer1"`` to ``"layer3"``.
        variant: ``"fukui"``, or ``"published"``, whose branch begins with random weights.

    Raises:
        InputError: the backbone is not a torchvision ResNet, ``after`` is not one of these stages, or there is no such
            variant.

    Shape: images ``(N, 3, H, W)``; logits ``(N, K)``.

    >>> import torch, torchvision
    >>> network = AttentionBranchNetwork(torchvision.models.resnet18(num_classes=5)).eval()
    >>> network(torch.zeros(2, 3, 64, 64)).shape, network.attend(torch.zeros(2, 3, 64, 64)).attention.shape
    (torch.Size([2, 5]), torch.Size([2, 4, 4]))
    """

    def __init__(self, backbone: ResNet, after: str = "layer3", variant: Variant = FUKUI) -> None:
        super().__init__()
        if not isinstance(backbone, ResNet):
            raise InputError(f"an attention branch needs a torchvision ResNet, got {type(backbone).__name__}")
        if after not in STAGES[:-1]:
            raise InputError(f"the attention branch follows one of {', '.join(STAGES[:-1])}, got {after!r}")
        if variant not in get_args(Variant):
            raise InputError(f"variant must be one of {', '.join(get_args(Variant))}, got {variant!r}")
        self.after, self.variant, classes = after, variant, backbone.fc.out_features
        split = STAGES.index(after) + 1
        self.backbone = backbone
        self._before, self._behind = STAGES[:split], STAGES[split:]
        if variant == "published":
            stage, hidden = _two_bottlenecks(_channels(getattr(backbone, after))), 10
        else:
            stage, hidden = _at_full_resolution(getattr(backbone, self._behind[0])), classes
        channels = _channels(stage)
        self.branch = nn.Sequential(
            stage, nn.BatchNorm2d(channels), nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU()
        )
        self.branch_answer = nn.Conv2d(hidden, classes, 1, bias=False)
        between = (nn.Conv2d(hidden, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU())
        self.branch_attention = nn.Sequential(
            *(between if variant == "published" else ()),
            nn.Conv2d(hidden, 1, 1, bias=False),
            nn.BatchNorm2d(1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The perception branch's logits."""
        features = self._features(x)
        return self._perceive(features, self.branch_attention(self.branch(features)))

    def attend(self, x: Tensor) -> Attended:
        """Both branches' logits and the attention map."""
        features = self._features(x)
        responses = self.branch(features)
        attention = self.branch_attention(responses)
        answer = self.branch_answer(responses).mean((2, 3))
        return Attended(self._perceive(features, attention), answer, attention[:, 0])

    def _features(self, x: Tensor) -> Tensor:
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for stage in self._before:
            x = getattr(net, stage)(x)
        return x

    def _perceive(self, features: Tensor, attention: Tensor) -> Tensor:
        x = features * (attention if self.variant == "published" else attention + 1)
        for stage in self._behind:
            x = getattr(self.backbone, stage)(x)
        return self.backbone.fc(torch.flatten(self.backbone.avgpool(x), 1))


def _channels(stage: nn.Module) -> int:
    """Number of channels that a stage puts out."""
    return [m for m in list(stage.children())[-1].modules() if isinstance(m, nn.Conv2d)][-1].out_channels


def _at_full_resolution(stage: nn.Sequential) -> nn.Sequential:
    """A copy of a stage that keeps the resolution."""
    stage = copy.deepcopy(stage)
    for module in stage[0].modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    return stage


def _two_bottlenecks(channels: int) -> nn.Sequential:
    """Two bottlenecks as wide as what they take; they put out four times as many channels."""
    wide = channels * Bottleneck.expansion
    projection = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide))
    return nn.Sequential(Bottleneck(channels, channels, downsample=projection), Bottleneck(wide, channels))
