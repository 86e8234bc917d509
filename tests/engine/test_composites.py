from __future__ import annotations

import pytest
import torch
from helpers import no_registrations
from torch import nn

import headwater as hw
from headwater.composites import REGISTERED, AfterJoin, Blocks, Composite, First, Last, Type, unregister_composite
from headwater.engine.linear_rules import Flat, WPlus, WSquare, ZPlus
from headwater.engine.rules import Gradient, Pass, Split
from headwater.engine.signed_rules import Epsilon, Gamma
from headwater.engine.splitting import Ratio, Symmetric
from headwater.errors import InputError


def rules(model: nn.Module, composite: Composite, x: torch.Tensor) -> dict[str, object]:
    """Rule by module path."""
    return {step.layer.operation.module: step.rule for step in hw.LRP(model, composite).plan(x).steps}


X = torch.zeros(1, 3, 16, 12)


def test_default_rules(tiny):
    found = rules(tiny, hw.load_composite("otsuki2024"), X)
    assert found["stem"] == WPlus()
    assert found["block1.conv1"] == ZPlus(signed=False), "inputs after a ReLU need no signed products"
    assert found["head"] == ZPlus(signed=False)
    assert found["block1"] == Split(Ratio(), (True, True))


def test_the_first_entry_that_matches_counts(tiny):
    base = hw.load_composite("otsuki2024")
    mine = base.prepend(("block2.*", Gamma(0.5)), ("block*", Flat()), (Last(), WSquare()))
    found = rules(tiny, mine, X)
    assert found["block2.conv1"] == Gamma(0.5)
    assert found["block1.conv2"] == Flat()
    assert found["head"] == WSquare()
    assert found["stem"] == WPlus()
    found = rules(tiny, base.prepend((First(), Flat()), ("block1.conv1", WSquare()), ("block1.conv?", Gamma())), X)
    assert (found["stem"], found["block1.conv1"], found["block1.conv2"]) == (Flat(), WSquare(), Gamma())


def test_a_predicate_decides_by_place(tiny):
    def strided_or_deep(place):
        return place.linear and (place.joins_before >= 1 or place.module.endswith("shortcut"))

    found = rules(tiny, hw.load_composite("otsuki2024").prepend((strided_or_deep, Gamma(0.5))), X)
    gamma = {path for path, rule in found.items() if rule == Gamma(0.5)}
    assert gamma == {"block1.shortcut", "block2.conv1", "block2.conv2", "head", ""}
    classes = hw.load_composite("otsuki2024").prepend((lambda place: place.module_class == "Linear", Flat()))
    assert [path for path, rule in rules(tiny, classes, X).items() if rule == Flat()] == ["head"]


def test_splittings_and_gates_are_addressed_as_rules_are(tiny):
    mine = hw.load_composite("otsuki2024").prepend(
        ("block2", Symmetric()), (lambda place: place.category == "join", Ratio(identity_skips=False))
    )
    found = rules(tiny, mine, X)
    assert found["block2"] == Split(Symmetric(), (True, True))
    assert found["block1"] == Split(Ratio(identity_skips=False), (True, True)), "its skip is projected"


def test_rules_after_a_join(tiny):
    found = rules(tiny, hw.load_composite("otsuki2024").prepend((AfterJoin(1), Epsilon())), X)
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

    plan = hw.LRP(Net().eval(), "otsuki2024-iii").plan(X)
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

    plan = hw.LRP(Net()).plan(X)
    assert next(step.rule for step in plan.steps if step.layer.operation.kind == "add") == Pass()


def test_a_block_is_one_layer(tiny):
    plan = hw.LRP(tiny, hw.load_composite("doublet2024").prepend((Blocks("TinyBlock"), Gradient()))).plan(X)
    assert [step.layer.category for step in plan.steps].count("block") == 2
    assert len(plan.steps) < 10


def test_printing_shows_every_choice_in_order():
    mine = Composite(
        "mine",
        [
            (Blocks("B"), Gradient()),
            ("a.*", Flat()),
            (First(), WPlus()),
            (Last(), WSquare()),
            (Type("conv2d"), Gamma(0.5)),
        ],
    )
    name, *lines = str(mine).splitlines()
    assert name == "mine"
    starts = ["blocks 'B'", "module 'a.*'", "first linear operation", "last linear operation", "type 'conv2d'"]
    assert [line.strip().split("  ")[0] for line in lines] == starts
    assert "Gamma(gamma=0.5" in lines[-1]


def test_registered_rules_count_where_the_composite_says_or_last():
    with no_registrations():
        hw.register_rule("relu", Gradient())
        rest = [(Type("elementwise"), Pass())]
        first, last = Composite("a", [REGISTERED, *rest]), Composite("b", rest)
        assert [str(entry.where) for entry in first.table()] == ["registered 'relu'", "type 'elementwise'"]
        assert [str(entry.where) for entry in last.table()] == ["type 'elementwise'", "registered 'relu'"]


def test_a_plan_lists_every_operation_with_its_rule_and_why(tiny):
    mine = hw.load_composite("otsuki2024").prepend(("block2.conv1", Gamma(0.5)))
    plan = hw.LRP(tiny, mine).plan(X)
    header, *lines = str(plan).splitlines()
    assert header.split() == ["module", "operation", "rule", "why"]
    assert len(lines) == len(plan.steps) == sum(bool(o.inputs) for o in plan.graph.operations)
    by_module = {line.split()[0]: line for line in lines}
    assert by_module["block2.conv1"].endswith("module 'block2.conv1'")
    assert "Gamma(gamma=0.5" in by_module["block2.conv1"]
    assert by_module["stem"].endswith("first linear operation")
    assert by_module["head"].endswith("type 'linear'")
    blocks = str(hw.LRP(tiny, "doublet2024").plan(X))
    assert "block1" in blocks
    assert "(block)" in blocks
    assert "residual blocks" in blocks


def test_a_plan_says_where_no_relevance_arrives():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            h = self.conv(x)
            return (h * self.gate(h).sigmoid()).mean((2, 3))

    (line,) = (
        line for line in str(hw.LRP(Gated()).plan(X)).splitlines() if line.startswith("gate") and "conv2d" in line
    )
    assert line.split()[2:] == ["-", "no", "relevance", "arrives"]


def test_a_missing_rule_is_a_clear_error(tiny):
    with pytest.raises(InputError, match=r"'mine' has no rule for 'dropout'.*elementwise"):
        rules(tiny, Composite("mine", [(Type("linear"), ZPlus())]), X)


def test_presets():
    names = hw.list_composites()
    assert {"otsuki2024", "otsuki2024-published", "otsuki2024-mixture", "doublet2024", "epsilon"} <= set(names)
    assert {f"otsuki2024-{n}{s}" for n in ("i", "ii", "iii") for s in ("", "-published")} <= set(names)
    with pytest.raises(InputError, match="no composite is called 'otsuki'"):
        hw.load_composite("otsuki")


def test_a_registered_composite_is_a_method(tiny):
    hw.register_composite(hw.load_composite("otsuki2024").prepend(name="test-mine"))
    try:
        assert "test-mine" in hw.list_methods()
        assert hw.load_method("test-mine", tiny)(torch.zeros(1, 3, 8, 8)).heatmap.shape == (1, 8, 8)
    finally:
        unregister_composite("test-mine")
    assert "test-mine" not in hw.list_methods()


def test_a_pattern_passes_over_operations_that_its_rule_is_not_for(tiny):
    found = rules(tiny, hw.load_composite("otsuki2024").prepend(("block2*", Gamma(0.5))), X)
    assert found["block2.conv1"] == Gamma(0.5)
    assert found["block2.relu"] == found["block2.bn1"] == Pass()
