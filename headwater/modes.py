"""torch's modes while a map is made: the same, whatever the caller has switched on and other threads do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


class _Turns:
    """Any number of sweeps side by side, or one tracing alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sweeping = 0
        self._tracing = False

    @contextmanager
    def beside(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._tracing)
            self._sweeping += 1
        try:
            yield
        finally:
            with self._changed:
                self._sweeping -= 1
                self._changed.notify_all()

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


_TURNS = _Turns()


@contextmanager
def tracing(x: Tensor) -> Iterator[None]:
    """For ``torch.export``, which is not made for several threads and switches oneDNN off in all of them meanwhile."""
    with _TURNS.alone(), _plain(x, gradients=False):
        yield


@contextmanager
def computing(x: Tensor, gradients: bool = False) -> Iterator[None]:
    """For a map of the pictures ``x``: their own precision (no autocast, no TF32), and kernels that repeat themselves.

    Not to be entered while tracing is still to come in the same thread.
    """
    with _TURNS.beside(), _plain(x, gradients), ExitStack() as stack:
        if x.device.type == "cuda":
            flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
            stack.enter_context(flags)
            stack.callback(setattr, torch.backends.cuda.matmul, "allow_tf32", torch.backends.cuda.matmul.allow_tf32)
            torch.backends.cuda.matmul.allow_tf32 = False
        yield


def detached(x: Tensor) -> Tensor:
    """The pictures without history; what was made in inference mode, and can have none, is copied."""
    return x.detach().clone() if x.is_inference() else x.detach()


@contextmanager
def _plain(x: Tensor, gradients: bool) -> Iterator[None]:
    """Neither autocast nor inference mode; gradients as asked."""
    autocast = torch.autocast(x.device.type, enabled=False)
    with torch.inference_mode(False), torch.set_grad_enabled(gradients), autocast:
        yield
