"""Nothing that a composite is told is ignored in silence."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from helpers import no_registrations
from torch import nn

import headwater as hw
from headwater.composites import AfterJoin, Blocks, Composite, First, Gates, Last, Type
from headwater.engine.layers import Elementwise, Join
from headwater.engine.splitting import Ratio, Symmetric
from headwater.errors import InputError
from headwater.rules import Epsilon, Flat, Follow, Gamma, Gradient, Pass, Rule, Split, WPlus, ZPlus

BASE = hw.load_composite("otsuki2024")
DOUBLET = hw.load_composite("doublet2024")
EXACT = [(Type("linear"), ZPlus()), (Type("average"), ZPlus()), (Type("elementwise"), Pass()), (Type("join"), Ratio())]
"""Every category that the tiny network has."""


@pytest.fixture(autouse=True)
def registered():
    """Registrations end with the test."""
    with no_registrations():
        yield


# -- what reaches nothing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("layer9.*", Gamma())], r"module 'layer9\.\*' reaches nothing: no operation of the network has such a path"),
        ([("block1.conv3", Gamma())], "did you mean 'block1.conv"),
        ([("*.bn1", Gamma())], r"it fits batch_norm in block1.bn1, batch_norm in block2.bn1; Gamma.* is for Linear"),
        ([("block1", Gamma())], r"it fits add in block1; Gamma.* \(joins take a splitting"),
        ([("block1.conv*", Symmetric())], r"it fits conv2d in .*; Symmetric.* is for joins"),
        (
            [("block1.*", Flat()), ("block1.conv2", Gamma())],
            r"module 'block1\.\*' stands before it .* narrower one first",
        ),
        ([("block1.conv3", Symmetric())], "it could reach 'block1', 'block2'|did you mean 'block1'"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_pattern_that_reaches_nothing_is_an_error_in_any_composite(tiny, images, rules, message, strict):
    mine = Composite("mine", [*rules, *EXACT], strict=strict)
    with pytest.raises(InputError, match=message):
        hw.LRP(tiny, mine)(images)
    with pytest.raises(InputError, match=message):
        hw.LRP(tiny, BASE.prepend(*rules))(images)


def test_a_container_without_operations_of_its_own_says_what_to_write(images):
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), nn.Flatten(), nn.LazyLinear(2)).eval()
    net(images)
    with pytest.raises(InputError, match=r"the module does nothing itself; '0\.\*' means"):
        hw.LRP(net, BASE.prepend(("0", Gamma())))(images)


def test_a_pattern_for_a_branch_without_relevance_says_so(images):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            h = self.conv(x)
            return self.head((h * self.gate(h).sigmoid()).mean((2, 3)))

    mine = BASE.prepend(("gate", Gamma()))
    with pytest.raises(InputError, match=r"no relevance arrives .*Gates\('half'\)"):
        hw.LRP(Gated().eval(), mine)(images)
    hw.LRP(Gated().eval(), mine.prepend((Type("product"), Gates("half"))))(images)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([(Type("max_pool"), Pass())], "type 'max_pool' reaches nothing: the network has no such"),
        ([(Type("conv1d"), Gamma())], "type 'conv1d' reaches nothing: .*it has add, "),
        (
            [(AfterJoin(3), Gamma())],
            "after join 3 reaches nothing: the network has 2 joins .* says 3",
        ),
        (
            [("head", Flat()), (Last(), Gamma())],
            r"last .* reaches nothing: what is there \('head'\) gets its",
        ),
        ([("stem", Flat()), (First(), WPlus())], r"first .* reaches nothing: what is there \('stem'\)"),
    ],
)
def test_types_and_places_that_reach_nothing(tiny, images, rules, message):
    with pytest.raises(InputError, match=f"'mine': .*{message}.*strict=False"):
        hw.LRP(tiny, Composite("mine", [*rules, *EXACT]))(images)
    with pytest.raises(InputError, match=message):
        hw.LRP(tiny, BASE.prepend(*rules))(images)
    for relaxed in (Composite("mine", [*rules, *EXACT], strict=False), BASE.prepend(*rules, strict=False)):
        assert hw.LRP(tiny, relaxed)(images).heatmap.shape == (3, 16, 12)


def test_a_predicate_that_is_true_nowhere_is_an_error_in_any_composite(tiny, images):
    def nowhere(place):
        return place.joins_before > 9

    for strict in (True, False):
        with pytest.raises(InputError, match="predicate nowhere reaches nothing: it is false for every layer"):
            hw.LRP(tiny, BASE.prepend((nowhere, Gamma()), strict=strict))(images)


@pytest.mark.parametrize("key", ["conv", "linaer", "relu_", "block", "ReLU", "a b", ""])
@pytest.mark.parametrize("strict", [True, False])
def test_a_type_that_no_operation_goes_by_is_an_error_in_any_composite(tiny, images, key, strict):
    with pytest.raises(InputError, match=rf"type '{key}' is neither an ATen name nor a category; (did|it could)"):
        hw.LRP(tiny, Composite("mine", [(Type(key), Pass()), *EXACT], strict=strict))(images)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (("TinyBlok",), "'TinyBlok' reaches nothing: no module .* did you mean 'TinyBlock'"),
        (("TinyBlock", "block1.conv*"), r"'block1.conv\*' reaches nothing: what it means lies inside of other blocks"),
    ],
)
def test_blocks_that_reach_nothing(tiny, images, blocks, message):
    with pytest.raises(InputError, match=message):
        hw.LRP(tiny, DOUBLET.prepend(*((Blocks(which), Gradient()) for which in blocks)))(images)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("stem", Gamma), "module 'stem' must be given a Rule object"),
        ((Type("add"), Ratio), "type 'add' must be given a Rule object, a splitting"),
        ((nn.Conv2d, Gamma()), "a rule goes by a pattern of module paths.*got <class"),
        ((3, Gamma()), "a rule goes by a pattern of module paths.*got 3"),
        ("stem", r"rules must be pairs \(where, rule\), got 'stem'"),
        (Epsilon(), r"rules must be pairs \(where, rule\)"),
    ],
)
def test_what_is_no_rule_is_refused_where_it_is_given(rule, message):
    with pytest.raises(InputError, match=message):
        BASE.prepend(rule)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ((Type("relu"), Gamma()), r"type 'relu' gives Gamma.* to 'relu' \(a Activation\).*not what it is for"),
        ((Type("add"), Pass()), r"type 'add' gives Pass.* to 'add' \(a Join\).*joins take a splitting"),
        ((Type("relu"), Ratio()), r"type 'relu' gives Ratio"),
        ((Type("relu"), Gates()), r"type 'relu' gives Gates"),
        ((First(), Ratio()), r"first linear operation gives Ratio"),
        ((Type("flatten"), Pass()), r"type 'flatten' gives Pass.*not what it is for"),
    ],
)
def test_a_rule_for_other_operations_is_an_error(tiny, images, rule, message):
    network = nn.Sequential(tiny, nn.Flatten()) if rule[0] == Type("flatten") else tiny
    with pytest.raises(InputError, match=message):
        hw.LRP(network, BASE.prepend(rule))(images)


@pytest.mark.parametrize("name", hw.list_composites())
def test_presets_serve_networks_that_lack_what_they_name(name):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    if name == "doublet2024":
        with pytest.warns(UserWarning, match="has none"):
            hw.LRP(net, name)(torch.rand(1, 3, 4, 4))
    else:
        hw.LRP(net, name)(torch.rand(1, 3, 4, 4))


# -- what could not be reached, and can -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        ("block*", Symmetric()),
        (Type("add"), Symmetric()),
        (Type("join"), Symmetric()),
        (lambda place: place.category == "join", Symmetric()),
        ("block*", Split(Symmetric(), (True, True))),
    ],
)
def test_joins_can_be_named(tiny, images, rule):
    expected = hw.LRP(tiny, "otsuki2024-ii")(images)
    assert torch.equal(hw.LRP(tiny, BASE.prepend(rule))(images).relevance, expected.relevance)


def test_one_join_of_two_and_identity_skips_left_out_there(tiny, images):
    flow = hw.LRP(tiny, BASE.prepend(("block2", Symmetric(identity_skips=False))))(images).flow
    assert (flow.joins[1].skip == 0).all()
    assert (flow.joins[0].skip > 0).all()


def test_a_rule_of_ones_own_for_joins(tiny, images):
    @dataclass(frozen=True)
    class Thirds(Rule):
        layers = Join

        def __call__(self, layer, weights, inputs, relevance):
            return [relevance / 3, relevance * 2 / 3]

    for mine in (BASE.prepend(("block*", Thirds())), BASE.prepend((Type("add"), Thirds()))):
        e = hw.LRP(tiny, mine)(images)
        assert (e.conservation.error < 1e-6).all()
        for join in e.flow.joins:
            torch.testing.assert_close(join.skip, torch.full((3,), 2 / 3))
        assert len(e.flow.joins) == 2
        assert not torch.allclose(e.heatmap, hw.LRP(tiny)(images).heatmap)
    with pytest.raises(InputError, match="not for 'add', which joins branches"):
        hw.register_rule("add", Pass())
    by_hand = hw.LRP(tiny, mine)(images).relevance
    hw.register_rule("add", Thirds())
    last = Composite("mine", [e for e in BASE.entries if e.where != Type("join")])
    assert torch.equal(hw.LRP(tiny, last)(images).relevance, by_hand)


@pytest.mark.parametrize("which", ["residual", "TinyBlock"])
def test_blocks_can_be_named(tiny, images, which):
    base = DOUBLET.prepend((Blocks(which), Gradient()))
    one = base.prepend(("block1", Gradient(0.1)))
    both = DOUBLET.prepend((Blocks(which), Gradient(0.1)))
    maps = [hw.LRP(tiny, c)(images, target=0).relevance for c in (base, one, both)]
    assert not torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[1], maps[2])
    with pytest.raises(InputError, match="lies inside the block 'block1', which is one layer"):
        hw.LRP(tiny, base.prepend(("block1.conv1", Gamma())))(images)
    with pytest.raises(InputError, match="it fits the block 'block1'; Gamma"):
        hw.LRP(tiny, base.prepend(("block1", Gamma())))(images)


# -- registrations ----------------------------------------------------------------------------------------------------


def test_a_rule_registered_after_the_first_call_counts_from_the_next_one(tiny, images):
    lrp = hw.LRP(tiny)
    before = lrp(images).relevance
    hw.register_rule("batch_norm", Gradient())
    after = lrp(images).relevance
    assert not torch.equal(before, after)
    assert torch.equal(after, hw.LRP(tiny)(images).relevance)
    hw.unregister_rule("batch_norm")
    assert torch.equal(lrp(images).relevance, before)


def test_a_layer_registered_after_the_first_call_counts_from_the_next_one(images):
    class Halved(Elementwise):
        category = "halved"

    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).eval()
    net(images)
    lrp = hw.LRP(net)
    lrp(images)
    try:
        hw.register_layer(Halved, "tanh")
        with pytest.raises(InputError, match=r"no rule for 'tanh' \(category 'halved'\)"):
            lrp(images)
    finally:
        hw.register_layer(Elementwise, "tanh")
    lrp(images)


def test_a_method_notices_registrations_too(tiny, images):
    method = hw.load_method("c3-lrp", tiny)
    before = method(images, 0).heatmap
    hw.register_rule("TinyBlock", Gradient(0.1))
    assert not torch.equal(method(images, 0).heatmap, before)


def test_printing_a_composite_shows_registrations_that_it_does_not_override():
    hw.register_rule("relu", Gradient())
    hw.register_rule("Squash", Follow())
    assert "registered 'relu'       Gradient" in str(BASE)
    assert "registered 'Squash'     Follow" in str(BASE)
    assert "registered 'relu'" not in str(BASE.prepend((Type("relu"), Pass())))


def test_what_was_not_registered_cannot_be_forgotten():
    hw.register_rule("Squash", Follow())
    with pytest.raises(InputError, match="no rule is registered for 'Squish'; there are Squash"):
        hw.unregister_rule("Squish")


# -- subclasses -------------------------------------------------------------------------------------------------------


def test_a_subclass_of_zplus_stays_what_it_is(tiny, images):
    class Doubled(ZPlus):
        def __call__(self, layer, weights, inputs, relevance):
            return [2 * share for share in super().__call__(layer, weights, inputs, relevance)]

    mine = BASE.prepend(("head", Doubled()))  # its input is never negative
    plain, doubled = hw.LRP(tiny)(images), hw.LRP(tiny, mine)(images)
    torch.testing.assert_close(doubled.relevance, 2 * plain.relevance)


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_inside_a_branch_is_no_cut(tiny, images):
    account = hw.LRP(tiny)(images, checkpoints=["block1.conv2", "block2", "head"]).conservation
    assert account.cuts == ("block2", "head")
    assert list(account.checkpoint_errors) == ["block2", "head"]
    assert all((error < 1e-6).all() for error in account.checkpoint_errors.values())
    share = account.checkpoints["block1.conv2"] / account.seed
    assert ((share > 0) & (share < 1)).all(), "the sum is still there: the branch's share"
    one = hw.LRP(tiny)(images, checkpoints=["block1.conv2", "head"]).select(1).conservation
    assert one.cuts == ("head",)


def test_a_branch_is_a_cut_where_its_skip_gets_nothing(tiny, images):
    account = hw.LRP(tiny, "otsuki2024-iii")(images, checkpoints=["block1.conv2", "block2.conv2"]).conservation
    assert account.cuts == ("block2.conv2",)  # block1 has a projected skip, which takes part
    assert (account.checkpoint_errors["block2.conv2"] < 1e-6).all()


def test_every_cut_of_the_graph_is_one(tiny, images):
    account = hw.LRP(tiny)(images, checkpoints="cuts").conservation
    assert set(account.cuts) == set(account.checkpoints) == set(account.checkpoint_errors)
