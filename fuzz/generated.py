"""Random networks: chains with joins, gates, attention and concatenation in several notations, as lists of steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fuzz.case import Draw

COUPLED = ("minus mean", "over deviation", "flip batch", "roll batch", "batch statistics", "softmax over batch")
RANDOM = ("dropout", "noise")
"""Steps that no explanation is valid for: images of a batch influence each other, or two forward passes differ."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu method": lambda h: h.relu(),
    "clamp": lambda h: h.clamp(min=0),
    "relu6": functional.relu6,
    "leaky": functional.leaky_relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "hardswish": functional.hardswish,
    "tanh": torch.tanh,
}
_COUPLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "minus mean": lambda h: h - h.mean(0, keepdim=True),
    "over deviation": lambda h: h / (1 + h.square().mean((0, 2, 3), keepdim=True)).sqrt(),
    "flip batch": lambda h: h + h.flip(0),
    "roll batch": lambda h: h + torch.roll(h, 1, 0),
    "batch statistics": lambda h: functional.batch_norm(h, None, None, training=True),
    "softmax over batch": lambda h: h * h.softmax(0),
    "dropout": lambda h: functional.dropout(h, 0.5, training=True),
    "noise": lambda h: h + torch.randn_like(h),
}


@dataclass(frozen=True)
class Step:
    """One line of the network: an operation on earlier values, with a layer of its own or none."""

    kind: str
    inputs: tuple[int, ...]
    layer: int = -1


class Generated(nn.Module):
    """Runs a list of steps; value 0 is the image, value k + 1 comes from step k.

    ``scale`` and ``slope`` are plain attributes that ``forward`` reads; ``free`` holds parameters outside any layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.free = nn.ParameterList()
        self.steps: list[Step] = []
        self.scale = 1.0
        self.slope = {"value": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for step in self.steps:
            values.append(self.run(step, [values[k] for k in step.inputs]))
        return values[-1] * self.scale * self.slope["value"]

    def run(self, step: Step, inputs: list[Tensor]) -> Tensor:
        h = inputs[0]
        if step.kind == "layer":
            return self.layers[step.layer](h)
        if step.kind in _ACTIVATIONS:
            return _ACTIVATIONS[step.kind](h)
        if step.kind in _COUPLINGS:
            return _COUPLINGS[step.kind](h)
        return _OPERATIONS[step.kind](self, step, inputs)


def _attention(model: Generated, step: Step, inputs: list[Tensor]) -> Tensor:
    h = inputs[0]
    tokens = h.flatten(2).transpose(1, 2)
    q, k, v = model.layers[step.layer](tokens).chunk(3, dim=-1)
    mixed = functional.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).reshape(h.shape)


def _attention_by_hand(model: Generated, step: Step, inputs: list[Tensor]) -> Tensor:
    h = inputs[0]
    tokens = h.flatten(2).transpose(1, 2)
    q, k, v = model.layers[step.layer](tokens).split(h.shape[1], dim=-1)
    weights = (q @ k.transpose(1, 2) / h.shape[1] ** 0.5).softmax(-1)
    return torch.einsum("nij,njc->nic", weights, v).transpose(1, 2).reshape(h.shape)


def _sub(model: Generated, step: Step, inputs: list[Tensor]) -> Tensor:
    return inputs[0] - 0.5 * inputs[1]


def _add_in_place(model: Generated, step: Step, inputs: list[Tensor]) -> Tensor:
    h = inputs[0].clone()
    h += inputs[1]
    return h


def _iadd_value(model: Generated, step: Step, inputs: list[Tensor]) -> Tensor:
    return inputs[0].add_(inputs[1])


_OPERATIONS: dict[str, Callable[[Generated, Step, list[Tensor]], Tensor]] = {
    "add": lambda m, s, i: i[0] + i[1],
    "sub": _sub,
    "add in place": _add_in_place,
    "add into a value": _iadd_value,
    "relu in place": lambda m, s, i: i[0].clone().relu_(),
    "concatenate": lambda m, s, i: torch.cat(i, 1),
    "maximum": lambda m, s, i: torch.maximum(i[0], i[1]),
    "halves": lambda m, s, i: i[0].chunk(2, 1)[0] + i[0].chunk(2, 1)[1],
    "product": lambda m, s, i: i[0] * i[1].sigmoid(),
    "squeeze": lambda m, s, i: i[0] * m.layers[s.layer](i[0].mean((2, 3), keepdim=True)).sigmoid(),
    "spatial gate": lambda m, s, i: i[0] * m.layers[s.layer](i[0]).sigmoid(),
    "attention": _attention,
    "attention by hand": _attention_by_hand,
    "functional conv": lambda m, s, i: functional.conv2d(i[0], m.free[s.layer], padding=1),
    "free scale": lambda m, s, i: i[0] * m.free[s.layer].view(1, -1, 1, 1),
    "double size": lambda m, s, i: functional.interpolate(i[0], scale_factor=2, mode="nearest"),
    "bilinear": lambda m, s, i: functional.interpolate(i[0], scale_factor=2, mode="bilinear", align_corners=False),
    "half size": lambda m, s, i: functional.avg_pool2d(i[0], 2),
    "largest": lambda m, s, i: functional.max_pool2d(i[0], 2),
    "permute": lambda m, s, i: m.layers[s.layer](i[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "flip": lambda m, s, i: i[0].flip(3),
    "roll": lambda m, s, i: torch.roll(i[0], 1, 2),
    "pad": lambda m, s, i: functional.pad(i[0], (1, 0, 0, 1))[:, :, :-1, 1:],
    "mean": lambda m, s, i: i[0].mean((2, 3)),
    "pool": lambda m, s, i: functional.adaptive_avg_pool2d(i[0], 1).flatten(1),
    "flatten": lambda m, s, i: i[0].flatten(1),
}


def network(draw: Draw, side: int, bad: str | None = None) -> Generated:
    """A random network for images ``(N, 3, side, side)``, in eval mode, with up to twelve steps and a head.

    Args:
        draw: its choices.
        side: of the images.
        bad: one of :data:`COUPLED` or :data:`RANDOM`, put into the chain that leads to the logits.
    """
    model = Generated()
    shapes: list[tuple[int, int]] = [(3, side)]  # channels and side of each value
    _conv(draw, model, shapes, draw.whole(2, 6))
    length = draw.whole(1, 11)
    place = draw.whole(0, length - 1)
    for k in range(length):
        if bad is not None and k == place:
            _append(model, shapes, Step(bad, (len(shapes) - 1,)), shapes[-1])
        _grow(draw, model, shapes)
    if bad is not None and not any(step.kind == bad for step in model.steps):
        _append(model, shapes, Step(bad, (len(shapes) - 1,)), shapes[-1])
    channels, rows = shapes[-1]
    ending = draw.one(("mean", "pool", "flatten"))
    _append(model, shapes, Step(ending, (len(shapes) - 1,)), (channels, 1))
    features = channels * rows**2 if ending == "flatten" else channels
    head = nn.Linear(features, draw.whole(2, 5), bias=draw.chance(0.8))
    _append(model, shapes, Step("layer", (len(shapes) - 1,), _new(model, head)), (head.out_features, 1))
    _settle(model)
    draw.note(" ".join(_word(model, step).replace(" ", "-") for step in model.steps))
    return model.eval()


def _word(model: Generated, step: Step) -> str:
    return type(model.layers[step.layer]).__name__ if step.kind == "layer" else step.kind


def _append(model: Generated, shapes: list[tuple[int, int]], step: Step, shape: tuple[int, int]) -> None:
    model.steps.append(step)
    shapes.append(shape)


def _new(model: Generated, layer: nn.Module) -> int:
    model.layers.append(layer)
    return len(model.layers) - 1


def _conv(draw: Draw, model: Generated, shapes: list[tuple[int, int]], out: int) -> None:
    channels, side = shapes[-1]
    kernel = draw.one((1, 3, 3))
    stride = 2 if side >= 6 and draw.chance(0.25) else 1
    groups = channels if out == channels and draw.chance(0.3) else 1
    dilation = 2 if kernel == 3 and stride == 1 and draw.chance(0.2) else 1
    conv = nn.Conv2d(channels, out, kernel, stride, dilation * (kernel // 2), dilation, groups, bias=draw.chance(0.6))
    after = (side - 1) // stride + 1
    _append(model, shapes, Step("layer", (len(shapes) - 1,), _new(model, conv)), (out, after))


def _grow(draw: Draw, model: Generated, shapes: list[tuple[int, int]]) -> None:
    """Append one or two steps to the last value."""
    last = len(shapes) - 1
    channels, side = shapes[-1]
    like = [k for k in range(1, last) if shapes[k] == shapes[-1]]
    beside = [k for k in range(1, last) if shapes[k][1] == side and shapes[k][0] + channels <= 16]
    kind = draw.one(_KINDS)
    one = (last,)
    keep = (channels, side)
    if kind == "conv":
        _conv(draw, model, shapes, draw.one((channels, draw.whole(2, 8))))
    elif kind == "norm":
        norms: tuple[nn.Module, ...] = (nn.BatchNorm2d(channels), nn.BatchNorm2d(channels), nn.GroupNorm(1, channels))
        _append(model, shapes, Step("layer", one, _new(model, draw.one(norms))), keep)
    elif kind == "activation":
        inside = (nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.ReLU6(), nn.ELU(), nn.PReLU())
        if draw.chance(0.6) and last > 0:
            _append(model, shapes, Step("layer", one, _new(model, draw.one(inside))), keep)
        else:
            _append(model, shapes, Step(draw.one((*_ACTIVATIONS, "relu in place")), one), keep)
    elif kind == "join" and like:
        way = draw.one(("add", "add", "add", "sub", "add in place", "add into a value", "maximum", "product"))
        _append(model, shapes, Step(way, (last, draw.one(like))), keep)
    elif kind == "concatenate" and beside:
        other = draw.one(beside)
        _append(model, shapes, Step("concatenate", (last, other)), (channels + shapes[other][0], side))
    elif kind == "gate":
        if draw.chance(0.5):
            layer = _new(model, nn.Conv2d(channels, channels, 1))
            _append(model, shapes, Step("squeeze", one, layer), keep)
        else:
            _append(model, shapes, Step("spatial gate", one, _new(model, nn.Conv2d(channels, 1, 3, padding=1))), keep)
    elif kind == "attention" and side <= 8:
        layer = _new(model, nn.Linear(channels, 3 * channels))
        _append(model, shapes, Step(draw.one(("attention", "attention by hand")), one, layer), keep)
    elif kind == "free":
        if draw.chance(0.5):
            model.free.append(nn.Parameter(torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)))
            _append(model, shapes, Step("functional conv", one, len(model.free) - 1), keep)
        else:
            model.free.append(nn.Parameter(torch.rand(channels) + 0.5))
            _append(model, shapes, Step("free scale", one, len(model.free) - 1), keep)
    elif kind == "resize":
        ways = ["flip", "roll", "pad", *(["half size", "largest"] if side >= 2 and side % 2 == 0 else [])]
        ways += ["double size", "bilinear"] if side <= 6 else []
        way = draw.one(ways)
        after = (
            side // 2 if way in ("half size", "largest") else 2 * side if way in ("double size", "bilinear") else side
        )
        _append(model, shapes, Step(way, one), (channels, after))
    elif kind == "again":
        convs = [
            k
            for k, layer in enumerate(model.layers)
            if isinstance(layer, nn.Conv2d)
            and layer.in_channels == layer.out_channels == channels
            and layer.stride == (1, 1)
            and layer.groups == 1
        ]
        if convs:
            layer = draw.one(convs)
            old = model.layers[layer]
            assert isinstance(old, nn.Conv2d)
            if draw.chance(0.5):  # another module with the same weight
                new = copy.deepcopy(old)
                new.weight = old.weight
                layer = _new(model, new)
            _append(model, shapes, Step("layer", one, layer), keep)
    elif kind == "permute":
        _append(model, shapes, Step("permute", one, _new(model, nn.Linear(channels, channels))), keep)
    elif kind == "halves" and channels % 2 == 0:
        _append(model, shapes, Step("halves", one), (channels // 2, side))
    elif kind == "pooling" and side >= 3:
        pools = (nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 2, 1), nn.Dropout(0.5), nn.Identity())
        pool = draw.one(pools)
        after = (side - 1) // 2 + 1 if getattr(pool, "stride", 1) == 2 else side
        _append(model, shapes, Step("layer", one, _new(model, pool)), (channels, after))


_KINDS = (
    *("conv",) * 3,
    *("activation",) * 3,
    *("join",) * 4,
    *("norm",) * 2,
    "concatenate",
    "gate",
    "attention",
    "free",
    "resize",
    "again",
    "permute",
    "halves",
    "pooling",
)


def _settle(model: nn.Module) -> None:
    """Random normalisation statistics, as if trained."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            with torch.no_grad():
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
