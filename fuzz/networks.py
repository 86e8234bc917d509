"""Random networks: conservation, independence of the batch, an untouched model, and maps that follow every change."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import headwater as hw
from fuzz.case import Draw, WrongError, must
from fuzz.changes import change
from fuzz.generated import COUPLED, RANDOM, Generated, network
from fuzz.subjects import compare
from headwater.composites import AfterJoin, Blocks, First, Gates, Last, Type
from headwater.errors import HeadwaterError
from headwater.rules import AlphaBeta, Epsilon, Flat, Gamma, Gradient, WSquare

_EXACT = ("otsuki2024", "otsuki2024-i", "otsuki2024-ii", "otsuki2024-iii")
_OTHERS = ("otsuki2024-mixture", "otsuki2024-published", "epsilon", "doublet2024")
_METHODS = ("gradcam", "gradient-x-input", "c3-lrp", "integrated-gradients", "scorecam", "guided-backprop", "deeplift")


def networks(draw: Draw) -> None:
    """A random network, explained; then changed and explained again, each map compared with a fresh one."""
    side = draw.one((5, 6, 8, 8, 9, 12))
    way = draw.rng.random()
    if way < 0.12:
        _unfit(draw, side)
        return
    model = network(draw, side)
    x = torch.randn(draw.whole(1, 3), 3, side, side)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if way < 0.2:
            _another_method(draw, model, x)
            return
        composite, exact = _composite(draw)
        _prepare(draw, model)
        before = Snapshot(model)
        lrp = hw.LRP(model, composite)
        first = _valid(lrp, x)
        before.check(model)
        _check_logits(model, x, first)
        told = any("conserv" in str(w.message) for w in caught)
        _check_conservation(first, exact, told)
        compare(draw, lrp(x), first, "the same call again")
        if exact and draw.chance(0.35):
            _alone(draw, model, x, composite)
        for _ in range(draw.one((1, 1, 2, 3))):
            change(draw, model)
            x = x.to(next(model.parameters()).dtype)
            _follow(draw, lrp, model, x, composite)


def _composite(draw: Draw) -> tuple[str | hw.Composite, bool]:
    """A preset or a composite of random rules, and whether it must conserve."""
    way = draw.rng.random()
    if way < 0.6:
        name = draw.one(_EXACT)
        draw.note(name)
        return name, True
    if way < 0.75:
        name = draw.one(_OTHERS)
        draw.note(name)
        return name, False
    base = hw.load_composite(draw.one(_EXACT))
    rule = draw.one((Gamma(0.25), Gamma(1.0), Epsilon(), Epsilon(1e-3), AlphaBeta(), AlphaBeta(1.0, 0.0), WSquare()))
    pairs: tuple[Any, ...] = draw.one(
        (
            ((Type("linear"), rule),),
            ((Last(), rule),),
            ((First(), Flat()), (AfterJoin(1), rule)),
            ((Type("product"), Gates("half")), (Type("matrix_product"), Gates("half"))),
            ((Blocks("residual"), Gradient()),),
        )
    )
    draw.note(f"{base.name} with {', '.join(f'{where}: {choice}' for where, choice in pairs)}")
    return base.prepend(*pairs, name="mine", strict=False), not isinstance(pairs[0][0], Blocks)


def _valid(lrp: hw.LRP, x: Tensor) -> hw.Explanation:
    try:
        return lrp(x)
    except HeadwaterError as error:
        raise WrongError(f"a valid network was refused: {error}") from error


def _unfit(draw: Draw, side: int) -> None:
    """Networks of which no map is true: they must be refused, also when the defect comes with a later change."""
    bad = draw.one((*COUPLED, *RANDOM))
    model = network(draw, side, bad)
    x = torch.randn(draw.whole(2, 3), 3, side, side)
    if draw.chance(0.3):
        steps, fit = model.steps, [s for s in model.steps if s.kind != bad]
        at = next(k for k, s in enumerate(steps) if s.kind == bad)
        model.steps = [replace(s, inputs=tuple(k - (k > at) for k in s.inputs)) for s in fit]
        lrp = hw.LRP(model)
        _valid(lrp, x)
        model.steps = steps
        draw.note("after a call without it")
    else:
        lrp = hw.LRP(model)
    before = Snapshot(model)
    try:
        lrp(x)
    except HeadwaterError:
        before.check(model)
        raise
    raise WrongError(f"a network with {bad!r} was explained")


def _another_method(draw: Draw, model: Generated, x: Tensor) -> None:
    """The other methods too must follow changes and leave the network alone."""
    name = draw.one(tuple(n for n in _METHODS if n in hw.list_methods()))
    draw.note(name)
    method = hw.load_method(name, model)
    method(x)
    change(draw, model)
    x = x.to(next(model.parameters()).dtype)
    before = Snapshot(model)
    torch.manual_seed(0)
    got = method(x)
    before.check(model)
    torch.manual_seed(0)
    compare(draw, got, hw.load_method(name, model)(x), name)


def _follow(draw: Draw, lrp: hw.LRP, model: Generated, x: Tensor, composite: str | hw.Composite) -> None:
    """After a change: the kept object and a fresh one give the same map, or refuse with the same error."""
    before = Snapshot(model)
    try:
        got: hw.Explanation | HeadwaterError = lrp(x)
    except HeadwaterError as error:
        got = error
    before.check(model)
    try:
        fresh: hw.Explanation | HeadwaterError = hw.LRP(model, composite)(x)
    except HeadwaterError as error:
        fresh = error
    if isinstance(got, HeadwaterError) or isinstance(fresh, HeadwaterError):
        must(type(got) is type(fresh), f"the kept object gave {_word(got)}, a fresh one {_word(fresh)}")
        assert isinstance(got, HeadwaterError)
        raise got
    compare(draw, got, fresh, "after a change")
    _check_logits(model, x, got)


def _word(result: hw.Explanation | HeadwaterError) -> str:
    return f"{type(result).__name__}: {result}" if isinstance(result, HeadwaterError) else "a map"


def _check_logits(model: Generated, x: Tensor, e: hw.Explanation) -> None:
    """The explained logits are the network's own, in eval mode."""
    modes = {module: module.training for module in model.modules()}
    with torch.no_grad():
        own = model.eval()(x)
    for module, mode in modes.items():
        module.training = mode
    # Another order of sums and another memory format in up to twenty layers of sums over at most 576 products.
    limit = 2000 * torch.finfo(x.dtype).eps * float(own.abs().max().clamp(min=1))
    off = float((e.logits - own).abs().max())
    must(off <= limit, f"the explained logits are off by {off:.1e} from the network's own")


def _check_conservation(e: hw.Explanation, exact: bool, told: bool) -> None:
    must(e.heatmap.isfinite().all(), "the map is not finite")
    account = e.conservation
    assert account is not None
    must(
        torch.allclose(e.heatmap.double().sum((1, 2)), account.input.double(), rtol=1e-4, atol=1e-6), "a wrong account"
    )
    if exact and not told:
        worst = float(account.error.max())
        must(worst < 1e-5, f"conservation error {worst:.1e}, and nothing was said")


def _alone(draw: Draw, model: Generated, x: Tensor, composite: str | hw.Composite) -> None:
    """In float64, where rounding is no excuse: an image's map is the same alone and among others."""
    precise, many = copy.deepcopy(model).double(), x.double()
    many = torch.cat([many, torch.randn_like(many[:1]) * 5])
    lrp = hw.LRP(precise, composite)
    together = lrp(many)
    for k in range(len(many)):
        alone = lrp(many[k : k + 1], int(together.target[k]))
        # Kernels may sum in another order for another batch; 1e-16 grows by at most the conditions of twenty layers.
        off = (alone.heatmap - together.heatmap[k]).abs().max() / together.heatmap[k].abs().max().clamp(min=1e-300)
        must(off <= 1e-8, f"image {k} of {len(many)} has another map alone: {float(off):.1e} of its maximum")
        draw.maps += 1


def _prepare(draw: Draw, model: nn.Module) -> None:
    """Modes, gradients and hooks as a user may have them."""
    if draw.chance(0.3):
        model.train()
        draw.note("in train mode")
    for weight in model.parameters():
        if draw.chance(0.2):
            weight.grad = torch.ones_like(weight)
        if draw.chance(0.2):
            weight.requires_grad_(False)
    if draw.chance(0.2):
        model.register_forward_hook(lambda module, inputs, output: None)


class Snapshot:
    """Everything about a network that an explanation must leave as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.rest = self._rest(model)
        self.gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}

    def check(self, model: nn.Module) -> None:
        now = model.state_dict()
        must(now.keys() == self.state.keys(), "the state dict has other names than before")
        changed = [n for n, t in now.items() if not torch.equal(t, self.state[n])]
        must(not changed, f"the explanation changed {changed}")
        must(self._rest(model) == self.rest, "the explanation changed modes, hooks, attributes or requires_grad")
        for name, p in model.named_parameters():
            before = self.gradients[name]
            same = p.grad is None if before is None else p.grad is not None and torch.equal(p.grad, before)
            must(same, f"the explanation changed the gradient of {name}")

    @staticmethod
    def _rest(model: nn.Module) -> dict[str, Any]:
        return {
            name: (
                type(module),
                module.training,
                sorted(vars(module)),
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._backward_hooks),
                [(n, id(p), p.requires_grad, p.dtype) for n, p in module.named_parameters(recurse=False)],
            )
            for name, module in model.named_modules()
        }
