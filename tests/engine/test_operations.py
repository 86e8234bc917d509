"""Relevance is conserved through every supported operation, at every cut, and images stay apart."""

from __future__ import annotations

import pytest
import torch
from helpers import no_registrations, settle
from torch import nn
from torch.nn import functional as f

import headwater as hw
from headwater.composites import Composite, First, Gates, Type
from headwater.engine.rules import Gradient, Pass, Rule
from headwater.errors import InputError, TraceError, UnsupportedOperationError


class Net(nn.Module):
    """A convolution, an operation on its (signed) result, and a linear head."""

    def __init__(self, function, *modules, channels=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.function = function
        self.parts = nn.ModuleList(modules)
        self.head = nn.LazyLinear(5)

    def forward(self, x):
        return self.head(self.function(self.stem(x), *self.parts).flatten(1))


def attention(h, qkv, out, mask=None):
    n, c = h.shape[:2]
    q, k, v = qkv(h.flatten(2).mT).unflatten(-1, (3, 2, c // 2)).permute(2, 0, 3, 1, 4)
    h = f.scaled_dot_product_attention(q, k, v, mask)
    return out(h.mT.reshape(n, -1, c))


def shifted(h):
    return torch.roll(h.permute(0, 2, 3, 1), (1, 2), (1, 2))


def write_over(h):
    h = h * 1.0
    h[:, :2] = h[:, 2:4].relu()
    return h


def with_token(h, token):
    return torch.cat([token.weight.expand(len(h), 1, -1), h.flatten(2).mT], 1)


def without_autocast(h, conv):
    with torch.autocast("cpu", enabled=False):
        return conv(h).relu()


def windows(h, conv):
    """Six windows an image, counted with the images."""
    cut = h.view(-1, 8, 3, 4, 2, 5).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8, 4, 5)
    return conv(cut).relu().view(-1, 6 * 8, 4, 5)


OPERATIONS = {
    **{
        type(module).__name__: Net(lambda h, m: m(h), module)
        for module in (
            *(nn.ReLU6(), nn.Hardswish(), nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.Mish(), nn.LeakyReLU(), nn.PReLU(8)),
            *(nn.ELU(), nn.Softplus(), nn.Hardsigmoid(), nn.Tanh(), nn.Hardtanh(-2, 2), nn.Identity(), nn.Dropout2d()),
            *(nn.GroupNorm(4, 8), nn.InstanceNorm2d(8, affine=True), nn.LayerNorm([8, 12, 10]), nn.BatchNorm2d(8)),
            *(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AdaptiveMaxPool2d(3), nn.AdaptiveAvgPool2d((5, 3))),
            *(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(4), nn.ZeroPad2d((1, 2, 0, 3))),
            *(
                nn.ReflectionPad2d(2),
                nn.ReplicationPad2d(1),
                nn.Upsample(scale_factor=2),
                nn.ConvTranspose2d(8, 4, 2, 2),
            ),
        )
    },
    "depthwise": Net(lambda h, m: m(h), nn.Conv2d(8, 8, 5, padding=2, groups=8)),
    "same padding": Net(lambda h, m: m(h), nn.Conv2d(8, 4, 4, padding="same")),
    "dilated": Net(lambda h, m: m(h), nn.Conv2d(8, 4, 3, dilation=3)),
    "average with padding": Net(lambda h, m: m(h), nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "bilinear": Net(lambda h: f.interpolate(h, (7, 9), mode="bilinear", align_corners=True)),
    "bilinear, antialiased": Net(lambda h: f.interpolate(h, (7, 9), mode="bilinear", antialias=True)),
    "bicubic": Net(lambda h: f.interpolate(h, (7, 9), mode="bicubic")),
    "bicubic, antialiased": Net(lambda h: f.interpolate(h, (7, 9), mode="bicubic", antialias=True)),
    "nearest exact": Net(lambda h: f.interpolate(h, (7, 9), mode="nearest-exact")),
    "unfold and fold": Net(lambda h: f.fold(f.unfold(h, 3, padding=1).relu(), (12, 10), 3, padding=1)),
    "largest channel": Net(lambda h: h.max(1, keepdim=True)[0]),
    "largest pixel": Net(lambda h: h.amax((2, 3))),
    "larger of two": Net(lambda h, a: torch.maximum(a(h), h), nn.Conv2d(8, 8, 1)),
    "larger of two halves": Net(lambda h: torch.max(*h.chunk(2, 1))),
    "a mode of its own": Net(without_autocast, nn.Conv2d(8, 8, 3)),
    "windows": Net(windows, nn.Conv2d(8, 8, 3, padding=1)),
    "concatenation": Net(lambda h, a, b: torch.cat([a(h), h, b(h)], 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 3, 1)),
    "chunks": Net(lambda h: (lambda a, b: torch.cat([b, a.relu()], 1))(*h.chunk(2, 1))),
    "split in three": Net(lambda h: torch.stack(h.split((2, 3, 3), 1)[1:]).sum(0)),
    "unbind": Net(lambda h: sum(h.unbind(1))),
    "slice and pad, a parameter-free shortcut": Net(
        lambda h, m: f.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + m(h), nn.Conv2d(8, 16, 3, 2, 1)
    ),
    "three branches": Net(lambda h, a, b: a(h) + b(h) + h, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)),
    "in-place join": Net(lambda h, a: a(h).add_(h), nn.Conv2d(8, 8, 1)),
    "torch.add with a factor": Net(lambda h, a: torch.add(a(h), h, alpha=0.5), nn.Conv2d(8, 8, 1)),
    "difference": Net(lambda h, a: h - a(h), nn.Conv2d(8, 8, 1)),
    "layer scale": Net(lambda h, a, s: h + s.weight.view(8, 1, 1) * a(h), nn.Conv2d(8, 8, 1), nn.Linear(8, 1, False)),
    "squeeze and excitation": Net(
        lambda h, a, b: h * b(a(h.mean((2, 3), True)).relu()).sigmoid(), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
    ),
    "spatial gate": Net(lambda h, a: a(h).sigmoid() * h + h, nn.Conv2d(8, 1, 1)),
    "gated unit": Net(lambda h, a, b: a(h) * b(h).sigmoid(), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)),
    "product of equals": Net(lambda h, a, b: a(h) * b(h), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)),
    "square": Net(lambda h: h * h),
    "normalised by its length": Net(lambda h: h / h.norm(dim=1, keepdim=True)),
    "attention": Net(attention, nn.Linear(8, 24), nn.Linear(8, 8)),
    "masked attention": Net(
        lambda h, qkv, out: attention(h, qkv, out, torch.zeros(120, 120).fill_diagonal_(-torch.inf)),
        nn.Linear(8, 24),
        nn.Linear(8, 8),
    ),
    "boolean mask": Net(
        lambda h, qkv, out: attention(h, qkv, out, ~torch.eye(120, dtype=torch.bool)), nn.Linear(8, 24), nn.Linear(8, 8)
    ),
    "class token": Net(with_token, nn.Linear(8, 1)),
    "roll and permute": Net(shifted),
    "written over": Net(write_over),
    "einsum": Net(lambda h, a: torch.einsum("nchw,ndhw->ncd", h, a(h).softmax(1)), nn.Conv2d(8, 3, 1)),
}


def to(gates):
    """Who gets the relevance of products."""
    return (Type("product"), Gates(gates)), (Type("matrix_product"), Gates(gates))


@pytest.mark.parametrize(
    ("name", "gates"),
    [
        (name, gates)
        for name in OPERATIONS
        for gates in ("features", "half")
        if (name, gates) != ("normalised by its length", "half")  # the length has no rule, so it can have no half
    ],
)
def test_operation_conserves_and_keeps_images_apart(name, gates):
    torch.manual_seed(0)
    net = OPERATIONS[name]
    x = torch.randn(3, 3, 12, 10)
    net.eval()(x)
    settle(net)
    lrp = hw.LRP(net, hw.load_composite("otsuki2024").prepend(*to(gates), strict=False))
    e = lrp(x, checkpoints="cuts")
    assert e.relevance.isfinite().all()
    assert len(e.conservation.checkpoints) >= 4
    # In single precision, sums of terms of one sign: errors up to 3.3e-7 with torch's plain, AVX2 and AVX-512 kernels,
    # with oneDNN and without; another order of additions takes a sixth of the map's tolerance below.
    for cut, error in e.conservation.checkpoint_errors.items():
        assert (error < 1e-6).all(), cut
    alone = torch.cat([lrp(one[None]).relevance for one in x.flip(0)]).flip(0)
    torch.testing.assert_close(alone, e.relevance, rtol=1e-4, atol=1e-6 * e.relevance.abs().max().item())
    with torch.no_grad():
        torch.testing.assert_close(e.logits, net(x), rtol=1e-4, atol=1e-5)


def test_transposed_convolution_with_gaps_gives_outputs_without_inputs_nothing_to_lose():
    net = Net(lambda h, m: m(h), nn.ConvTranspose2d(8, 4, 1, stride=2, bias=False))
    x = torch.randn(2, 3, 6, 6)
    net.eval()(x)
    e = hw.LRP(net)(x)
    assert (e.conservation.error < 1e-6).all()


# -- gates and attention, against the equations -----------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 4)

    def forward(self, x):
        return x.flatten(2).mean(2) * self.gate(x.flatten(2).mean(2)).sigmoid()


@pytest.mark.parametrize(("gates", "to_features"), [("features", 1.0), ("half", 0.5)])
def test_a_gate_gets_its_share(gates, to_features):
    net = SqueezeExcite().double().eval()
    x = torch.rand(2, 4, 1, 1, dtype=torch.float64)
    rules = [entry for entry in hw.load_composite("otsuki2024").entries if not isinstance(entry.where, First)]
    composite = Composite("mine", rules).prepend((Type("product"), Gates(gates)))
    e = hw.LRP(net, composite)(x, target=2, checkpoints=["gate"])
    p = e.probability
    expected = torch.zeros(2, 4, dtype=torch.float64)
    expected[:, 2] = p * to_features
    if to_features < 1:
        z = x.flatten(1) * net.gate.weight[2].detach().clamp(min=0)
        expected += z / z.sum(1, keepdim=True) * (p * (1 - to_features))[:, None]
    torch.testing.assert_close(e.relevance.flatten(1), expected)


def test_attention_hands_relevance_to_the_values_by_the_attention_weights():
    class Attend(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).mT  # (N, tokens, channels)
            return f.scaled_dot_product_attention(tokens, tokens, tokens).mean(1)

    x = torch.rand(2, 3, 2, 2, dtype=torch.float64)  # positive values: shares are A_ij v_j / sum_j A_ij v_j
    e = hw.LRP(Attend())(x, target=1)
    tokens = x.flatten(2).mT
    weights = (tokens @ tokens.mT / 3**0.5).softmax(-1)
    value = tokens[:, :, 1]
    z = weights * value[:, None, :]
    mean = z.sum(-1)
    at_output = e.probability[:, None] * mean / mean.sum(1, keepdim=True)
    expected = (z / z.sum(-1, keepdim=True) * at_output[:, :, None]).sum(1)
    torch.testing.assert_close(e.relevance[:, 1].flatten(1), expected)
    assert (e.relevance[:, [0, 2]] == 0).all()


def test_what_a_class_token_gets_goes_to_the_patches_in_equal_parts():
    net = Net(with_token, nn.Linear(8, 1))
    x = torch.randn(2, 3, 4, 4)
    net.eval()(x)
    with torch.no_grad():
        net.head.weight[:, 8:] = -1.0  # all patches contribute against every class but where they are negative
        net.parts[0].weight.fill_(100.0)
        net.head.weight[:, :8] = 1.0
        net.stem.weight.zero_()
        net.stem.bias.fill_(1.0)
    e = hw.LRP(net)(x, checkpoints="cuts")
    assert (e.conservation.error < 1e-6).all()
    inner = e.heatmap[:, 1:-1, 1:-1]
    torch.testing.assert_close(inner, inner[:, :1, :1].expand_as(inner))


def test_operations_in_a_gates_branch_need_no_rule():
    net = Net(lambda h: h * torch.cumsum(h, 1).mean((1, 2, 3), keepdim=True))
    x = torch.randn(2, 3, 6, 6)
    net.eval()(x)
    assert (hw.LRP(net)(x).conservation.error < 1e-6).all()


def test_a_convolution_whose_kernel_the_image_makes_is_refused():
    net = Net(lambda h: f.conv2d(h, h[:1, :, :1, :1]))
    x = torch.randn(1, 3, 6, 6)
    net.eval()(x)
    with pytest.raises((UnsupportedOperationError, TraceError)):
        hw.LRP(net)(x)


# -- extension --------------------------------------------------------------------------------------------------------


@pytest.fixture
def registered():
    """Nothing registered before, whatever the documentation's examples did in this process; and as it was after."""
    with no_registrations():
        yield


def test_a_users_own_operation_by_one_registration(registered):
    class LogSumExp(Rule):
        def __call__(self, layer, weights, inputs, relevance):
            (h,) = inputs
            return [h.softmax(-1) * relevance[..., None]]

    net = Net(lambda h: torch.logsumexp(h.flatten(2), -1))
    x = torch.randn(2, 3, 6, 6)
    net.eval()(x)
    with pytest.raises(UnsupportedOperationError, match=r"'logsumexp'.*register_rule\('logsumexp'"):
        hw.LRP(net)(x)
    hw.register_rule("logsumexp", LogSumExp())
    assert (hw.LRP(net)(x).conservation.error < 1e-6).all()


class Recorded(Gradient):
    """The gradient rule, with a note of each layer that it is asked for."""

    def __init__(self, seen):
        super().__init__()
        object.__setattr__(self, "seen", seen)

    def __call__(self, layer, weights, inputs, relevance):
        self.seen.append(layer.category)
        return super().__call__(layer, weights, inputs, relevance)


def test_a_users_own_module_by_one_registration(registered):
    class Squash(nn.Module):
        def forward(self, h):
            return torch.erf(h) + h

    net = Net(lambda h, m: m(h), Squash())
    x = torch.randn(2, 3, 6, 6)
    net.eval()(x)
    hw.register_rule("Squash", Recorded(seen := []))
    hw.LRP(net)(x)
    assert seen == ["block"]


def test_a_registered_rule_does_not_override_what_a_composite_names(registered):
    hw.register_rule("relu", Recorded(seen := []))
    net = Net(lambda h: h.relu())
    x = torch.randn(1, 3, 6, 6)
    net.eval()(x)
    base = hw.load_composite("otsuki2024")
    hw.LRP(net, base)(x)
    assert seen == ["elementwise"]
    hw.LRP(net, base.prepend((Type("relu"), Pass())))(x)
    assert seen == ["elementwise"], "the registered rule is not asked again"


def test_what_is_no_rule_cannot_be_registered():
    with pytest.raises(InputError, match="must be a Rule"):
        hw.register_rule("erf", Pass)


def test_gates_must_be_one_of_two():
    with pytest.raises(InputError, match="'features' or 'half'"):
        Gates("all")
