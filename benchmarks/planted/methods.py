"""The methods that are compared, each from examples to maps of the class that they belong to."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from captum.attr import InputXGradient, IntegratedGradients
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.planted.data import CLS, PAD, Examples
from benchmarks.planted.networks import Attention, Transformer
from benchmarks.planted.signed import composites
from headwater import LRP, Explanation
from headwater.methods import load_method

OURS = ("headwater", "otsuki2024")

STEPS = 50
"""Of integrated gradients."""


@dataclass(frozen=True)
class Maps:
    """Relevance at each place, and how far its sum is from what the method promises, as a share of that."""

    heatmap: Float[Tensor, "n ..."]
    error: Float[Tensor, " n"] | None = None


Method = Callable[[Examples], Maps]


def methods(network: nn.Module) -> dict[str, Method]:
    """Every method that is measured on ``network``, by name; LXT where it is installed.

    Gradient methods explain the logit. In the transformer they begin at the sum of token and position embeddings, as
    LRP counts what both receive to the token; in the variants of integrated gradients the path begins at zero or at
    the positions alone, which is a sequence of [PAD] after [CLS].
    """
    found: dict[str, Method] = {name: partial(lrp, load_method(name, network)) for name in OURS}
    found["gradient x input"] = partial(gradient_x_input, network)
    if not isinstance(network, Transformer):
        return {**found, "integrated gradients": partial(integrated_gradients, network)}
    found["integrated gradients, from zero"] = partial(integrated_gradients, network)
    found["integrated gradients, from [PAD]"] = partial(integrated_gradients, network, padding=True)
    if has_lxt():
        found["LXT (AttnLRP)"] = partial(gradient_x_input, attn_lrp(network))
        found["LXT (CP-LRP)"] = partial(gradient_x_input, attn_lrp(network, through_softmax=False))
    return found


def candidates(network: nn.Module) -> dict[str, Method]:
    """What might be better than Headwater's methods: only the input's own scale, and rules with signs, one by one."""
    given = composites()
    if not isinstance(network, Transformer):
        given = {name: composite for name, composite in given.items() if "attention" not in name}
    found: dict[str, Method] = {"`headwater`, the input's scale alone": partial(lrp, LRP(network, "headwater"))}
    return {**found, **{name: partial(lrp, LRP(network, composite)) for name, composite in given.items()}}


def lrp(method: Callable[..., Explanation], examples: Examples) -> Maps:
    """One of Headwater's methods."""
    e = method(examples.inputs, examples.labels)
    assert e.conservation is not None
    return Maps(e.heatmap, e.conservation.error)


def gradient_x_input(network: nn.Module, examples: Examples) -> Maps:
    """Captum's, summed over channels or features."""
    forward, h, arguments = _differentiable(network, examples)
    found = InputXGradient(forward).attribute(h, examples.labels, arguments)
    return Maps(_summed(network, found))


def integrated_gradients(network: nn.Module, examples: Examples, padding: bool = False) -> Maps:
    """Captum's, summed over channels or features, from zero or from a sequence of padding."""
    forward, h, arguments = _differentiable(network, examples)
    begin = torch.zeros_like(h).detach()
    if padding:
        empty = torch.where(examples.x == CLS, CLS, PAD)
        begin = _differentiable(network, replace(examples, x=empty))[1]
    found, rest = IntegratedGradients(forward).attribute(
        h, begin, examples.labels, arguments, STEPS, internal_batch_size=256, return_convergence_delta=True
    )
    promised = found.flatten(1).sum(1) - rest
    return Maps(_summed(network, found), (rest / promised).abs().detach())


def _differentiable(
    network: nn.Module, examples: Examples
) -> tuple[Callable[..., Tensor], Tensor, tuple[Tensor, ...] | None]:
    """What gradients are taken of: a function, the value they are taken in, and what else the function needs."""
    if not isinstance(network, Transformer):
        return network, examples.x.clone().requires_grad_(), None
    return network.from_embeddings, network.embed(examples.x).requires_grad_(), examples.arguments[1:]


def _summed(network: nn.Module, relevance: Tensor) -> Tensor:
    """Relevance without channels, or without the features of an embedding."""
    return relevance.detach().sum(2 if isinstance(network, Transformer) else 1)


# -- LXT --------------------------------------------------------------------------------------------------------------


def attn_lrp(network: Transformer, through_softmax: bool = True) -> Transformer:
    """A copy of ``network`` whose gradient times its input is AttnLRP (Achtibat et al. 2024), by LXT's own functions.

    It is what ``lxt.efficient.monkey_patch`` does to BERT: ``layer_norm_forward`` for every LayerNorm (the standard
    deviation counts as a constant), ``non_linear_forward`` for every GELU (the identity rule),
    ``wrap_attention_forward`` around the attention (gradients of query and key divided by 4, of the value by 2).

    Args:
        network: it is not changed.
        through_softmax: ``False`` is CP-LRP: query and key receive nothing (``cp_wrap_attention_forward``).
    """
    patches = _lxt_patches()
    wrap = patches.wrap_attention_forward if through_softmax else patches.cp_wrap_attention_forward
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = types.MethodType(patches.layer_norm_forward, module)
        elif isinstance(module, nn.GELU):
            module.original_forward = module.forward
            module.forward = types.MethodType(patches.non_linear_forward, module)
        elif isinstance(module, Attention):
            module.attend = types.MethodType(wrap(Attention.attend), module)
    return network


def has_lxt() -> bool:
    """Whether LXT can be found."""
    return find_spec("lxt") is not None


def _lxt_patches() -> types.ModuleType:
    """``lxt.efficient.patches`` without ``lxt.efficient`` itself, which imports files that transformers 5 has not."""
    spec = find_spec("lxt")
    assert spec is not None and spec.submodule_search_locations
    package = types.ModuleType("lxt.efficient")
    package.__path__ = [str(Path(spec.submodule_search_locations[0]) / "efficient")]
    sys.modules.setdefault("lxt.efficient", package)
    return import_module("lxt.efficient.patches")
