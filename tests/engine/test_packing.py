"""Packed weights: the same maps, whatever was explained before and whatever has changed."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from helpers import settle
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import headwater as hw
from headwater.composites import Type
from headwater.engine import packing
from headwater.rules import Gradient, Pass

pytestmark = pytest.mark.skipif(
    not (packing._AVAILABLE and torch.backends.mkldnn.enabled), reason="torch computes without oneDNN"
)


BY_GRADIENT = hw.Composite(
    "by-gradient", [(Type("linear"), Gradient()), (Type("average"), Gradient()), (Type("elementwise"), Pass())]
)


class Wide(nn.Module):
    """Large enough that weights are packed: strides, a kernel that leaves pixels over, groups, dilation, a bias."""

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


def packed():
    return sum(map(len, packing._cached.values()))


@pytest.mark.parametrize("composite", ["otsuki2024", "headwater", "epsilon"])
def test_maps_are_those_without_packing(wide, composite, monkeypatch):
    before = packed()
    lrp = hw.LRP(wide, composite)
    found = [lrp(noise(count)).relevance for count in (1, 2, 1)]
    assert packed() > before + 4 and torch.equal(found[0], found[2])
    monkeypatch.setattr(packing, "_most_pixels", lambda w: -1)
    for count, relevance in zip((1, 2), found, strict=False):
        expected = hw.LRP(wide, composite)(noise(count)).relevance
        torch.testing.assert_close(relevance, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_packed_weights_go_with_the_weights_that_they_are_of(wide):
    gc.collect()
    before = packed()
    lrp = hw.LRP(wide)
    lrp(noise(2))
    first = packed()
    assert first > before
    for change in (lambda w: w.detach().mul_(-0.5), lambda w: w.data.copy_(w.data.flip(0))):
        change(wide.layers[0].weight)
        change(wide.layers[2].weight)
        e, expected = lrp(noise(2)), hw.LRP(wide)(noise(2))
        assert torch.equal(e.relevance, expected.relevance)
        torch.testing.assert_close(e.logits, wide(noise(2)))
        del expected
        gc.collect()
        assert packed() == first
    del lrp, e
    gc.collect()
    assert packed() == before


def test_recomputing_keeps_none_and_nothing_that_is_derived(wide):
    expected = hw.LRP(wide)(noise(1)).relevance
    gc.collect()
    before = packed()
    lrp = hw.LRP(wide, recompute=True)
    assert torch.equal(lrp(noise(1)).relevance, expected)
    assert packed() <= before and not lrp.plan(noise(1)).weights._cache


def test_larger_batches_free_what_was_packed_for_small_ones(wide):
    gc.collect()
    lrp, before = hw.LRP(wide), packed()
    lrp(noise(1))
    few = packed()
    lrp(noise(40))
    assert few > packed() == before


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
    monkeypatch.setattr(packing, "_most_pixels", lambda w: -1)
    other = hw.LRP(wide)
    other(noise(1))
    with FlopCounterMode(display=False) as counter:
        other(noise(1))
    assert 0 < counted == counter.get_total_flops()
    monkeypatch.undo()
    e = hw.LRP(wide, BY_GRADIENT)(noise(1))
    assert e.heatmap.isfinite().all()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_a_compiled_sweep_uses_them(wide, backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled, plain = hw.LRP(wide, compile=True), hw.LRP(wide)
    for count in (1, 2, 5):  # five have too many pixels in the first layers
        expected = plain(noise(count)).relevance
        before = packed()
        found = compiled(noise(count)).relevance
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        assert packed() > before or count > 1


def test_rules_that_differentiate_are_compiled_too(wide, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    e, expected = (hw.LRP(wide, BY_GRADIENT, compile=c)(noise(1)) for c in (True, False))
    atol = 1e-4 * expected.relevance.abs().max().item()
    torch.testing.assert_close(e.relevance, expected.relevance, rtol=0, atol=atol)


def test_an_exported_graph_takes_any_number_of_images(wide, tmp_path):
    lrp = hw.LRP(wide)
    lrp(noise(2))
    done = hw.export(wide, "otsuki2024", tmp_path / "wide.pt2", noise(2))
    assert done.about["input"]["image"][0] == "N" and done.agreement.worst < 1e-4
