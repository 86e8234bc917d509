"""Operations, time and memory of a map beside a forward pass."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from helpers import EXAMPLES, TinyResidual, settle
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import headwater as hw
from headwater.experiments import cost, reproduce
from headwater.experiments.cost import COSTS, measure_cost

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(cost, "SECONDS", 0.02)


def test_operations_of_a_convolution_are_counted_by_hand():
    layer, x = nn.Conv2d(3, 8, 5, padding=2, bias=False), torch.rand(2, 3, 20, 24)
    with torch.no_grad():
        found = measure_cost(lambda: layer(x), CPU)
    assert found.operations == 2 * 8 * 20 * 24 * 3 * 5 * 5
    assert found.memory == 2 * 8 * 20 * 24 * 4, "the output alone"
    assert found.seconds > 0


def test_memory_is_that_of_the_tensors_that_live_at_once():
    x = torch.zeros(1000)

    def one_after_the_other():
        for _ in range(5):
            y = x + 1
            y += 1
        return y

    assert measure_cost(one_after_the_other, CPU).memory == 2 * 4000, "the next is made before the last is dropped"
    assert measure_cost(lambda: [x + k for k in range(5)], CPU).memory == 5 * 4000
    assert measure_cost(lambda: x.view(10, 100).mul_(1), CPU).memory == 0, "views and changes in place"


def test_printed_costs_are_those_of_the_papers():
    forward, explained = COSTS["otsuki2024-timing"].printed
    assert (forward.seconds, explained.seconds) == (4.66e-3, 40.7e-3)
    doublet = COSTS["doublet2024-cost"]
    assert (doublet.parameters, doublet.printed[0].operations, doublet.printed[0].seconds) == (23.9e6, 65.4e9, 0.1)


def test_the_printed_operations_are_those_of_a_batch_of_16():
    """65.4 G for "the proposed method" is a forward pass of ResNet-50 with 200 classes, 16 times."""
    with torch.device("meta"):
        model, x = torchvision.models.resnet50(num_classes=200), torch.zeros(16, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            model(x)
    assert counter.get_total_flops() / 2e9 == pytest.approx(65.4, abs=0.05)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(23.9, abs=0.05)


@pytest.mark.parametrize("name", COSTS)
def test_ratios_stand_beside_the_printed_ones(name, tmp_path):
    model = settle(TinyResidual(classes=4))
    model.card = hw.ModelCard("tiny-residual", "random", hw.Preprocessing(16, 16))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    done = reproduce(name, EXAMPLES, [model], tmp_path)
    lines = [line for line in done.report.splitlines() if line.startswith("| ")]
    assert [line for line in lines if line.startswith("| printed: ")]
    measured = {line.split("|")[1].strip(): line for line in lines}
    assert re.search(r"\| 1\.00 \|.*\| 1\.00 \|", measured["forward pass"])
    for method in COSTS[name].methods:
        ratio = float(measured[f"`{method}`: forward pass and map"].split("|")[5])
        assert 2 < ratio < 4, "a sweep costs what a gradient costs"
    assert f"Parameters: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M" in done.report
    assert ("printed: 23.9 M" in done.report) == (name == "doublet2024-cost")
    if name == "otsuki2024-timing":
        assert measured["printed: forward pass and map"].split("|")[2:4] == [" 40.7 ", " 8.73 "]
    assert "- labels" not in done.report and "1 of" in done.report
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
