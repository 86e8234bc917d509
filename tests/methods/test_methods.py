"""The baselines: one interface, the libraries' own numbers, and a model that stays as it was."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torchvision
from helpers import settle
from torch import nn

import headwater as hw
from headwater.engine.trace import trace
from headwater.errors import InputError, MissingDependencyError, TraceError
from headwater.methods.baselines import BASELINES
from headwater.methods.rebuilt import Rebuilt


@pytest.fixture(autouse=True)
def libraries():
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")


class Plain(nn.Module):
    """No reused module, nothing in place: what the libraries are written for."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU())
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.pool(self.features(x)).flatten(1))


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return Plain().eval()


@pytest.mark.parametrize("name", BASELINES)
def test_every_method_has_one_interface(tiny, images, name):
    method = hw.load_method(name, tiny)
    e = method(images)
    assert e.heatmap.shape == (3, 16, 12)
    assert e.heatmap.isfinite().all()
    torch.testing.assert_close(e.logits, tiny(images))
    assert torch.equal(e.target, e.logits.argmax(1))
    torch.testing.assert_close(e.probability, e.logits.softmax(1).amax(1))
    chosen = method(images, torch.tensor([0, 1, 2]))
    assert chosen.target.tolist() == [0, 1, 2]
    assert method(images, 3).target.tolist() == [3, 3, 3]
    if e.relevance is not None:
        torch.testing.assert_close(e.relevance.sum(1), e.heatmap)


@pytest.mark.parametrize("name", BASELINES)
def test_images_stay_apart_and_the_same_call_gives_the_same_map(tiny, images, name):
    if name != "scorecam":
        tiny, images = tiny.double(), images.double()
    method = hw.load_method(name, tiny)
    together = method(images).heatmap
    assert torch.equal(together, hw.load_method(name, tiny)(images).heatmap)
    largest = together.abs().amax((1, 2), keepdim=True)
    alone = torch.cat([method(one[None]).heatmap for one in images])
    # Kernels may add in another order for another batch: u = 1.1e-16, sums of at most 108 terms, ten layers, and rules
    # that divide by sums as small as 1e-6 of their terms. The CAM library always computes in single precision, where
    # u = 6e-8, and divides by nothing near zero: 10 * 108 * u = 6.5e-5.
    limit = 1e-4 if name == "scorecam" else 1e-6
    assert ((together - alone).abs() <= limit * largest).all()


@pytest.mark.parametrize("name", ["gradcam", "scorecam"])
def test_a_cam_of_features_whose_channels_come_last(name):
    class Classifier(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last, self.features, self.head = last, nn.Conv2d(3, 6, 3, 2), nn.Linear(6, 4)

        def forward(self, x):
            h = self.features(x)
            return self.head(h.permute(0, 2, 3, 1).relu().mean((1, 2)) if self.last else h.relu().mean((2, 3)))

    torch.manual_seed(0)
    x = torch.rand(2, 3, 17, 21)
    first, last = Classifier(False).eval(), Classifier(True).eval()
    last.load_state_dict(first.state_dict())
    expected = hw.load_method(name, first)(x, 1).heatmap
    assert expected.std() > 0
    torch.testing.assert_close(hw.load_method(name, last)(x, 1).heatmap, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_score_cam_needs_no_more_memory_for_more_images():
    program = """
import re, torch, headwater as hw
from pathlib import Path
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 256, 8, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(256, 2)
)
method = hw.load_method("scorecam", model)
for count in (1, 12):
    method(torch.rand(count, 3, 128, 128))
    print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    one, twelve = (int(line) * 1024 for line in done.stdout.split())
    assert twelve - one < 100e6  # the images of all channels of eleven more are 550e6


def hooks(module):
    """How many hooks of each kind a module has."""
    return {name: len(found) for name, found in vars(module).items() if name.endswith("_hooks")}


@pytest.mark.parametrize("name", BASELINES)
def test_the_model_is_untouched(tiny, images, name):
    tiny.train()
    tiny.block1.eval()
    tiny.stem.weight.requires_grad_(False)
    tiny.head.weight.grad = torch.ones_like(tiny.head.weight)
    modes = {path: module.training for path, module in tiny.named_modules()}
    before = {path: hooks(module) for path, module in tiny.named_modules()}
    state = {key: tensor.clone() for key, tensor in tiny.state_dict().items()}
    expected = hw.LRP(tiny)(images).logits
    e = hw.load_method(name, tiny)(images)
    torch.testing.assert_close(e.logits, expected)
    with pytest.raises(InputError):
        hw.load_method(name, tiny)(images, 17)
    assert {path: module.training for path, module in tiny.named_modules()} == modes
    assert all(torch.equal(tensor, state[key]) for key, tensor in tiny.state_dict().items())
    assert not tiny.stem.weight.requires_grad
    assert torch.equal(tiny.head.weight.grad, torch.ones_like(tiny.head.weight))
    assert tiny.block1.conv1.weight.grad is None
    assert {path: hooks(module) for path, module in tiny.named_modules()} == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("name", "algorithm", "options"),
    [
        ("gradient-x-input", "InputXGradient", {}),
        ("integrated-gradients", "IntegratedGradients", {"n_steps": 50}),
        ("guided-backprop", "GuidedBackprop", {}),
        ("deeplift", "DeepLift", {}),
        ("lrp-epsilon", "LRP", {}),
    ],
)
def test_numbers_are_captums_own(plain, images, name, algorithm, options):
    import captum.attr

    # In double precision, since some of these divide by sums near zero: see the limit of the test of batches above.
    plain, images = plain.double(), images.double()
    expected = getattr(captum.attr, algorithm)(plain).attribute(images.clone().requires_grad_(), target=2, **options)
    relevance = hw.load_method(name, plain)(images, 2).relevance
    assert (relevance - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_gradcam_is_its_formula(plain, images):
    features = plain.features(images)
    logits = plain.head(plain.pool(features).flatten(1))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), features)
    cam = (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu().detach()

    def scaled(maps):
        maps = maps - maps.amin((1, 2), keepdim=True)
        return maps / (maps.amax((1, 2), keepdim=True) + 1e-7)

    expected = nn.functional.interpolate(scaled(cam)[:, None], (16, 12), mode="bilinear", align_corners=False)[:, 0]
    expected = scaled(expected)
    heatmap = hw.load_method("gradcam", plain)(images, 1).heatmap
    torch.testing.assert_close(heatmap, expected, rtol=1e-3, atol=1e-3)


def test_the_cam_layer_of_a_resnet_is_its_last_block():
    model = torchvision.models.resnet18(num_classes=5).eval()
    x = torch.randn(1, 3, 64, 64)
    network, seen = Rebuilt(trace(model, x), model), []
    network.feature_map()[0].register_forward_hook(lambda m, i, o: seen.append(o))
    network(x)
    blocks = []
    model.layer4[1].register_forward_hook(lambda m, i, o: blocks.append(o))
    model(x)
    torch.testing.assert_close(seen[0], blocks[0])


def test_a_network_without_feature_maps_has_no_cam(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(576, 4)).eval()
    with pytest.raises(InputError, match="no feature map"):
        hw.load_method("gradcam", model)(images)


LAST_MAPS = {
    "convnext_tiny": (1, 768, 7, 7),
    "swin_t": (1, 768, 7, 7),
    "vgg11": (1, 512, 7, 7),
    "mobilenet_v3_small": (1, 576, 7, 7),
    "squeezenet1_1": (1, 1000, 13, 13),
}


@pytest.mark.parametrize("name", [*LAST_MAPS, "vit_b_16"])
def test_the_cam_layer_is_the_last_feature_map_of_any_network(name):
    model, x = torchvision.models.get_model(name, weights=None).eval(), torch.zeros(1, 3, 224, 224)
    network = Rebuilt(trace(model, x), model)
    if name == "vit_b_16":
        with pytest.raises(InputError, match="no feature map"):
            network.feature_map()
        return
    feature_map, channels = network.feature_map()
    shapes = []
    feature_map.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape)))
    network(x)
    assert (shapes, channels) == ([LAST_MAPS[name]], 1)


@pytest.mark.parametrize("name", [n for n in BASELINES if n != "scorecam"])
@pytest.mark.parametrize(
    "arch",
    [
        "resnet18",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("resnet50", "efficientnet_b0", "densenet121")),
    ],
)
def test_methods_work_on_real_architectures(arch, name):
    torch.manual_seed(0)
    model = settle(torchvision.models.get_model(arch, weights=None, num_classes=7))
    x = torch.randn(2, 3, 96, 64)
    e = hw.load_method(name, model)(x)
    torch.testing.assert_close(e.logits, model(x), rtol=1e-4, atol=1e-4)
    assert e.heatmap.isfinite().all()
    assert (e.heatmap.flatten(1).std(1) > 0).all()


def test_random_maps_follow_the_image_and_the_seed(tiny, images):
    from headwater.methods.baselines import Random

    first = Random(tiny)(images).heatmap
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, Random(tiny, seed=1)(images).heatmap)


@pytest.mark.parametrize(("name", "module"), [("deeplift", "captum.attr"), ("gradcam", "pytorch_grad_cam")])
def test_a_missing_library_names_the_extra(tiny, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"headwater\[methods\]"):
        hw.load_method(name, tiny)


def test_bad_input(tiny, images):
    method = hw.load_method("gradient-x-input", tiny)
    with pytest.raises(InputError, match="The batch comes first: a batch of one is"):
        method(images[0])
    with pytest.raises(InputError, match="out of range"):
        method(images, 9)
    with pytest.raises(TraceError, match=r"logits \(N, K\)"):
        hw.load_method("gradient-x-input", nn.Conv2d(3, 2, 1))(images)


def test_the_ending_hq_quantizes_any_methods_map():
    model, x = hw.load_model("tiny20"), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for name in ("otsuki2024", "gradcam"):
        plain, quantized = (hw.load_method(n, model)(x, target=4) for n in (name, f"{name}+hq"))
        assert torch.equal(quantized.heatmap, hw.heat_quantization(plain.heatmap))
        assert all(len(m.unique()) <= 8 for m in quantized.heatmap)
        assert torch.equal(quantized.probability, plain.probability)
    with pytest.raises(InputError, match="no method is called 'nothing'"):
        hw.load_method("nothing+hq", model)


# -- one protocol -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["otsuki2024", "otsuki2024+hq", "c3-lrp", "gradcam", "gradient-x-input", "random"])
def test_every_method_takes_checkpoints_and_progress(name, tiny, images):
    steps = []
    e = hw.load_method(name, tiny)(images, 1, checkpoints="cuts", progress=lambda *s: steps.append(s))
    assert steps == [(1, 1)]
    assert (e.conservation is not None) == (name in ("otsuki2024", "otsuki2024+hq", "c3-lrp"))
    assert torch.equal(e.heatmap, hw.load_method(name, tiny)(images, 1).heatmap)
    if e.conservation is None:
        with pytest.raises(InputError, match=r"no relevance inside the network.*\['block1'\]"):
            hw.load_method(name, tiny)(images, checkpoints=["block1"])
    else:
        assert e.conservation.checkpoints


def test_a_function_of_images_and_target_can_be_registered(tiny, images):
    class Brightness:
        def __init__(self, model):
            self.lrp = hw.LRP(model)

        def __call__(self, x, target=None):
            return replace(self.lrp(x, target), heatmap=x.sum(1))

    hw.register_method("test-brightness", Brightness)
    method, steps = hw.load_method("test-brightness", tiny), []
    e = method(images, checkpoints="cuts", progress=lambda *s: steps.append(s))
    assert torch.equal(e.heatmap, images.sum(1))
    assert steps == [(1, 1)]
    with pytest.raises(InputError, match="no relevance inside"):
        method(images, checkpoints=["block1"])
