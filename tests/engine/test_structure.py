"""Places in a network, found from its list of operations."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from helpers import TinyResidual, no_registrations, settle
from torch import nn

import headwater as hw
from headwater.composites import Blocks
from headwater.engine.graph import Graph
from headwater.engine.structure import ResidualBlock, Structure, layers_of
from headwater.engine.trace import trace
from headwater.errors import InputError
from headwater.experiments.conservation import block_inputs
from headwater.rules import Gradient


def structure(model: nn.Module, size: int = 16) -> Structure:
    graph: Graph = trace(model.eval(), torch.zeros(1, 3, size, size))
    return Structure(graph, layers_of(graph))


def blocks(model: nn.Module, size: int = 16) -> tuple[ResidualBlock, ...]:
    return structure(model, size).residual_blocks()


class Wired(nn.Module):
    """A stem, what ``wire`` makes of its value with four convolutions at hand, and a head."""

    def __init__(self, wire):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.wire = wire

    def forward(self, x):
        return self.head(self.wire(self.stem(x).relu(), *self.convs).mean((2, 3)))


# -- joins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "joins"),
    [
        (lambda h, a, b, c, d: a(h) + h, 1),
        (lambda h, a, b, c, d: h - a(h), 1),
        (lambda h, a, b, c, d: h + h, 0),
        (lambda h, a, b, c, d: a(h) + 1, 0),
        (lambda h, a, b, c, d: torch.cat([a(h), h], 1)[:, :4], 0),
    ],
)
def test_a_join_adds_or_subtracts_different_values(wire, joins):
    model = Wired(wire)
    assert len(structure(model).joins) == joins
    assert len(hw.LRP(model)(torch.rand(2, 3, 16, 16)).flow.joins) == joins


def test_a_block_that_subtracts_is_the_conservation_figures_block_too():
    model = Wired(lambda h, a, b, c, d: h - a(h)).eval()
    graph = hw.LRP(model).graph(torch.zeros(1, 3, 16, 16))
    (join,) = Structure(graph, layers_of(graph)).joins
    first, last = block_inputs(graph)
    assert first == last == structure(model).residual_blocks()[0].entry
    assert join not in (first, last)


# -- residual blocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [torchvision.models.resnet18, torchvision.models.resnet50])
def test_the_blocks_of_a_resnet_are_its_modules(make):
    model = make(num_classes=2)
    graph = trace(model.eval(), torch.zeros(1, 3, 32, 32))
    found = Structure(graph, layers_of(graph)).residual_blocks()
    expected = {
        path: [o.name for o in graph.operations if any(call.path == path for call in o.calls)]
        for path, module in model.named_modules()
        if type(module).__name__ in ("BasicBlock", "Bottleneck")
    }
    assert {block.path: list(block.operations) for block in found} == expected


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [("mobilenet_v2", 32, 10), ("mobilenet_v3_small", 32, 6), ("mnasnet0_5", 32, 10), ("convnext_tiny", 32, 18)],
)
def test_the_blocks_of_other_residual_networks(name, size, count):
    """Of MobileNets, those whose shapes allow a skip; each holds all from its input to its join."""
    model = torchvision.models.get_model(name, num_classes=2)
    found = blocks(model, size)
    assert len(found) == count
    assert all(block.path.startswith(("features.", "layers.")) for block in found)


@pytest.mark.parametrize(
    ("name", "count"),
    [("efficientnet_lite0", 9), ("res2net50_26w_4s", 16), ("gcresnext26ts", 8)],
)
def test_the_blocks_of_timms_networks(name, count):
    """Without an activation after the join; with joins, or additive attention, inside of the block."""
    timm = pytest.importorskip("timm")
    assert len(blocks(timm.create_model(name, num_classes=2), 32)) == count


def test_a_block_ends_with_the_activation_right_after_its_join():
    layers = structure(TinyResidual())
    kinds = [[layers.producers[name].operation.kind for name in block.operations] for block in layers.residual_blocks()]
    assert kinds[0] == ["conv2d", "batch_norm", "relu", "conv2d", "batch_norm", "conv2d", "add", "relu"]
    assert kinds[1] == ["conv2d", "batch_norm", "relu", "conv2d", "batch_norm", "add", "relu"]


def test_an_activation_of_the_next_branch_alone_is_not_the_blocks():
    """With pre-activation the sum itself goes on through the skip."""

    def wire(h, a, b, c, d):
        for conv in (a, b):
            h = h + conv(h.relu())
        return h

    layers = structure(Wired(wire))
    found = layers.residual_blocks()
    assert [len(block.operations) for block in found] == [3, 3]
    assert [layers.producers[block.operations[-1]].operation.kind for block in found] == ["add", "add"]


@pytest.mark.parametrize(
    ("wire", "sizes"),
    [
        (lambda h, a, b, c, d: a(h) + b(h), []),  # no skip: both are as long
        (lambda h, a, b, c, d: b(a(h)) + c(h), [4]),
        (lambda h, a, b, c, d: h + (t := a(h)) + b(t), [4]),  # neither join alone: t leaves the first
        (lambda h, a, b, c, d: h + b((t := a(h)) + c(t)), [5]),  # a skip inside of the branch
        (lambda h, a, b, c, d: h + d((t := a(h) + h) + b(t)), [2, 2]),  # two in the branch
        (lambda h, a, b, c, d: h + ((t := h + a(h).relu()) + b(t).relu()), [3, 3]),  # a skip around a stage of two
    ],
)
def test_branches_that_make_a_block(wire, sizes):
    found = blocks(Wired(wire))
    assert [len(block.operations) for block in found] == sizes
    names = [name for block in found for name in block.operations]
    assert len(set(names)) == len(names)


# -- C3-LRP -----------------------------------------------------------------------------------------------------------


def test_c3_lrp_takes_its_blocks_whatever_their_class_is_called():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    named = torchvision.models.resnet18(num_classes=4).eval()
    renamed = torchvision.models.resnet18(num_classes=4).eval()
    renamed.load_state_dict(named.state_dict())
    renamed_class = type("MyBlock", (torchvision.models.resnet.BasicBlock,), {})
    for module in renamed.modules():
        if isinstance(module, torchvision.models.resnet.BasicBlock):
            module.__class__ = renamed_class
    by_class = hw.load_composite("doublet2024").prepend((Blocks("BasicBlock"), Gradient()))
    expected = hw.LRP(named, by_class)(x, target=1).relevance
    assert torch.equal(hw.LRP(named, "doublet2024")(x, target=1).relevance, expected)
    assert torch.equal(hw.LRP(renamed, "doublet2024")(x, target=1).relevance, expected)
    for name in ("c3-lrp", "c1c-lrp"):
        assert torch.equal(hw.load_method(name, renamed)(x, 1).heatmap, hw.load_method(name, named)(x, 1).heatmap)


def test_a_block_from_the_graph_is_eq_1(tiny, images):
    """The same as naming the class; tests/engine/test_lrp.py compares that with the equation."""
    by_class = hw.load_composite("doublet2024").prepend((Blocks("TinyBlock"), Gradient()))
    expected = hw.LRP(tiny, by_class)(images, target=0)
    found = hw.LRP(tiny, "doublet2024")(images, target=0)
    assert torch.equal(found.relevance, expected.relevance)


def test_a_network_without_blocks_is_said():
    model, x = (
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval(),
        torch.rand(1, 3, 8, 8),
    )
    with pytest.warns(UserWarning, match="'doublet2024'.*this network has none: every operation"):
        hw.LRP(model, "doublet2024")(x)
    with pytest.raises(InputError, match=r"this network has none; leave Blocks\('residual'\) out"):
        hw.LRP(model, hw.load_composite("epsilon").prepend((Blocks("residual"), Gradient())))(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hw.LRP(settle(TinyResidual()), "doublet2024")(torch.rand(1, 3, 16, 16))


def test_a_class_that_was_registered_goes_before_what_is_found_around_it_only_if_it_holds_it(tiny, images):
    plain = hw.LRP(tiny, "doublet2024")(images, target=0).relevance

    def found(name):
        with no_registrations(), warnings.catch_warnings():
            hw.register_rule(name, Gradient(0.1))
            warnings.simplefilter("error")
            return hw.LRP(tiny, "doublet2024")(images, target=0).relevance

    assert not torch.equal(found("TinyBlock"), plain)
    tiny.block1.conv1.__class__ = type("Inner", (nn.Conv2d,), {})
    assert torch.equal(found("Inner"), plain)


def test_skips_through_a_block_with_weights_are_no_identity(tiny):
    """What a block computes is not known to be the identity, whatever its last operation is."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.main, self.side = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 4, 1),
                nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()),
            )
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            h = self.stem(x).relu()
            return self.head((self.main(h).relu() + self.side(h)).mean((2, 3)))

    composite = hw.load_composite("otsuki2024-iii").prepend((Blocks("side"), Gradient()))
    (join,) = hw.LRP(Net().eval(), composite)(torch.rand(1, 3, 8, 8)).flow.joins
    assert (join.relevance != 0).all()
