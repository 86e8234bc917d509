"""Rules by contributions of both signs: the threshold, conservation at every unit, bounded amplification."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from helpers import TinyResidual, linear_layer, settle
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import headwater as hw
from headwater.composites import Type
from headwater.engine.linear_layers import Linear
from headwater.errors import ConservationWarning, InputError
from headwater.rules import AlphaBeta, Epsilon, Gamma, LinearRule, ZPlus

# Two outputs of five inputs. The first one's contributions are 4, -4, 0.9, 0, 0: their sum is 0.9 of 8.9 (0.101); the
# second one's are 4, -4, 0.8, 0, 0: 0.8 of 8.8 (0.0909).
DENSE = nn.Linear(5, 2, bias=False).double()
DENSE.weight.data = torch.tensor([[4.0, 4.0, 0.9, 0.0, 2.0], [4.0, 4.0, 0.8, 3.0, 0.0]], dtype=torch.float64)
H = torch.tensor([[1.0, -1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)


def apply(rule: LinearRule, module: nn.Module, h: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    layer = linear_layer(module, h)
    with torch.no_grad():
        return rule(layer, rule.prepare(layer.weight, layer.bias), [h], r)[0]


def test_an_output_whose_contributions_cancel_hands_on_by_the_fallback():
    rule, first, second = Epsilon(eps=0.0), torch.eye(2).double()[:1], torch.eye(2).double()[1:]
    torch.testing.assert_close(apply(rule, DENSE, H, first), torch.tensor([[4, -4, 0.9, 0, 0]]).double() / 0.9)
    torch.testing.assert_close(apply(rule, DENSE, H, second), torch.full((1, 5), 0.2).double())
    plain = torch.tensor([[4, -4, 0.8, 0, 0]]).double() / 0.8
    torch.testing.assert_close(apply(replace(rule, threshold=0.0), DENSE, H, second), plain)
    torch.testing.assert_close(apply(replace(rule, threshold=0.2), DENSE, H, first), torch.full((1, 5), 0.2).double())


def test_gamma_judges_its_own_contributions():
    # 4 (1 + g), -4 and 0.8 (1 + g): with g = 0.25 the sum is 2 of 10
    shares = apply(Gamma(0.25, eps=0.0), DENSE, H, torch.eye(2).double()[1:])
    torch.testing.assert_close(shares, torch.tensor([[5.0, -4, 1, 0, 0]]).double() / 2)
    shares = apply(Gamma(0.25, eps=0.0, threshold=0.21), DENSE, H, torch.eye(2).double()[1:])
    torch.testing.assert_close(shares, torch.full((1, 5), 0.2).double())


@pytest.mark.parametrize("rule", [Epsilon(eps=0.0), Gamma(0.25, eps=0.0)])
def test_averages_are_judged_too(rule):
    h = torch.tensor([[[[1.0, -1.01], [0.5, 0.5]]]], dtype=torch.float64)
    shares = apply(rule, nn.AvgPool2d((1, 2)), h, torch.ones(1, 1, 2, 1).double())
    weight = torch.where(h > 0, 1.25, 1.0) if isinstance(rule, Gamma) else torch.ones_like(h)
    total = (h * weight).sum(3, True)
    expected = h * weight / total
    if isinstance(rule, Epsilon):  # -0.01 of 2.01
        expected[0, 0, 0] = 0.5
    torch.testing.assert_close(shares, expected)


def test_the_textbook_rule_and_a_rule_without_fallback_have_no_threshold():
    module = nn.Linear(5, 2).double()
    module.load_state_dict({"weight": DENSE.weight, "bias": torch.tensor([0.1, 0.2])})
    r = torch.ones(1, 2).double()
    for rule in (Epsilon(bias=True), Epsilon(fallback=False), Gamma(fallback=False)):
        assert torch.equal(apply(rule, module, H, r), apply(replace(rule, threshold=0.0), module, H, r))


def test_what_is_no_threshold_or_stabiliser_is_refused():
    for threshold in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="threshold must be at least 0 and below 1"):
            Gamma(threshold=threshold)
    with pytest.raises(InputError, match="eps is added to denominators"):
        ZPlus(eps=-1e-6)


def test_a_rule_prints_as_it_would_be_constructed():
    assert repr(Gamma(0.5)) == "Gamma(gamma=0.5, eps=1e-06, fallback=True, threshold=0.1)"
    assert repr(ZPlus()) == "ZPlus(eps=0.0, fallback=True, signed=True)"


@dataclass(frozen=True)
class Case:
    """A layer, the shapes of its input and output for one image, and how many values a unit of each touches."""

    layer: Linear
    weight: tuple[int, ...] | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    fan_in: int
    fan_out: int


def case(module: nn.Module, inputs: tuple[int, ...], fan_in: int, fan_out: int) -> Case:
    h = torch.zeros(1, *inputs)
    weight = next((tuple(p.shape) for p in module.parameters()), None)
    return Case(linear_layer(module, h), weight, inputs, tuple(module(h).shape[1:]), fan_in, fan_out)


CASES = {
    "dense": case(nn.Linear(5, 4, bias=False), (5,), 5, 4),
    "convolution": case(nn.Conv2d(2, 3, 3, 2, 1, bias=False), (2, 4, 3), 18, 12),
    "depthwise": case(nn.Conv2d(2, 2, 2, bias=False, groups=2), (2, 3, 3), 4, 4),
    "average": case(nn.AvgPool2d(2), (2, 4, 4), 4, 1),
}
RULES = (Epsilon(), Epsilon(eps=0.0), Epsilon(1e-3), Gamma(0.25), Gamma(1.0, eps=0.0), AlphaBeta(), AlphaBeta(1.5, 0.5))
NUMBERS = st.floats(-4, 4, width=16)  # products of these do not underflow in float32


def tensor(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(NUMBERS, min_size=count, max_size=count)), dtype=dtype).view(shape)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
def test_every_unit_hands_on_what_it_receives_and_amplifies_within_its_bound(name, data):
    """Exactly but for rounding, whose bound comes from the length of the sums.

    With u the unit roundoff, a denominator is wrong by fan_in u sum|z_ij|, a sum over the outputs of an input by
    fan_out u of its terms, and what is multiplied once is rounded once: fewer than 12 such roundings. All of that is
    relative to the absolute shares, which are at most ``bound`` times what the units received.
    """
    case, rule = CASES[name], data.draw(st.sampled_from(RULES))
    dtype = data.draw(st.sampled_from((torch.float32, torch.float64)))
    h = tensor(data.draw, (1, *case.inputs), dtype)
    w = None if case.weight is None else tensor(data.draw, case.weight, dtype)
    r = tensor(data.draw, (1, *case.outputs), dtype)
    (shares,) = rule(case.layer, rule.prepare(w, None), [h], r)
    bound = rule.alpha + rule.beta if isinstance(rule, AlphaBeta) else 1 / rule.threshold
    received = r.double().abs().sum().item()
    rounding = (case.fan_in + case.fan_out + 12) * torch.finfo(dtype).eps / 2 * bound
    assert shares.isfinite().all()
    assert abs(shares.double().sum().item() - r.double().sum().item()) <= rounding * received
    assert shares.double().abs().sum().item() <= bound * received * (1 + rounding)


class Deep(nn.Module):
    """Thirty convolutions whose inputs have both signs, where nothing but a threshold keeps relevance bounded."""

    def __init__(self) -> None:
        super().__init__()
        layers = [m for _ in range(30) for m in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.5))]
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 3), *layers), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize("rule", [Gamma(0.25), AlphaBeta(), Epsilon(), Epsilon(1e-3)], ids=str)
@pytest.mark.parametrize("make", [Deep, TinyResidual])
def test_a_network_conserves_at_the_image_and_at_every_cut(rule, make):
    torch.manual_seed(0)
    model, x = settle(make()), torch.randn(2, 3, 12, 12)
    composite = hw.load_composite("otsuki2024").prepend((Type("linear"), rule), (Type("average"), rule), name="signed")
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        e = hw.LRP(model.to(dtype), composite)(x.to(dtype), checkpoints="cuts")
        assert max(float(error.max()) for error in e.conservation.checkpoint_errors.values()) < limit


def test_without_threshold_rounding_takes_over():
    """What the threshold is for: the same deep network with the textbook rule."""
    torch.manual_seed(0)
    textbook = (Type("linear"), Epsilon(eps=0.0, threshold=0.0))
    composite = hw.load_composite("otsuki2024").prepend(textbook, name="textbook")
    with pytest.warns(ConservationWarning, match="'textbook' did not conserve"):
        e = hw.LRP(settle(Deep()), composite)(torch.randn(2, 3, 12, 12))
    assert not (e.conservation.error < 1e-3).any()
