"""Attention branch networks: what they are, how relevance passes them, and their map as a method."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from helpers import settle
from torch.nn import functional

import headwater as hw
from headwater.composites import Gates, Type
from headwater.errors import InputError
from headwater.methods.abn import has_attention
from headwater.models.abn import AttentionBranchNetwork
from headwater.models.tiny20 import Tiny20


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return settle(AttentionBranchNetwork(torchvision.models.resnet18(num_classes=5)))


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))


def test_the_attention_weights_the_features_of_the_backbone(network, x):
    net = network.backbone
    features = net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))))
    said = network.attend(x)
    weighted = features * (1 + said.attention[:, None])
    expected = net.fc(net.avgpool(net.layer4(weighted)).flatten(1))
    torch.testing.assert_close(said.logits, expected)
    torch.testing.assert_close(network(x), expected)
    assert said.attention.shape == features.shape[:1] + features.shape[2:]
    assert ((said.attention > 0) & (said.attention < 1)).all()
    responses = network.branch(features)
    torch.testing.assert_close(said.branch_logits, network.branch_answer(responses).mean((2, 3)))


@pytest.mark.parametrize("after", ["layer1", "layer2", "layer3"])
def test_it_follows_any_stage_of_any_resnet(after):
    network = AttentionBranchNetwork(torchvision.models.resnet50(num_classes=4), after).eval()
    with torch.no_grad():
        said = network.attend(torch.zeros(1, 3, 64, 64))
    side = {"layer1": 16, "layer2": 8, "layer3": 4}[after]
    assert said.attention.shape == (1, side, side)
    assert said.logits.shape == said.branch_logits.shape == (1, 4)


def test_the_branch_begins_with_the_next_stages_weights():
    backbone = torchvision.models.resnet18(num_classes=4)
    network = AttentionBranchNetwork(backbone)
    assert torch.equal(network.branch[0][0].conv1.weight, backbone.layer4[0].conv1.weight)
    assert network.branch[0][0].conv1.weight is not backbone.layer4[0].conv1.weight
    assert backbone.layer4[0].conv1.stride == (2, 2), "the backbone keeps its own"


def test_relevance_goes_to_the_features_and_none_to_the_attention(network, x):
    e = hw.LRP(network)(x, checkpoints="cuts")
    assert e.conservation.error.max() < 1e-5
    assert all(error.max() < 1e-5 for error in e.conservation.checkpoint_errors.values())
    # With the attention held constant the map is the same: nothing went through the branch that makes it. In double
    # precision (u = 1.1e-16) twenty layers of sums of at most 4608 terms of one sign differ by less than 1.1e-11.
    network, x = copy.deepcopy(network).double(), x.double()
    e = hw.LRP(network)(x)
    attention = network.attend(x).attention.detach()[:, None]

    class Held(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.whole = network

        def forward(self, x):
            net = self.whole.backbone
            features = net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))))
            return net.fc(net.avgpool(net.layer4(features * (attention + 1))).flatten(1))

    held = hw.LRP(Held())(x)
    assert (e.heatmap - held.heatmap).abs().max() <= 1.1e-11 * e.heatmap.abs().max()


def test_half_of_it_goes_to_the_attention_where_the_composite_says_so(network, x):
    composite = hw.load_composite("otsuki2024").prepend((Type("product"), Gates("half")))
    e, features = hw.LRP(network, composite)(x), hw.LRP(network)(x)
    assert e.conservation.error.max() < 1e-5
    assert not torch.allclose(e.heatmap, features.heatmap)


def test_its_map_is_a_method(network, x):
    e = hw.load_method("abn", network)(x, target=3)
    attention = network.attend(x).attention
    expected = functional.interpolate(attention[:, None], (64, 48), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(e.heatmap, expected)
    torch.testing.assert_close(e.probability, network(x).softmax(1)[:, 3])
    assert e.target.tolist() == [3, 3] and e.conservation is None
    assert has_attention(network) and not has_attention(network.backbone)
    for name in ("gradcam", "c3-lrp"):
        assert hw.load_method(name, network)(x).heatmap.shape == (2, 64, 48)


def test_the_network_is_as_it_was(network, x):
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    hw.load_method("abn", network)(x)
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    network.eval()


def test_errors():
    with pytest.raises(InputError, match="ResNet has no such branch; train one with headwater train cub-abn"):
        hw.load_method("abn", torchvision.models.resnet18(num_classes=3))
    with pytest.raises(InputError, match="needs a torchvision ResNet, got Tiny20"):
        AttentionBranchNetwork(Tiny20())
    with pytest.raises(InputError, match="follows one of layer1, layer2, layer3, got 'layer4'"):
        AttentionBranchNetwork(torchvision.models.resnet18(), "layer4")
