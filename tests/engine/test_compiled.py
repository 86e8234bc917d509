from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

import headwater as hw
from headwater.errors import CompileError, CompileWarning, InputError
from headwater.rules import Pass


def assert_same(e, expected):
    for ours, theirs in ((e.heatmap, expected.heatmap), (e.logits, expected.logits)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())
    torch.testing.assert_close(e.conservation.input, expected.conservation.input, rtol=1e-5, atol=0)


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def backend(request, monkeypatch):
    """Whole programs without a graph break by the one; with generated code, which takes minutes, by the other."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))


def test_compiled_maps_are_the_plain_ones_also_after_the_weights_have_changed(tiny, images, backend):
    plain, compiled = hw.LRP(tiny), hw.LRP(tiny, compile=True)
    e, expected = (lrp(images, target=2, checkpoints=["block1", "block2"]) for lrp in (compiled, plain))
    assert_same(e, expected)
    assert [j.module for j in e.flow.joins] == [j.module for j in expected.flow.joins]
    for name in ("block1", "block2"):
        torch.testing.assert_close(e.checkpoints[name], expected.checkpoints[name], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        tiny.head.weight.mul_(-1.5)
        tiny.stem.weight.mul_(0.5)
    args = {"target": 2, "checkpoints": ["block1", "block2"]}
    assert_same(compiled(images, **args), plain(images, **args))
    with pytest.raises(InputError, match="classes 0 to 4"):
        compiled(images, target=5)


def test_compiled_classes_against_others_and_scales(tiny, images, backend):
    plain, compiled = (hw.LRP(tiny, "headwater", compile=c) for c in (False, True))
    args = {"target": 2, "start": "logit", "against": torch.tensor([0, 3, 4])}
    e, expected = compiled(images, **args), plain(images, **args)
    assert_same(e, expected)
    assert torch.equal(e.against, args["against"]) and list(e.coarse) == list(expected.coarse) and e.coarse
    torch.testing.assert_close(e.conservation.size, expected.conservation.size)
    for name, maps in expected.scales.items():
        torch.testing.assert_close(e.scales[name], maps, rtol=0, atol=1e-5 * maps.abs().max().item())
    other = (e.logits.argmax(1) + 1) % 5
    assert_same(compiled(images, against=other, scales=False), plain(images, against=other, scales=False))
    for against, message in ((e.logits.argmax(1), "the same class"), (7, "against .* classes 0 to 4")):
        with pytest.raises(InputError, match=message):
            compiled(images, against=against, scales=False)


def test_compiled_attention_of_several_images(transformer, backend):
    x = torch.randn(3, 3, 16, 16)
    assert_same(hw.LRP(transformer, compile=True)(x), hw.LRP(transformer)(x))


class Standardised(nn.Conv2d):
    """Its weights are computed from its parameters, as in networks with weight standardisation."""

    def forward(self, x):
        return nn.functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


def test_compiled_weights_that_the_network_computes(images, backend):
    torch.manual_seed(0)
    model = nn.Sequential(Standardised(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    plain, compiled = hw.LRP(model.eval()), hw.LRP(model, compile=True)
    assert_same(compiled(images), plain(images))
    with torch.no_grad():
        model[0].weight.mul_(-1.5)
    assert_same(compiled(images), plain(images))


class Pooling(nn.Module):
    """Multiplies tokens by weights that have been repeated for each image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 36))

    def forward(self, x):
        return torch.bmm(self.weight.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2))


def test_weights_repeated_for_each_image_plain_and_compiled(backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), Pooling(), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.randn(3, 3, 8, 8)
    alone = torch.cat([hw.LRP(model)(x[k : k + 1]).heatmap for k in range(3)])
    for lrp in (hw.LRP(model), hw.LRP(model, compile=True)):
        for count in (3, 1, 2):
            e = lrp(x[:count])
            assert e.conservation.error.max() < 1e-5
            torch.testing.assert_close(e.heatmap, alone[:count], rtol=1e-4, atol=1e-6)


def test_compiled_output_without_a_dimension_of_classes(images, backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    model = nn.Sequential(*model, nn.Flatten(0)).eval()
    assert_same(hw.LRP(model, compile=True)(images, start="logit"), hw.LRP(model)(images, start="logit"))


def test_compiled_first_layer_by_phases(backend):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 7, stride=2, padding=3)
    model = nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)).eval()
    compiled = hw.LRP(model, compile=True)
    for count in (1, 3, 2):
        x = torch.randn(count, 3, 21, 18, generator=torch.Generator().manual_seed(count))
        assert_same(compiled(x), hw.LRP(model)(x))


def test_compiled_in_half_precision_relevance_is_single(tiny, images, backend):
    tiny, images = tiny.bfloat16(), images.bfloat16()
    e, expected = hw.LRP(tiny, compile=True)(images), hw.LRP(tiny)(images)
    assert e.relevance.dtype == torch.float32 and e.conservation.error.max() < 1e-5
    torch.testing.assert_close(e.heatmap, expected.heatmap, rtol=0, atol=0.02 * expected.heatmap.abs().max().item())


IN_A_NEW_PROCESS = """
import sys, torch, headwater as hw
from torch._dynamo.utils import counters
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
x = torch.rand(2, 3, 8, 8)
e = hw.LRP(model, compile=True)(x)
assert (e.heatmap - hw.LRP(model)(x).heatmap).abs().max() < 1e-5 * e.heatmap.abs().max()
found = {**counters["inductor"], **counters["aot_autograd"]}
print(sum(n for name, n in found.items() if name.endswith("cache_miss")))
print(sum(n for name, n in found.items() if name.endswith("cache_hit")))
"""


@pytest.mark.full
def test_compiled_code_is_reused_by_another_process(tmp_path):
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    missed, hit = [], []
    for _ in range(2):
        command = [sys.executable, "-W", "ignore", "-c", IN_A_NEW_PROCESS]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        for counts, text in zip((missed, hit), done.stdout.split(), strict=True):
            counts.append(int(text))
    assert missed[0] > 0 and hit[0] == 0 and missed[1] == 0 and hit[1] > 0, (missed, hit)


class Untraceable(Pass):
    """Asks for a value, which no program knows beforehand."""

    def __call__(self, layer, prepared, inputs, relevance):
        assert relevance.sum().item() > -1
        return super().__call__(layer, prepared, inputs, relevance)


def test_what_cannot_be_compiled_is_named_and_goes_on_only_if_asked(tiny, images):
    from headwater.composites import Type

    composite = hw.load_composite("otsuki2024").prepend((Type("relu"), Untraceable()))
    with pytest.raises(CompileError, match=r"operation 'relu' in module 'block2.relu', rule .*Untraceable"):
        hw.LRP(tiny, composite, compile=True)(images)
    lrp = hw.LRP(tiny, composite, compile="if possible")
    with pytest.warns(CompileWarning, match="uncompiled"):
        e = lrp(images)
    assert torch.equal(e.heatmap, hw.LRP(tiny, composite)(images).heatmap)
    with pytest.raises(InputError, match="'if possible'"):
        hw.LRP(nn.Flatten(), compile="maybe")
