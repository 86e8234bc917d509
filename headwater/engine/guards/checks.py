"""Input checks: inputs, maps and networks are validated before any work."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from headwater.engine.inputs import Inputs
from headwater.errors import InputError


def check_inputs(inputs: Inputs, model: nn.Module) -> None:
    """Inputs that ``model`` can take; run once for each trace.

    Raises:
        InputError: dtype or device are not the model's; ``model`` is no module, has no weights, is quantised or
            compiled by TorchScript.
    """
    check_module(model)
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise InputError("the model is on the meta device and has no weights; load weights into it first")
    quantized = next((m for m in model.modules() if "quantized" in type(m).__module__.split(".")), None)
    if quantized is not None or any(tensor.is_quantized for tensor in tensors):
        raise InputError("the model is quantised; explain the floating-point model that it was made from")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    for _, tensor in inputs:
        floating = tensor.is_floating_point()
        if parameter is not None and (
            parameter.device != tensor.device or (floating and parameter.dtype != tensor.dtype)
        ):
            raise InputError(
                f"the model is {parameter.dtype} on {parameter.device}, the inputs are {tensor.dtype} on "
                f"{tensor.device}; move one to the other"
            )


def check_values(inputs: Inputs) -> None:
    """Inputs that are dense tensors of numbers with the batch first; run at each call.

    Raises:
        InputError: an input is not dense, has no values or is not finite; the batch is empty, or not the same
            everywhere.
    """
    for key, tensor in inputs:
        name = "the input" if inputs.alone else f"input {key!r}"
        if tensor.layout != torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise InputError(
                f"{name} must be a dense tensor (N, ...), got a {kind} one; make it dense first (to_dense)"
            )
        if tensor.ndim == 0 or 0 in tensor.shape or (tensor.ndim == 1 and inputs.alone and tensor.is_floating_point()):
            raise InputError(
                f"{name} must be a tensor (N, ...) with the batch first and at least one example, got "
                f"{tuple(tensor.shape)}" + ("; a batch of one is x[None]" if tensor.ndim else "")
            )
        if tensor.is_complex():
            raise InputError(f"{name} must be floating point or whole numbers, got {tensor.dtype}")
        if tensor.is_meta:
            raise InputError(f"{name} is on the meta device and has no values; load it onto the model's device")
        if len(tensor) != len(inputs):
            raise InputError(
                f"all inputs need the same number of examples in dimension 0; {inputs.keys[0]!r} has {len(inputs)}, "
                f"{key!r} has {len(tensor)}"
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{name} holds NaN or infinity")


def check_module(model: Any) -> None:
    """A module whose code can be read.

    Raises:
        InputError: it is no module, or one that TorchScript has compiled, as a whole or in part.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"module {name!r} of the model" if name else "the model"
            raise InputError(
                f"{what} is compiled by TorchScript (torch.jit.trace, script or load), which torch.export cannot read; "
                "explain the Python module that it was made from"
            )


def check_maps(heatmap: Any, ndim: int | None = 3) -> None:
    """Maps of ``ndim`` dimensions, ``(N, H, W)`` or others, or ``(..., H, W)`` where ``ndim`` is ``None``.

    Raises:
        InputError: wrong shape or dtype, or not finite.
    """
    wanted = "(..., H, W)" if ndim is None else "(N, H, W)" if ndim == 3 else f"of {ndim} dimensions"
    if not isinstance(heatmap, Tensor):
        raise InputError(f"maps must be a floating point tensor {wanted}, got {type(heatmap).__name__}")
    if heatmap.layout != torch.strided or heatmap.is_meta:
        kind = (
            "on the meta device and have no values" if heatmap.is_meta else "sparse; make them dense first (to_dense)"
        )
        raise InputError(f"the maps are {kind}")
    fits = heatmap.ndim >= 2 if ndim is None else heatmap.ndim == ndim
    if not fits or heatmap.numel() == 0 or not heatmap.is_floating_point():
        raise InputError(f"maps must be floating point {wanted}, got {heatmap.dtype} {tuple(heatmap.shape)}")
    if not heatmap.isfinite().all():
        raise InputError("the maps hold NaN or infinity")


def check_whole(value: Any, what: str, least: int, most: int) -> None:
    """A whole number from ``least`` to ``most``.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
        raise InputError(f"{what} must be a whole number of at least {least} and at most {most:,}, got {value!r}")


def check_classes(given: Any, what: str, count: int, device: torch.device) -> Tensor:
    """One class or one for each of ``count`` images: an int, a list or an integer tensor, as long ``()`` or ``(N,)``.

    Raises:
        InputError: it is something else.
    """
    try:
        numbers = given if isinstance(given, Tensor) else torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        numbers = None
    if numbers is None or numbers.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        shown = given.dtype if isinstance(given, Tensor) else f"{type(given).__name__} {given!r}"
        raise InputError(f"{what} must be an int or a long tensor (N,), got {shown}")
    if numbers.shape not in ((), (count,)):
        raise InputError(f"{what} must be one class or one per image ({count}), got shape {tuple(numbers.shape)}")
    return numbers.to(device, torch.long)
