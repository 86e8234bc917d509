"""Input checks: images, maps and networks are validated before any work."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from headwater.engine.guards.modes import computing
from headwater.engine.trace import shared_copy
from headwater.errors import InputError


def check_images(x: Any, model: nn.Module) -> None:
    """Images that ``model`` can take.

    Raises:
        InputError: ``x`` is no dense floating-point batch ``(N, C, H, W)``, holds NaN or infinity, or is of another
            dtype, device or number of channels than the model; ``model`` is no module, has no weights, is quantised or
            compiled by TorchScript.
    """
    check_module(model)
    if isinstance(x, Tensor) and (x.layout != torch.strided or x.is_nested):
        kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        raise InputError(
            f"images must be a dense tensor (N, C, H, W), got a {kind} one; make it dense first (to_dense)"
        )
    if not isinstance(x, Tensor) or x.ndim != 4 or 0 in x.shape:
        given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"images must be a tensor (N, C, H, W) with at least one image, got {given}")
    if not x.is_floating_point():
        raise InputError(f"images must be floating point and normalised as the network expects, got {x.dtype}")
    if x.is_meta:
        raise InputError("images are on the meta device and have no values; load them onto the model's device")
    if not x.isfinite().all():
        raise InputError("images hold NaN or infinity")
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise InputError("the model is on the meta device and has no weights; load weights into it first")
    quantized = next((m for m in model.modules() if "quantized" in type(m).__module__.split(".")), None)
    if quantized is not None or any(tensor.is_quantized for tensor in tensors):
        raise InputError("the model is quantised; explain the floating-point model that it was made from")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is not None and (parameter.device != x.device or parameter.dtype != x.dtype):
        raise InputError(
            f"the model is {parameter.dtype} on {parameter.device}, the images are {x.dtype} on {x.device}; "
            "move one to the other"
        )
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and first.in_channels != x.shape[1] and not _runs(model, x):
        raise InputError(f"the network takes images of {first.in_channels} channels, got {x.shape[1]}")


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


def _runs(model: nn.Module, x: Tensor) -> bool:
    """Whether the network takes such images after all: its first convolution need not see the image itself."""
    try:
        with computing(x):
            shared_copy(model)(x[:1])
    except RuntimeError:
        return False
    return True


def check_maps(heatmap: Any, ndim: int | None = 3) -> None:
    """Maps ``(N, H, W)``, or ``(..., H, W)`` where ``ndim`` is ``None``.

    Raises:
        InputError: wrong shape or dtype, or not finite.
    """
    wanted = "(..., H, W)" if ndim is None else "(N, H, W)"
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
