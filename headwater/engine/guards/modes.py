"""torch's modes while a map is made: the same, whatever the caller has switched on and other threads do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_CUDNN: Any = torch.backends.cudnn
_EXACT_KERNELS: tuple[tuple[Any, str, Any], ...] = (
    (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
    (_CUDNN.conv, "fp32_precision", "ieee"),
    (_CUDNN.rnn, "fp32_precision", "ieee"),
    (_CUDNN, "deterministic", True),
    (_CUDNN, "benchmark", False),
)
"""On CUDA: no TF32 and no kernel whose result depends on scheduling, so that sums are exact and runs repeat."""


class ReadWriteLock:
    """Any number of sweeps side by side, or one tracing alone.

    torch's choice of kernels is the process's, not a thread's: the first sweep that needs exact ones makes it, the last
    of all sweeps puts back what was there.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sweeping = 0
        self._tracing = False
        self._kernels_before: list[Any] | None = None

    @contextmanager
    def beside(self, exact_kernels: bool) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._tracing)
            self._sweeping += 1
            if exact_kernels and self._kernels_before is None:
                self._kernels_before = [getattr(owner, name) for owner, name, _ in _EXACT_KERNELS]
                self._set_kernels([value for _, _, value in _EXACT_KERNELS])
        try:
            yield
        finally:
            with self._changed:
                self._sweeping -= 1
                if not self._sweeping and self._kernels_before is not None:
                    self._set_kernels(self._kernels_before)
                    self._kernels_before = None
                self._changed.notify_all()

    @staticmethod
    def _set_kernels(values: list[Any]) -> None:
        for (owner, name, _), value in zip(_EXACT_KERNELS, values, strict=True):
            setattr(owner, name, value)

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._tracing and not self._sweeping)
            self._tracing = True
        try:
            yield
        finally:
            with self._changed:
                self._tracing = False
                self._changed.notify_all()


_LOCK = ReadWriteLock()


@contextmanager
def tracing(x: Tensor) -> Iterator[None]:
    """For ``torch.export``, which is not made for several threads and switches oneDNN off in all of them meanwhile."""
    with _LOCK.alone(), _plain(x, gradients=False):
        yield


@contextmanager
def computing(x: Tensor, gradients: bool = False) -> Iterator[None]:
    """For a map of the images ``x``: their own precision (no autocast, no TF32), and kernels that repeat themselves.

    Not to be entered while tracing is still to come in the same thread.
    """
    with _LOCK.beside(exact_kernels=x.device.type == "cuda"), _plain(x, gradients):
        yield


def observed() -> bool:
    """Whether something traces, watches or differentiates what is run.

    oneDNN's own operations cannot be traced or differentiated, and a trace has no values by which to decide what to
    run.
    """
    return bool(torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or transformed())


def unwatched() -> bool:
    """Whether values may be asked for and written over: no gradients are wanted, and nothing traces."""
    return not (torch.is_grad_enabled() or observed())


def spare(memory: Tensor) -> Tensor | None:
    """What nothing reads any more, for the ``out`` of an operation.

    None where gradients are wanted, or something traces: torch's compiler takes no ``out`` that is not contiguous, and
    shares memory by itself.
    """
    return memory if unwatched() else None


def transformed() -> bool:
    """Whether a transform of functorch, such as ``vjp``, is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def detached(x: Tensor) -> Tensor:
    """The images without history; what was made in inference mode, and can have none, is copied."""
    return x.detach().clone() if x.is_inference() else x.detach()


@contextmanager
def _plain(x: Tensor, gradients: bool) -> Iterator[None]:
    """Neither autocast nor inference mode; gradients as asked."""
    autocast = torch.autocast(x.device.type, enabled=False)
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), autocast:
        yield
