"""Changes to a network between two calls: of its weights, attributes, layers and code."""

from __future__ import annotations

import types
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from fuzz.case import Draw
from fuzz.generated import Generated, Step

Change = Callable[[Draw, Generated], bool]
"""Changes the network; returns false where this change does not apply to it."""


class Doubled(nn.Module):
    """A parametrization: the weight is twice what is stored."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def change(draw: Draw, model: Generated) -> str:
    """Change the network in a random way and return the change's name."""
    for _ in range(50):
        name = draw.one(tuple(CHANGES))
        if CHANGES[name](draw, model):
            draw.note(f"then {name}")
            return name
    raise AssertionError("no change fits this network")


def _weight(draw: Draw, model: Generated) -> Tensor:
    return draw.one([p for p in model.parameters() if p.numel()])


def _place(draw: Draw, tensor: Tensor) -> tuple[int, ...]:
    return tuple(draw.whole(0, n - 1) for n in tensor.shape)


def _layers(model: Generated, *kinds: type[nn.Module]) -> list[nn.Module]:
    return [layer for layer in model.layers if isinstance(layer, kinds)]


def _in_place(draw: Draw, model: Generated) -> bool:
    with torch.no_grad():
        _weight(draw, model).mul_(1.5)
    return True


def _through_data(draw: Draw, model: Generated) -> bool:
    weight = _weight(draw, model)
    weight.data[_place(draw, weight)] += 3
    return True


def _last_bit(draw: Draw, model: Generated) -> bool:
    weight = _weight(draw, model)
    place = _place(draw, weight)
    weight.data[place] = torch.nextafter(weight.data[place], torch.tensor(torch.inf, dtype=weight.dtype))
    return True


def _through_numpy(draw: Draw, model: Generated) -> bool:
    weight = _weight(draw, model)
    weight.detach().numpy()[_place(draw, weight)] -= 2
    return True


def _swapped(draw: Draw, model: Generated) -> bool:
    weight = _weight(draw, model)
    a, b = _place(draw, weight), _place(draw, weight)
    weight.data[a], weight.data[b] = weight.data[b].clone(), weight.data[a].clone()
    return True


def _rows_swapped(draw: Draw, model: Generated) -> bool:
    weight = _weight(draw, model)
    weight.data.copy_(weight.data.flip(0).clone())
    return True


def _filter_zeroed(draw: Draw, model: Generated) -> bool:
    weight = _weight(draw, model)
    weight.data[draw.whole(0, len(weight) - 1)] = 0
    return True


def _data_replaced(draw: Draw, model: Generated) -> bool:
    weight = _weight(draw, model)
    weight.data = torch.randn_like(weight) / 4
    return True


def _parameter_replaced(draw: Draw, model: Generated) -> bool:
    layers = [m for m in _layers(model, nn.Conv2d, nn.Linear) if "weight" in m._parameters]
    if not layers:
        return False
    layer = draw.one(layers)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    layer.weight = nn.Parameter(weight.detach() * 0.5)
    return True


def _loaded(draw: Draw, model: Generated) -> bool:
    state = {k: v * 1.25 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=draw.chance(0.3))
    return True


def _trained(draw: Draw, model: Generated) -> bool:
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        return False
    optimiser = torch.optim.SGD(weights, 0.1)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimiser.step()
    optimiser.zero_grad()
    return True


def _pruned(draw: Draw, model: Generated) -> bool:
    layers = [m for m in _layers(model, nn.Conv2d, nn.Linear) if "weight" in m._parameters]
    if not layers:
        return False
    prune.random_unstructured(draw.one(layers), "weight", 0.5)
    return True


def _pruned_for_good(draw: Draw, model: Generated) -> bool:
    layers = [m for m in model.layers if prune.is_pruned(m)]
    if not layers:
        return False
    prune.remove(draw.one(layers), "weight")
    return True


def _parametrized(draw: Draw, model: Generated) -> bool:
    layers = [
        m
        for m in _layers(model, nn.Conv2d, nn.Linear)
        if "weight" in m._parameters and not parametrize.is_parametrized(m)
    ]
    if not layers:
        return False
    if draw.chance(0.6):
        parametrize.register_parametrization(draw.one(layers), "weight", Doubled())
    else:
        parametrizations.weight_norm(draw.one(layers))
    return True


def _statistics(draw: Draw, model: Generated) -> bool:
    norms = _layers(model, nn.BatchNorm2d)
    if not norms:
        return False
    norm = draw.one(norms)
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    if draw.chance(0.5):
        norm.running_mean.data[0] += 2
    else:
        norm.eps = draw.one((0.1, 1.0, 1e-3))
    return True


def _padding(draw: Draw, model: Generated) -> bool:
    layers = [m for m in _layers(model, nn.Conv2d) if m.kernel_size == (3, 3) and m.dilation == (1, 1)]
    if not layers:
        return False
    layer = draw.one(layers)
    layer.padding, layer.dilation = (2, 2), (2, 2)  # type: ignore[assignment]
    return True


def _padding_mode(draw: Draw, model: Generated) -> bool:
    layers = [m for m in _layers(model, nn.Conv2d) if isinstance(m, nn.Conv2d) and m.padding == (0, 0)]
    if not layers:
        return False
    layer = draw.one(layers)
    layer.padding_mode = "zeros" if layer.padding_mode == "circular" else "circular"
    return True


def _attribute(draw: Draw, model: Generated) -> bool:
    if draw.chance(0.5):
        model.scale = draw.one((0.5, 2.0, 3.0))
    else:
        model.slope["value"] = draw.one((0.5, 2.0, 3.0))
    return True


def _step_replaced(draw: Draw, model: Generated) -> bool:
    functions = ("relu", "gelu", "tanh", "leaky", "silu", "clamp", "relu6")
    places = [k for k, step in enumerate(model.steps) if step.kind in functions]
    if not places:
        return False
    place = draw.one(places)
    model.steps[place] = Step("hardswish", model.steps[place].inputs)
    return True


def _layer_replaced(draw: Draw, model: Generated) -> bool:
    places = [k for k, m in enumerate(model.layers) if isinstance(m, nn.ReLU | nn.SiLU | nn.ELU)]
    if not places:
        return False
    model.layers[draw.one(places)] = nn.LeakyReLU(0.3)
    return True


def _slope(draw: Draw, model: Generated) -> bool:
    layers = _layers(model, nn.LeakyReLU, nn.ELU)
    if not layers:
        return False
    layer = draw.one(layers)
    if isinstance(layer, nn.LeakyReLU):
        layer.negative_slope = draw.one((0.1, 0.7))
    elif isinstance(layer, nn.ELU):
        layer.alpha = draw.one((0.5, 2.0))
    return True


def _forward_replaced(draw: Draw, model: Generated) -> bool:
    if draw.chance(0.5):
        factor = draw.one((0.5, 3.0))
        usual = type(model).forward

        def forward(self: Generated, x: Tensor) -> Tensor:
            return usual(self, x) * factor

        model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]
        return True
    layers = _layers(model, nn.Conv2d)
    if not layers:
        return False
    layer = draw.one(layers)
    usual_conv = type(layer).forward

    def convolved(self: nn.Module, h: Tensor) -> Tensor:
        return usual_conv(self, h).relu()

    layer.forward = types.MethodType(convolved, layer)
    return True


def _mode(draw: Draw, model: Generated) -> bool:
    draw.one((model.train, model.eval))()
    return True


def _frozen(draw: Draw, model: Generated) -> bool:
    for weight in model.parameters():
        if weight.is_leaf:
            weight.requires_grad_(draw.chance(0.5))
    return True


def _observed(draw: Draw, model: Generated) -> bool:
    model.register_forward_hook(lambda module, inputs, output: None)
    return True


def _swapped_layers(draw: Draw, model: Generated) -> bool:
    convs = [k for k, m in enumerate(model.layers) if isinstance(m, nn.Conv2d)]
    pairs = [
        (a, b)
        for a in convs
        for b in convs
        if a < b and repr(model.layers[a]) == repr(model.layers[b]) and model.layers[a] is not model.layers[b]
    ]
    if not pairs:
        return False
    a, b = draw.one(pairs)
    model.layers[a], model.layers[b] = model.layers[b], model.layers[a]
    return True


def _nothing(draw: Draw, model: Generated) -> bool:
    return True


def _dtype(draw: Draw, model: Generated) -> bool:
    model.to(torch.float32 if next(model.parameters()).dtype == torch.float64 else torch.float64)
    return True


CHANGES: dict[str, Change] = {
    "written in place": _in_place,
    "written through data": _through_data,
    "the last bit of a weight": _last_bit,
    "written through numpy": _through_numpy,
    "two values swapped": _swapped,
    "rows reversed": _rows_swapped,
    "a filter zeroed": _filter_zeroed,
    "data replaced": _data_replaced,
    "a parameter replaced": _parameter_replaced,
    "a state dict loaded": _loaded,
    "a step of training": _trained,
    "pruned": _pruned,
    "pruning made permanent": _pruned_for_good,
    "parametrized": _parametrized,
    "a norm's statistics or eps": _statistics,
    "a convolution dilated": _padding,
    "the padding mode": _padding_mode,
    "an attribute that forward reads": _attribute,
    "a step replaced": _step_replaced,
    "a layer replaced": _layer_replaced,
    "an activation's slope": _slope,
    "forward replaced": _forward_replaced,
    "train or eval": _mode,
    "gradients switched": _frozen,
    "an observing hook": _observed,
    "two layers exchanged": _swapped_layers,
    "nothing": _nothing,
    "the dtype": _dtype,
}
