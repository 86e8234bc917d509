from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import headwater as hw
from headwater.engine.composites import Composite
from headwater.engine.graph import trace
from headwater.engine.plan import Plan
from headwater.engine.splitting import Ratio, Symmetric
from headwater.engine.weights import WeightStore
from headwater.errors import InputError
from headwater.rules import Epsilon, Flat, Gamma, Pass, Split, WPlus, WSquare, ZPlus


def rules(model: nn.Module, composite: Composite, x: torch.Tensor) -> dict[str, object]:
    """Rule by module path."""
    graph = trace(model, x)
    plan = Plan(graph, composite, WeightStore(model, ()))
    return {step.layer.operation.module: step.rule for step in plan.steps}


X = torch.zeros(1, 3, 16, 12)


def test_default_rules(tiny):
    found = rules(tiny, hw.load_composite("otsuki2024"), X)
    assert found["stem"] == WPlus()
    assert found["block1.conv1"] == ZPlus(signed=False), "inputs after a ReLU need no signed products"
    assert found["head"] == ZPlus(signed=False)
    assert found["block1"] == Split(Ratio(), (True, True))


def test_names_come_before_places_before_types(tiny):
    base = hw.load_composite("otsuki2024")
    mine = replace(base, names={"block2.*": Gamma(0.5), "block*": Flat()}, last=WSquare())
    found = rules(tiny, mine, X)
    assert found["block2.conv1"] == Gamma(0.5)
    assert found["block1.conv2"] == Flat()
    assert found["head"] == WSquare()
    assert found["stem"] == WPlus()


def test_rules_after_a_join(tiny):
    mine = replace(hw.load_composite("otsuki2024"), after=(1, Epsilon()))
    found = rules(tiny, mine, X)
    assert found["block1.shortcut"] == ZPlus(signed=False)
    assert found["block2.conv1"] == Epsilon()
    assert found["head"] == Epsilon()


def test_identity_skips_are_left_out_and_projected_ones_are_not(tiny):
    found = rules(tiny, hw.load_composite("otsuki2024-i"), X)
    assert found["block1"] == Split(Symmetric(identity_skips=False), (True, True))
    assert found["block2"] == Split(Symmetric(identity_skips=False), (True, False))


@pytest.mark.parametrize("order", ["skip first", "skip last"])
@pytest.mark.parametrize("shortcut", ["plain", "subsampled", "normalised"])
def test_identity_skip_is_found_whatever_the_spelling(order, shortcut):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
            if shortcut == "plain":
                self.conv.stride = (1, 1)
            self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.stem(x).relu()
            skip = {"plain": lambda: h, "subsampled": lambda: nn.functional.avg_pool2d(h, 2)}.get(
                shortcut, lambda: self.norm(nn.functional.avg_pool2d(h, 2))
            )()
            main = self.conv(h)
            h = torch.add(skip, main) if order == "skip first" else main + skip
            return self.head(h.mean((2, 3)))

    model = Net().eval()
    plan = Plan(trace(model, X), hw.load_composite("otsuki2024-iii"), WeightStore(model, ()))
    (split,) = (step.rule for step in plan.steps if isinstance(step.rule, Split))
    skips = (shortcut == "normalised", True) if order == "skip first" else (True, shortcut == "normalised")
    assert split.takes_part == skips


def test_a_bias_added_by_hand_is_no_branch():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.shift = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x):
            return (self.conv(x) + self.shift).flatten(1)

    model = Net()
    plan = Plan(trace(model, X), hw.load_composite("otsuki2024"), WeightStore(model, ()))
    assert next(step.rule for step in plan.steps if step.layer.operation.kind == "add") == Pass()


def test_a_block_is_one_layer(tiny):
    mine = replace(hw.load_composite("doublet2024"), blocks=("TinyBlock",))
    graph = trace(tiny, X)
    plan = Plan(graph, mine, WeightStore(tiny, ()))
    assert [layer.category for layer in plan.layers].count("block") == 2
    assert len(plan.steps) < 10


def test_printing_shows_every_choice():
    mine = Composite(
        "mine", {"conv2d": Gamma(0.5)}, names={"a.*": Flat()}, first=WPlus(), last=WSquare(), blocks=("B",)
    )
    text = str(mine)
    for part in ("mine", "type conv2d", "Gamma(gamma=0.5", "module a.*", "first linear", "last linear", "blocks B"):
        assert part in text


def test_a_missing_rule_is_a_clear_error(tiny):
    with pytest.raises(InputError, match=r"'mine' has no rule for 'dropout'.*elementwise"):
        rules(tiny, Composite("mine", {"linear": ZPlus()}), X)


def test_presets():
    names = hw.list_composites()
    assert {"otsuki2024", "otsuki2024-published", "otsuki2024-mixture", "doublet2024", "epsilon"} <= set(names)
    assert {f"otsuki2024-{n}{s}" for n in ("i", "ii", "iii") for s in ("", "-published")} <= set(names)
    with pytest.raises(InputError, match="no composite is called 'otsuki'"):
        hw.load_composite("otsuki")


def test_a_registered_composite_is_a_method(tiny):
    mine = replace(hw.load_composite("otsuki2024"), name="test-mine")
    hw.register_composite(mine)
    try:
        assert "test-mine" in hw.list_methods()
        assert hw.load_method("test-mine", tiny)(torch.zeros(1, 3, 8, 8)).heatmap.shape == (1, 8, 8)
    finally:
        from headwater.engine import composites

        del composites._COMPOSITES["test-mine"]


def test_a_pattern_passes_over_operations_that_its_rule_is_not_for(tiny):
    found = rules(tiny, replace(hw.load_composite("otsuki2024"), names={"block2*": Gamma(0.5)}), X)
    assert found["block2.conv1"] == Gamma(0.5)
    assert found["block2.relu"] == found["block2.bn1"] == Pass()
