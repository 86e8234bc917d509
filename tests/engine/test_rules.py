"""Every rule against the sum over units written out, on a dense layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import linear_layer
from torch import nn

from headwater.engine import linear_rules
from headwater.engine.linear_layers import Average
from headwater.engine.trace import trace
from headwater.errors import InputError
from headwater.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    MeanPool,
    WinnerTakesAll,
    WPlus,
    WSquare,
    ZBox,
    ZPlus,
)

torch.manual_seed(3)
LAYER = nn.Linear(6, 4).double()
H = torch.randn(2, 6, dtype=torch.float64)
R = torch.randn(2, 4, dtype=torch.float64)
LAYER.weight.data[:, 0].abs_()  # every unit has a positive weight
W = LAYER.weight.detach()


def apply(rule, module=LAYER, h=H, r=R):
    layer = linear_layer(module, h)
    with torch.no_grad():
        return rule(layer, rule.prepare(layer.weight, layer.bias), [h], r)[0]


def closed_form(contribution, eps=0.0):
    """R_i = sum_j z_ij / (sum_i z_ij + eps) R_j with z_ij written out as (N, j, i)."""
    z = contribution(H[:, None, :], W[None])
    z = z.expand(len(H), 4, 6)
    total = z.sum(2, keepdim=True)
    total = total + torch.where(total < 0, -eps, eps)
    return (z / total * R[:, :, None]).sum(1)


RULES = {
    "z+": (ZPlus(), lambda h, w: (h * w).clamp(min=0)),
    "z+ unsigned": (ZPlus(signed=False), lambda h, w: h * w.clamp(min=0)),
    "w+": (WPlus(), lambda h, w: w.clamp(min=0)),
    "flat": (Flat(), lambda h, w: torch.ones_like(w)),
    "w2": (WSquare(), lambda h, w: w**2),
    "zbox": (ZBox(-3.0, 3.0), lambda h, w: h * w + 3 * w.clamp(min=0) - 3 * w.clamp(max=0)),
    "gamma": (Gamma(0.5, eps=0.0, threshold=0.0), lambda h, w: h * w + 0.5 * (h * w).clamp(min=0)),
    "epsilon 0": (Epsilon(eps=0.0, threshold=0.0), lambda h, w: h * w),
    "alpha 1 beta 0": (AlphaBeta(1.0, 0.0), lambda h, w: (h * w).clamp(min=0)),
}


@pytest.mark.parametrize("name", RULES)
def test_rule_equals_its_equation(name):
    rule, contribution = RULES[name]
    torch.testing.assert_close(apply(rule), closed_form(contribution))


@pytest.mark.parametrize("name", RULES)
def test_rule_conserves_the_sum_at_every_unit(name):
    for unit in range(4):
        one = torch.zeros_like(R)
        one[:, unit] = R[:, unit]
        torch.testing.assert_close(apply(RULES[name][0], r=one).sum(1), one.sum(1))


def test_epsilon_takes_its_part_with_the_sign_of_the_denominator_and_hands_it_on():
    plain = closed_form(lambda h, w: h * w, eps=0.1)
    torch.testing.assert_close(apply(Epsilon(eps=0.1, fallback=False)), plain)
    torch.testing.assert_close(apply(Epsilon(eps=0.1, threshold=0.0)).sum(1), R.sum(1))


def test_textbook_epsilon_lets_the_bias_absorb():
    z = H[:, None, :] * W[None]
    total = z.sum(2) + LAYER.bias.detach()
    expected = (z / total[..., None] * R[..., None]).sum(1)
    torch.testing.assert_close(apply(Epsilon(eps=0.0, bias=True)), expected)


@pytest.mark.parametrize("module", [LAYER, nn.AdaptiveAvgPool1d(2).double()])
def test_alpha_beta_for_inputs_that_are_not_negative_is_the_same_at_half_the_cost(module):
    rule, h = AlphaBeta(), H.abs()
    with torch.no_grad():
        r = torch.rand_like(module(h))
    assert rule.for_nonnegative() == AlphaBeta(signed=False)
    torch.testing.assert_close(apply(rule.for_nonnegative(), module, h, r), apply(rule, module, h, r))


def test_alpha_beta_weighs_positive_against_negative():
    z = H[:, None, :] * W[None]
    up, down = z.clamp(min=0), z.clamp(max=0)
    expected = ((2 * up / up.sum(2, True) - down / down.sum(2, True)) * R[..., None]).sum(1)
    torch.testing.assert_close(apply(AlphaBeta(2.0, 1.0)), expected)
    with pytest.raises(InputError, match="alpha - beta = 1"):
        AlphaBeta(2.0, 2.0)


@pytest.mark.parametrize("rule", [ZPlus(), ZPlus(signed=False), Epsilon(), Gamma(), AlphaBeta(), ZBox(0.0, 0.0)])
def test_a_unit_that_nothing_contributes_to_hands_on_in_equal_parts(rule):
    shares = apply(rule, h=torch.zeros_like(H))
    torch.testing.assert_close(shares, (R.sum(1, keepdim=True) / 6).expand(2, 6))


@pytest.mark.parametrize("rule", [ZPlus(), AlphaBeta(), WPlus()])
@pytest.mark.parametrize("blank", [(), (slice(0, 3), 0), (slice(None), slice(None), slice(2, 9), slice(2, 9))])
def test_outputs_too_many_to_follow_their_rounding_hand_on_all_and_by_the_same_shares(rule, blank, monkeypatch):
    module = nn.Conv2d(4, 64, 3, padding=1)
    random = torch.Generator().manual_seed(5)
    h, r = torch.randn(3, 4, 16, 16, generator=random), torch.randn(3, 64, 16, 16, generator=random)
    if blank:
        h[blank] = 0  # so that some units, or none, have nothing to share by
    assert r[0].numel() >= linear_rules._MANY
    shares = apply(rule, module, h, r)
    # A sum over 36 inputs errs by up to half an ulp for each, and the errors of outputs add up like random numbers.
    rounding = 36 * torch.finfo(r.dtype).eps / 2 * r.flatten(1).norm(dim=1).max().item()
    torch.testing.assert_close(shares.double().sum((1, 2, 3)), r.double().sum((1, 2, 3)), atol=rounding, rtol=0)
    monkeypatch.setattr(linear_rules, "_MANY", 10**9)
    torch.testing.assert_close(shares, apply(rule, module, h, r))


@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("fallback", [True, False])
def test_an_operation_that_returns_a_view_keeps_its_input(size, fallback):
    class Windows(nn.Module):
        def forward(self, x):
            return x.unfold(3, 4, 4)

    operation = trace(Windows(), torch.rand(2, 3, size, size)).operations[-1]
    layer, h = Average(operation, lambda leaf: leaf), 1 + torch.rand(2, 3, size, size)
    r, before = torch.randn(2, 3, size, size // 4, 4), h.clone()
    with torch.no_grad():
        (shares,) = ZPlus(fallback=fallback, signed=False)(layer, (None,), [h], r)
    torch.testing.assert_close(shares, r.flatten(3))
    assert torch.equal(h, before)


def test_outputs_of_several_images_are_not_counted_together():
    with torch.no_grad():
        assert not any(linear_rules._many(torch.rand(*shape)) for shape in ((17, 1000), (17, 1000, 1, 1), (9, 50, 64)))
        assert linear_rules._many(torch.rand(1, 64, 16, 16))
    assert not linear_rules._many(torch.rand(1, 64, 16, 16)), "gradients may be wanted"


def test_shares_of_parts_that_lack_some_leave_it_to_the_fallback():
    class Half(ZPlus):
        def parts(self, h, prepared):
            return [replace(part, share=0.5) for part in super().parts(h, prepared)]

    torch.testing.assert_close(apply(Half()).sum(1), R.sum(1))


def test_without_fallback_such_a_unit_loses_its_relevance():
    assert (apply(ZPlus(eps=1e-5, fallback=False, signed=False), h=torch.zeros_like(H)) == 0).all()


def test_a_kernel_without_positive_weight_does_not_lose_relevance():
    conv = nn.Conv2d(3, 2, 3, padding=1).double()
    with torch.no_grad():
        conv.weight[0] = -conv.weight[0].abs()
    h = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    r = torch.rand(2, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(apply(ZPlus(), conv, h, r).sum((1, 2, 3)), r.sum((1, 2, 3)))


def test_zbox_takes_bounds_by_channel_and_counts_them():
    conv = nn.Conv2d(3, 2, 1).double()
    h = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    r = torch.ones(1, 2, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(apply(ZBox((0.0, -1, -2), (1.0, 1, 1)), conv, h, r).sum(), r.sum())
    with pytest.raises(InputError, match="2 bounds for an input of 3 channels"):
        apply(ZBox((0.0, 1.0), (1.0, 1.0)), conv, h, r)


def pool_layer(pool, h):
    from headwater.engine.layer_table import layer_for
    from headwater.engine.trace import trace

    return layer_for(trace(pool, h).operations[-1], lambda leaf: leaf)


def test_winner_takes_all():
    h = torch.tensor([[1.0, 5, 2], [0, 3, 4], [7, 0, 0]]).view(1, 1, 3, 3)
    layer = pool_layer(nn.MaxPool2d(2, 1), h)
    (share,) = WinnerTakesAll()(layer, (), [h], torch.tensor([[1.0, 2], [4, 8]]).view(1, 1, 2, 2))
    assert share.view(3, 3).tolist() == [[0, 3, 0], [0, 0, 8], [4, 0, 0]]


def test_mean_pool_spreads_by_value_and_refuses_windows_that_do_not_fit():
    h = torch.tensor([[1.0, 3], [0, 4]]).view(1, 1, 2, 2)
    layer = pool_layer(nn.MaxPool2d(2), h)
    (share,) = MeanPool(eps=0.0)(layer, (), [h], torch.tensor([8.0]).view(1, 1, 1, 1))
    torch.testing.assert_close(share.view(4), torch.tensor([1.0, 3, 0, 4]))
    h = torch.rand(1, 1, 9, 9)
    layer = pool_layer(nn.MaxPool2d(5, 1), h)
    with pytest.raises(InputError, match="WinnerTakesAll"):
        MeanPool()(layer, (), [h], torch.ones(1, 1, 5, 5))


def test_gradient_rule_is_gradient_times_input_over_output():
    block = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    h = H.clone().requires_grad_()
    output = block(h)
    stable = (R / (output + 1e-6 * output.sign())).detach()
    (expected,) = torch.autograd.grad((output * stable).sum(), h)
    shares = Gradient(eps=1e-6)(type("Stub", (), {"run": staticmethod(lambda inputs: block(*inputs))}), (), [H], R)
    torch.testing.assert_close(shares[0].detach(), (expected * h).detach())
