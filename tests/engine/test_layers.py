from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from helpers import linear_layer
from torch import nn

from headwater.engine import phases
from headwater.engine.layer_table import layer_for
from headwater.engine.trace import trace
from headwater.errors import UnsupportedOperationError


class Pool(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Times(nn.Module):
    """Product with a parameter on one side."""

    def __init__(self, rows, columns, right):
        super().__init__()
        self.weight, self.right = nn.Parameter(torch.randn(rows, columns)), right

    def forward(self, x):
        return x @ self.weight if self.right else self.weight @ x


CASES = {
    "1x1": nn.Conv2d(4, 6, 1),
    "3x3 stride 2": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "asymmetric": nn.Conv2d(4, 6, (1, 5), padding=(0, 2)),
    "same, even kernel": nn.Conv2d(4, 6, 4, padding="same"),
    "valid by name": nn.Conv2d(4, 6, 3, padding="valid"),
    "no overlap at the border": nn.Conv2d(4, 6, 2, stride=3),
    "phases, uneven": nn.Conv2d(4, 16, (5, 7), stride=2, padding=(2, 0)),
    "phases, wide padding": nn.Conv2d(4, 16, 7, stride=2, padding=5),
    "phases, patches that leave a border": nn.Conv2d(4, 20, 4, stride=4),
    "average": nn.AvgPool2d(3, 2, 1),
    "average, ceil": nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
    "global": nn.AdaptiveAvgPool2d(1),
    "adaptive": nn.AdaptiveAvgPool2d((3, 2)),
    "mean": Pool(lambda x: x.mean((2, 3))),
    "mean, kept": Pool(lambda x: x.mean((-1, -2), keepdim=True)),
    "linear": nn.Linear(9, 5),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "transposed, grouped, dilated": nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=2),
    "sum": Pool(lambda x: x.sum((2, 3))),
    "bilinear": Pool(lambda x: nn.functional.interpolate(x, scale_factor=2, mode="bilinear")),
    "nearest": Pool(lambda x: nn.functional.interpolate(x, (5, 4))),
    "matrix from the right": Times(9, 3, right=True),
    "matrix from the left": Times(5, 7, right=False),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_transpose_is_the_adjoint_and_in_place_keeps_the_sum(name, layout):
    module = CASES[name].double()
    h = torch.randn(2, 4, 7, 9, dtype=torch.float64).contiguous(memory_format=layout)
    layer = linear_layer(module, h)
    with torch.no_grad():
        z = layer.apply(h, layer.weight)
        r = torch.rand_like(z)
        back = layer.transpose(r, layer.weight, h)
        share = layer.spread_remainder(r, layer.weight, h)
        if layer.bias is not None:
            torch.testing.assert_close(layer.apply(h, layer.weight, layer.bias), module(h))
        else:
            torch.testing.assert_close(z, module(h))
    assert back.shape == share.shape == h.shape
    torch.testing.assert_close((back * h).sum(), (r * z).sum())
    torch.testing.assert_close(share.sum(), r.sum())
    assert (share >= 0).all()


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("phases")])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_phases_give_the_adjoint(name, layout, dtype):
    conv = CASES[name]
    w, geometry = conv.weight.detach().to(dtype), geometry_of(conv)
    h = torch.zeros(2, 4, 23, 18, dtype=dtype).contiguous(memory_format=layout)
    s = torch.rand_like(torch.conv2d(h, w, None, conv.stride, conv.padding)).contiguous(memory_format=layout)
    back = phases.adjoint(s, w, h, geometry)
    expected, *_ = torch.ops.aten.convolution_backward(
        *(s, h, w, None, *geometry[:3], False, [0, 0], 1), [True, False, False]
    )
    torch.testing.assert_close(back, expected)
    assert back.is_contiguous(memory_format=torch.channels_last), "a tensor of its own, no window into another"
    torch.testing.assert_close(back[:1], phases.adjoint(s[:1], w, h[:1], geometry))


def test_first_layers_are_taken_by_phases():
    convolutions = {name: copy.deepcopy(m).float() for name, m in CASES.items() if type(m) is nn.Conv2d}
    taken = {name: phases.pays(m.weight, geometry_of(m)) for name, m in convolutions.items()}
    assert [name for name, by_phases in taken.items() if by_phases] == [n for n in CASES if n.startswith("phases")]
    stems = {"resnet50": True, "convnext_tiny": True, "vit_b_16": True, "efficientnet_b0": False, "vgg11": False}
    for name, expected in stems.items():
        with torch.device("meta"):
            model = torchvision.models.get_model(name, weights=None)
        conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
        assert phases.pays(torch.empty(conv.weight.shape), geometry_of(conv)) is expected, name


def geometry_of(conv):
    return phases.Geometry(conv.stride, conv.padding, conv.dilation, conv.groups)


@pytest.mark.parametrize(
    ("conv", "expected"),
    [
        # two outputs a channel, 1 and 3: over 2 input channels
        (nn.Conv2d(2, 1, 3, padding=1), [0.5, 1.5, 0, 0, 0]),
        (nn.Conv2d(2, 1, (1, 3), padding=(0, 1)), [0.5, 1.5, 0, 0, 0]),
        (nn.Conv2d(2, 1, (1, 3), padding=(0, 2), dilation=2), [0.5, 1.5, 0, 0, 0]),
        (nn.Conv2d(2, 1, (1, 3), stride=(1, 2), padding=(0, 1)), [0.25, 0.25, 0.75, 0.75, 0]),
        (nn.Conv2d(2, 1, (1, 2), stride=(1, 2)), [0.25, 0.25, 0.75, 0.75, 0]),
        (nn.Conv2d(2, 1, (1, 3)), [0, 0.5, 1.5, 0, 0]),
    ],
)
def test_in_place_is_the_outputs_own_position(conv, expected):
    layer = linear_layer(conv, torch.zeros(1, 2, 1, 5))
    with torch.no_grad():
        r = torch.zeros_like(conv(torch.zeros(1, 2, 1, 5)))
        r[..., 0], r[..., 1] = 1, 3
        share = layer.spread_remainder(r, layer.weight, torch.zeros(1, 2, 1, 5))
    torch.testing.assert_close(share, torch.tensor(expected).expand(1, 2, 1, 5))


def test_in_place_is_the_whole_window_where_the_place_may_lie_in_the_padding():
    layer = linear_layer(nn.Conv2d(1, 1, (1, 3), padding=(0, 2)), torch.zeros(1, 1, 1, 4))
    share = layer.spread_remainder(torch.ones(1, 1, 1, 6), layer.weight, torch.zeros(1, 1, 1, 4))
    # windows of 1, 2, 3, 3, 2, 1 inputs
    torch.testing.assert_close(
        share[0, 0, 0], torch.tensor([1 + 1 / 2 + 1 / 3, 1 / 2 + 2 / 3, 1 / 2 + 2 / 3, 1 + 1 / 2 + 1 / 3])
    )


def test_an_operation_without_a_rule_names_itself_its_place_and_the_way_out():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Pool(lambda x: torch.logcumsumexp(x, 1)))
    operation = trace(model, torch.zeros(1, 3, 4, 4)).operations[-1]
    with pytest.raises(UnsupportedOperationError, match=r"'logcumsumexp' in module '1'.*register_rule"):
        layer_for(operation, lambda leaf: leaf).refuse()
