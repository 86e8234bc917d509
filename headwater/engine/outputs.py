"""Which of the tensors that a network returns is explained, and whether its list of operations returns the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from headwater.engine.copies import shared_copy
from headwater.engine.graph import Graph
from headwater.engine.guards.modes import computing
from headwater.engine.guards.signature import changed, signature
from headwater.engine.heads import with_head
from headwater.engine.inputs import Inputs
from headwater.engine.interpreter import output_of
from headwater.engine.weights import live_tensors
from headwater.errors import InputError, TraceError

Output = str | int | Sequence[str | int] | None
"""One of several outputs: a key, a position, or a path of them (``"decoder.logits"``, ``("out", 0)``)."""
_BY_NAME = ("logits", "out")
"""Names of the output that is meant among several: transformers' and that of torchvision's segmentation networks."""


def own_output(model: nn.Module, inputs: Inputs) -> tuple[Any, frozenset[tuple[str, str]]]:
    """What the model itself returns in eval mode, as torch's pytree can flatten it.

    Returns:
        The result, and which attributes of its modules the forward has written, such as its last feature map.

    Raises:
        InputError: the model fails on such inputs.
    """
    copied = shared_copy(model, to_run=True)
    before = signature(copied)
    args, kwargs = inputs.cloned().arguments
    try:
        with computing(inputs.floating):
            result = copied(*args, **kwargs)
    except Exception as error:  # whatever the user's forward raises
        shapes = ", ".join(f"{key}: {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for key, t in inputs)
        reason = str(error).strip().splitlines()
        required = [p.name for p in inspect.signature(model.forward).parameters.values() if p.default is p.empty]
        required = required if len(required) > len(inputs.tensors) else []
        hint = "The batch comes first: a batch of one is x[None]"
        if required:
            hint = f"It takes {', '.join(required)}: give a tuple of them by position, or a mapping by keyword"
        raise InputError(
            f"{type(model).__name__} fails on inputs of shape {shapes if not inputs.alone else shapes[3:]}: "
            f"{type(error).__name__}: {reason[0] if reason else ''}. {hint}"
        ) from error
    if is_dataclass(result) and type(result) not in _pytree.SUPPORTED_NODES and not isinstance(result, Mapping):
        torch.export.register_dataclass(type(result))
    return result, changed(before, signature(copied))


def chosen_output(result: Any, output: Output, model: str, count: int) -> tuple[int, Tensor]:
    """Which of the tensors that a model returns, flattened, is explained, and the tensor.

    Without ``output`` it is the only one; ``logits`` by name; ``out`` by name, where the others are auxiliary; of
    probabilities and the logits that they are made of, the logits.

    Raises:
        TraceError: ``output`` names none, or none is meant.
    """
    paths, values = _tensors(result)
    tensors = {k: v for k, v in enumerate(values) if isinstance(v, Tensor) and v.is_floating_point()}
    if output is not None:
        steps = (
            tuple(output.split(".")) if isinstance(output, str) else (output,) if isinstance(output, int) else output
        )
        wanted = tuple(str(step) for step in steps)
        for k in tensors:
            if paths[k] == wanted:
                return k, tensors[k]
        if isinstance(result, Tensor):
            raise TraceError(f"{model} returns one tensor, so output must be None, got {output!r}")
        raise TraceError(f"{model} returns no tensor at {output!r}. {_listed(paths, tensors)}")
    if len(tensors) == 1:
        return next(iter(tensors.items()))
    for name in _BY_NAME:
        for k, tensor in tensors.items():
            if paths[k] == (name,):
                return k, tensor
    if len(tensors) == 2:
        (one, a), (other, b) = tensors.items()
        for k, logits, made in ((other, b, a), (one, a, b)):
            if logits.shape == made.shape and logits.ndim > 1 and logits.shape[0] == count and _made_of(made, logits):
                return k, logits
    if not tensors:
        raise TraceError(f"{model} returns no tensor of floating point, got {type(result).__name__}")
    raise TraceError(
        f"{model} returns {len(tensors)} values; one tensor can be explained at a time. {_listed(paths, tensors)}"
    )


def _tensors(result: Any) -> tuple[list[tuple[str, ...]], list[Any]]:
    """What torch's pytree flattens a result to, and the path of each by keys, names and positions."""
    found, _ = _pytree.tree_flatten_with_path(result)
    return [tuple(_step(key) for key in path) for path, _ in found], [value for _, value in found]


def _step(key: Any) -> str:
    for name in ("key", "name", "idx"):
        if hasattr(key, name):
            return str(getattr(key, name))
    return str(key)


def _made_of(made: Tensor, logits: Tensor) -> bool:
    """Whether the first are the probabilities of the second."""
    makers: tuple[Callable[[Tensor], Tensor], ...] = (lambda z: z.softmax(1), torch.sigmoid)
    return any(torch.allclose(made, maker(logits), rtol=1e-3, atol=1e-5) for maker in makers)


def _listed(paths: Sequence[tuple[str, ...]], tensors: Mapping[int, Tensor]) -> str:
    """The outputs with their shapes, and the call that chooses the first."""
    shown = [f"{'.'.join(paths[k])} {tuple(tensor.shape)}" for k, tensor in tensors.items()]
    if not shown:
        return "It returns no tensor of floating point"
    first = paths[next(iter(tensors))]
    argument = repr(int(first[0])) if len(first) == 1 and first[0].isdigit() else repr(".".join(first))
    return f"They are {', '.join(shown)}. Say which with LRP(model, output={argument})"


def check_again(graph: Graph, model: nn.Module, inputs: Inputs) -> None:
    """Compare once more, for another number of examples.

    Raises:
        TraceError: the outputs differ.
    """
    result, _ = own_output(model, inputs)
    check_output(graph, model, inputs, _pytree.tree_leaves(result)[graph.returned])


def check_output(graph: Graph, model: nn.Module, inputs: Inputs, own: Tensor) -> None:
    """Compare what the list of operations returns with what the model itself returned for the same inputs.

    They may differ by rounding: by the square root of the dtype's resolution, half of its digits.

    Raises:
        TraceError: they differ by more, so the model does not run the same operations for every input.
    """
    tensors = live_tensors(model, graph.weights)
    name = type(model).__name__
    try:
        with computing(inputs.floating):
            traced = with_head(output_of(graph, tensors, inputs), graph)
    except RuntimeError as error:  # of an operation whose sizes are another input's
        raise TraceError(f"the trace of {name} does not run on other inputs than zeros: {error}") from error
    if traced.shape != own.shape:
        raise TraceError(
            f"the trace of {name} returns {tuple(traced.shape)}, the network itself {tuple(own.shape)}: its forward "
            "computes shapes from the inputs' values"
        )
    difference = (traced - own).abs()
    scale = own[own.isfinite()].abs().max() if own.isfinite().any() else own.new_zeros(())
    resolution = max(torch.finfo(own.dtype).eps, torch.finfo(traced.dtype).eps)
    limit = resolution**0.5 * scale + torch.finfo(own.dtype).tiny
    wrong = (difference > limit) | (traced.isfinite() != own.isfinite())
    if wrong.any():
        at = int(wrong.flatten().nonzero()[0])
        raise TraceError(
            f"the trace of {name} returns {traced.flatten()[at].item():.6g} where the network itself returns "
            f"{own.flatten()[at].item():.6g}: its forward runs other operations for some inputs, so one list of "
            "operations does not stand for it"
        )
