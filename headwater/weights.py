"""The model's parameters, looked up at each call, and what has been derived from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from headwater.errors import InputError


class WeightStore:
    """Live parameters and buffers of a model by name, with a cache that lasts as long as they do not change.

    A change is noticed by a tensor's identity and version, and by a few of its values, so writes through ``.data``
    (which have no version) are noticed too.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.model = model
        self.names = tuple(dict.fromkeys(names))
        self.tensors: dict[str, Tensor] = {}
        self._cache: dict[Any, Any] = {}
        self._identity: Any = None
        self._probe: Tensor | None = None

    def refresh(self) -> None:
        """Look the tensors up again; forget what was derived if any has changed.

        Raises:
            InputError: a tensor is gone, or holds NaN or infinity.
        """
        tensors = {name: self._tensor(name) for name in self.names}
        identity = [(t.data_ptr(), t._version, t.shape, t.stride(), t.dtype, t.device) for t in tensors.values()]
        probe = torch.cat([_samples(t) for t in tensors.values()]) if tensors else torch.zeros(0)
        unchanged = identity == self._identity and self._probe is not None and torch.equal(probe, self._probe)
        self.tensors = tensors
        if unchanged:
            return
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise InputError(f"weight {name!r} holds NaN or infinity; a map made from it would mean nothing")
        self._cache.clear()
        self._identity, self._probe = identity, probe

    def derived(self, key: Any, make: Callable[[], Any]) -> Any:
        """``make()``, kept under ``key`` until a weight changes."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def _tensor(self, name: str) -> Tensor:
        path, _, leaf = name.rpartition(".")
        try:
            tensor = getattr(self.model.get_submodule(path), leaf)
        except AttributeError as error:
            raise InputError(f"the model no longer has {name!r}; make a new LRP after changing its layers") from error
        return tensor.detach()


def _samples(tensor: Tensor, count: int = 4) -> Tensor:
    """A few of the tensor's values, spread over its memory."""
    elements = tensor.numel()
    if elements == 0:
        return torch.zeros(0, device=tensor.device)
    dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    if not dense:
        return tensor.sum().reshape(1).float()
    step = max(1, elements // count)
    return tensor.as_strided(((elements - 1) // step + 1,), (step,), tensor.storage_offset()).float()
