"""Kept layouts of weights: the same maps, whatever was explained before and whatever has changed."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import settle
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import headwater as hw
from headwater.composites import Type
from headwater.engine import packing
from headwater.rules import Gradient, Pass

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


class Wide(nn.Module):
    """Large enough that layouts are kept: strides, a kernel that leaves pixels over, groups, dilation, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 128, 3, padding=1)
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(128, 128, 3, padding=1, bias=False),
                nn.Conv2d(128, 256, 3, stride=2),
                nn.Conv2d(256, 512, 1, stride=2),
                nn.Conv2d(512, 512, 3, padding=2, dilation=2, groups=4),
            ]
        )
        self.head = nn.Linear(512, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x.mean((2, 3)))


@pytest.fixture
def wide():
    return settle(Wide())


def noise(count):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))


def layouts():
    return sum(len(of.kept) for of in packing._kept.values())


@pytest.mark.parametrize("composite", ["otsuki2024", "headwater", "epsilon"])
def test_maps_are_those_without_layouts(wide, composite, monkeypatch):
    before = layouts()
    lrp = hw.LRP(wide, composite)
    found = [lrp(noise(count)).relevance for count in (1, 2, 1)]
    assert layouts() > before + 4 and torch.equal(found[0], found[2])
    monkeypatch.setattr(packing, "_MOST_PIXELS", -1)
    for count, relevance in zip((1, 2), found, strict=False):
        expected = hw.LRP(wide, composite)(noise(count)).relevance
        torch.testing.assert_close(relevance, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_layouts_go_with_the_weights_that_they_are_of(wide):
    gc.collect()
    before = layouts()
    lrp = hw.LRP(wide)
    lrp(noise(2))
    first = layouts()
    assert first > before
    for change in (lambda w: w.detach().mul_(-0.5), lambda w: w.data.copy_(w.data.flip(0))):
        change(wide.layers[0].weight)
        change(wide.layers[2].weight)
        e, expected = lrp(noise(2)), hw.LRP(wide)(noise(2))
        assert torch.equal(e.relevance, expected.relevance)
        torch.testing.assert_close(e.logits, wide(noise(2)))
        del expected
        gc.collect()
        assert layouts() == first
    del lrp, e
    gc.collect()
    assert layouts() == before


def test_recomputing_keeps_none_and_nothing_that_is_derived(wide):
    expected = hw.LRP(wide)(noise(1)).relevance
    gc.collect()
    before = layouts()
    lrp = hw.LRP(wide, recompute=True)
    assert torch.equal(lrp(noise(1)).relevance, expected)
    assert layouts() <= before and not lrp.plan(noise(1)).weights._cache


def test_several_threads_with_several_numbers_of_images(wide):
    lrp = hw.LRP(wide)
    expected = {count: lrp(noise(count)).relevance for count in (1, 2, 3)}
    with ThreadPoolExecutor(3) as pool:
        for count, found in pool.map(lambda n: (n, lrp(noise(n)).relevance), [1, 2, 3] * 8):
            assert torch.equal(found, expected[count])


def test_what_watches_or_differentiates_sees_ordinary_operations(wide, monkeypatch):
    lrp = hw.LRP(wide)
    lrp(noise(1))
    with FlopCounterMode(display=False) as counter:
        lrp(noise(1))
    counted = counter.get_total_flops()
    monkeypatch.setattr(packing, "_MOST_PIXELS", -1)
    other = hw.LRP(wide)
    other(noise(1))
    with FlopCounterMode(display=False) as counter:
        other(noise(1))
    assert 0 < counted == counter.get_total_flops()
    monkeypatch.undo()
    by_gradient = hw.Composite(
        "by-gradient", [(Type("linear"), Gradient()), (Type("average"), Gradient()), (Type("elementwise"), Pass())]
    )
    e = hw.LRP(wide, by_gradient)(noise(1))
    assert e.heatmap.isfinite().all()


def test_a_compiled_sweep_uses_them(wide, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    before = layouts()
    compiled = hw.LRP(wide, compile=True)
    for count in (1, 2):
        expected = hw.LRP(wide)(noise(count)).relevance
        found = compiled(noise(count)).relevance
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())
    assert layouts() > before
