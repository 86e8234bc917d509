"""Recomputing in place of keeping: the same map to the last bit, with less memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

import headwater as hw
from headwater.engine.schedule import segments
from headwater.errors import InputError
from headwater.methods import AllScales

NETWORKS = {
    "resnet18": 64,
    "vgg11": 64,
    "densenet121": 64,
    "convnext_tiny": 64,
    "mobilenet_v3_small": 64,
    "vit_b_16": 224,
}


@pytest.mark.parametrize("composite", ["headwater", "otsuki2024-published", "doublet2024"])
def test_maps_and_accounts_are_the_same_to_the_bit(tiny, images, composite):
    e, expected = (
        hw.LRP(tiny, composite, recompute=again)(images, checkpoints=["block1", "block2"]) for again in (True, False)
    )
    assert torch.equal(e.relevance, expected.relevance) and torch.equal(e.logits, expected.logits)
    assert torch.equal(e.conservation.seed, expected.conservation.seed)
    assert all(torch.equal(e.checkpoints[name], maps) for name, maps in expected.checkpoints.items())
    assert all(torch.equal(e.coarse[name], maps) for name, maps in expected.coarse.items()) and e.coarse
    for ours, theirs in zip(e.flow.joins, expected.flow.joins, strict=True):
        assert ours.module == theirs.module and torch.equal(ours.relevance, theirs.relevance)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "resnet18" else pytest.mark.full) for n in NETWORKS])
def test_networks_of_all_kinds(name):
    torch.manual_seed(0)
    model, size = torchvision.models.get_model(name, weights=None).eval(), NETWORKS[name]
    x = torch.randn(2, 3, size, size)
    lrp = hw.LRP(model, recompute=True)
    assert torch.equal(lrp(x).relevance, hw.LRP(model)(x).relevance)
    parts = segments(lrp.plan(x).steps, lrp.plan(x).graph.shapes)
    assert len(parts) >= 2 and tuple(step for part in parts for step in part) == lrp.plan(x).steps


def test_each_segment_is_entered_by_one_value(tiny, images):
    plan = hw.LRP(tiny).plan(images)
    *earlier, last = segments(plan.steps, plan.graph.shapes)
    before = plan.graph.input
    for steps in (*earlier, last):
        inside = {step.output for step in steps}
        assert {name for step in steps for name in step.inputs} - inside == {before}
        before = steps[-1].output


def test_a_network_without_a_place_to_divide_is_one_segment(images):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, x):
            h = self.conv(x) * torch.sigmoid(x)
            return self.head((h + x).mean((2, 3)))

    model = Wide().eval()
    assert torch.equal(hw.LRP(model, recompute=True)(images).heatmap, hw.LRP(model)(images).heatmap)


def test_weights_that_change_are_noticed(tiny, images):
    lrp = hw.LRP(tiny, recompute=True)
    lrp(images)
    with torch.no_grad():
        tiny.head.weight.mul_(-1.5)
    assert torch.equal(lrp(images).heatmap, hw.LRP(tiny)(images).heatmap)
    assert torch.equal(AllScales(tiny, recompute=True)(images).heatmap, AllScales(tiny)(images).heatmap)


def test_only_what_is_derived_from_the_weights(tiny, images):
    lrp = hw.LRP(tiny, recompute="weights")
    assert torch.equal(lrp(images).heatmap, hw.LRP(tiny)(images).heatmap)
    assert not lrp.plan(images).weights._cache
    assert torch.equal(AllScales(tiny, recompute="weights")(images).heatmap, AllScales(tiny)(images).heatmap)
    with pytest.raises(InputError, match="False, True or 'weights', got 'values'"):
        hw.LRP(tiny, recompute="values")


def test_not_together_with_compile(tiny):
    with pytest.raises(InputError, match="choose compile or recompute"):
        hw.LRP(tiny, compile=True, recompute=True)


@pytest.mark.full
def test_resnet152_at_1024_pixels_in_less_than_four_gigabytes():
    program = """
import re, torch, torchvision, headwater as hw
from pathlib import Path
model = torchvision.models.resnet152(weights=None).eval()
e = hw.LRP(model, recompute=True)(torch.rand(1, 3, 1024, 1024))
assert float(e.conservation.error.max()) < 1e-5
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(found.stdout.split()[-1]) < 4 * 1000 * 1000
