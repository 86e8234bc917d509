"""The baselines as published: equal to what the authors' code calls, on the network as it is written."""

from __future__ import annotations

import pytest
import torch
import torchvision
from helpers import settle
from torch import nn
from torch.nn import functional

import headwater as hw
from headwater.errors import InputError
from headwater.experiments.networks import networks_for
from headwater.methods import is_baseline
from headwater.methods.published import PUBLISHED, ScoreCAMPublished
from headwater.methods.rise import Rise, RisePublished
from headwater.models.abn import AttentionBranchNetwork
from headwater.models.registry import build_classifier


@pytest.fixture(autouse=True)
def libraries():
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return settle(torchvision.models.resnet18(num_classes=5)).double()


@pytest.fixture(scope="module")
def x():
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("lrp-epsilon-published", "LRP"),
        ("guided-backprop-published", "GuidedBackprop"),
        ("integrated-gradients-published", "IntegratedGradients"),
    ],
)
def test_they_are_the_red_channel_of_captum_on_torchvisions_own_network(resnet, x, name, algorithm):
    """As ``visualize.py`` calls it; a reused ReLU in place, ``+=`` and all."""
    import captum.attr

    expected = getattr(captum.attr, algorithm)(resnet).attribute(x.clone(), target=2).detach()[:, 0]
    e = hw.load_method(name, resnet)(x, 2)
    assert (e.heatmap - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert torch.equal(e.heatmap, e.relevance[:, 0])


@pytest.mark.parametrize("name", ["guided-backprop", "deeplift"])
def test_ours_sum_the_channels_of_the_same_attribution(tiny, images, name):
    ours, published = (hw.load_method(n, tiny)(images, 1) for n in (name, f"{name}-published"))
    torch.testing.assert_close(ours.relevance, published.relevance)
    torch.testing.assert_close(ours.heatmap, published.relevance.sum(1))


def test_additions_have_a_rule_in_ours_and_none_in_the_published_lrp(tiny, images):
    for name in ("lrp-epsilon", "lrp-mixture"):
        ours, published = (hw.load_method(n, tiny.double())(images.double(), 1) for n in (name, f"{name}-published"))
        assert not torch.allclose(ours.relevance, published.relevance)
        assert published.heatmap.isfinite().all()


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.features(x).relu().mean((2, 3)))


def test_score_cam_is_its_loop_over_channels():
    torch.manual_seed(0)
    model, x = Features().eval(), torch.rand(2, 3, 17, 21)
    with torch.no_grad():
        model.features.weight[0], model.features.bias[0] = 0, 1.0  # a constant channel, which is left out
        expected = []
        for image in x:
            total = torch.zeros(17, 21)
            for channel in model.features(image[None]).relu()[0]:
                large = functional.interpolate(channel[None, None], (17, 21), mode="bilinear")[0, 0]
                if large.max() > large.min():
                    shown = (large - large.min()) / (large.max() - large.min())
                    total += model(image[None] * shown).softmax(1)[0, 1] * large
            total = total.relu()
            expected.append((total - total.min()) / (total.max() - total.min()))
    heatmap = ScoreCAMPublished(model, batch_size=4)(x, 1).heatmap
    torch.testing.assert_close(heatmap, torch.stack(expected))
    assert not torch.allclose(heatmap, hw.load_method("scorecam", model)(x, 1).heatmap)


def test_published_rise_shows_what_a_normal_number_below_p_shows(tiny, images):
    rise = RisePublished(tiny, masks=4000, cells=5, keep=0.3, batch_size=500)
    masks = torch.cat(list(rise.draw((20, 30), torch.zeros(1))))
    shown = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.3)).item()  # 0.618
    assert masks.shape == (4000, 20, 30) and masks.min() >= 0
    assert masks.max() <= 1 + 2**-22, "four weights of a bilinear enlargement, rounded"
    assert (masks.mean(0) - shown).abs().max() < 5 * 0.5 / 4000**0.5
    small = RisePublished(tiny, masks=30, cells=3)
    e = small(images)
    assert torch.equal(e.heatmap, small(images).heatmap)
    assert torch.equal(e.heatmap.amin((1, 2)), torch.zeros(3)) and torch.equal(e.heatmap.amax((1, 2)), torch.ones(3))
    assert not torch.allclose(e.heatmap, Rise(tiny, masks=30, cells=3)(images).heatmap)


def test_the_published_mixture_counts_biases_and_loses_what_they_take(tiny, images):
    published = hw.load_composite("otsuki2024-mixture-published")
    assert "Epsilon(eps=1e-05, bias=True, fallback=False" in str(published)
    e = hw.LRP(tiny, published)(images)
    assert e.heatmap.isfinite().all() and (e.conservation.error > 1e-6).all()


def test_every_published_baseline_is_listed_described_and_a_baseline():
    for name in PUBLISHED:
        assert name in hw.list_methods() and is_baseline(name) and is_baseline(f"{name}+hq-equation")


# -- heat quantization by name ----------------------------------------------------------------------------------------


def test_the_ending_hq_equation_is_the_printed_formula(tiny, images):
    plain = hw.load_method("otsuki2024", tiny)(images).heatmap
    quantized = hw.load_method("otsuki2024+hq-equation", tiny)(images).heatmap
    assert torch.equal(quantized, hw.heat_quantization(plain, 8, "equation"))
    assert not torch.equal(quantized, hw.load_method("otsuki2024+hq", tiny)(images).heatmap)
    with pytest.raises(InputError, match="no method is called"):
        hw.load_method("otsuki2024+hq-other", tiny)


# -- the attention branch of the published code -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def branch():
    torch.manual_seed(0)
    return settle(AttentionBranchNetwork(torchvision.models.resnet18(num_classes=5), "layer1", "published"))


def test_the_published_branch_multiplies_the_features_by_the_map(branch):
    x = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    net = branch.backbone
    features = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
    said = branch.attend(x)
    assert said.attention.shape == (2, 16, 12) and said.branch_logits.shape == (2, 5)
    weighted = net.layer4(net.layer3(net.layer2(features * said.attention[:, None])))
    torch.testing.assert_close(said.logits, net.fc(net.avgpool(weighted).flatten(1)))
    # Two bottlenecks of 64 to 256 channels, ten hidden channels: as in models/attention_branch.py.
    first, second = branch.branch[0]
    assert (first.conv1.in_channels, first.conv2.out_channels, second.conv3.out_channels) == (64, 64, 256)
    assert branch.branch[2].out_channels == 10 and branch.branch_answer.in_channels == 10
    e = hw.LRP(branch)(x, checkpoints="cuts")
    assert e.conservation.error.max() < 1e-5


def test_each_kind_of_branch_is_a_method_by_name(branch):
    plain = torchvision.models.resnet18(num_classes=5)
    fukui = AttentionBranchNetwork(torchvision.models.resnet18(num_classes=5)).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(hw.load_method("abn-published", branch)(x).heatmap, hw.load_method("abn", branch)(x).heatmap)
    with pytest.raises(
        InputError, match=r"'published', and this network's is 'fukui'; train one with .*cub-abn-published"
    ):
        hw.load_method("abn-published", fukui)
    with pytest.raises(InputError, match="variant must be one of fukui, published, got 'other'"):
        AttentionBranchNetwork(plain, variant="other")
    models = [plain, fukui, branch]
    assert networks_for("abn", models) == (fukui,) and networks_for("abn-published", models) == (branch,)
    assert networks_for("rise", models) == (plain,)


def test_a_published_branch_can_be_built_from_a_runs_card(branch):
    again = build_classifier("resnet18", 5, "layer1", "published")
    again.load_state_dict(branch.state_dict())
    with pytest.raises(RuntimeError):
        build_classifier("resnet18", 5, "layer1").load_state_dict(branch.state_dict())
