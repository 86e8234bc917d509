"""What a network is called with: one tensor, several by position, or several by keyword."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headwater.engine.guards.modes import detached
from headwater.errors import InputError

NetworkInput = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""One tensor ``(N, ...)``, a tuple of them by position, or a mapping of them by keyword, as tokenizers return it."""


@dataclass(frozen=True)
class Inputs:
    """The tensors of one call, each with the batch first.

    Attributes:
        tensors: in the order of the call.
        keys: the keyword of each, or its position.
        alone: the call has one tensor that is neither in a tuple nor in a mapping.
    """

    tensors: tuple[Tensor, ...]
    keys: tuple[str | int, ...] = (0,)
    alone: bool = True

    @staticmethod
    def of(x: Any) -> Inputs:
        """The inputs that ``x`` stands for.

        Raises:
            InputError: ``x`` is none of the kinds of :data:`NetworkInput`, or holds something else than tensors.
        """
        if isinstance(x, Inputs):
            return x
        if isinstance(x, Tensor):
            return Inputs((x,))
        if isinstance(x, Mapping) and all(isinstance(key, str) for key in x):
            found = Inputs(tuple(x.values()), tuple(x), alone=False)
        elif isinstance(x, (tuple, list)) and not all(isinstance(item, (int, float)) for item in x):
            found = Inputs(tuple(x), tuple(range(len(x))), alone=False)
        else:
            raise InputError(
                f"inputs must be a tensor (N, ...), a tuple of tensors or a mapping of them, got {type(x).__name__}"
            )
        for key, tensor in zip(found.keys, found.tensors, strict=True):
            if not isinstance(tensor, Tensor):
                hint = '; a tokenizer or processor gives tensors with return_tensors="pt"'
                raise InputError(f"input {key!r} must be a tensor (N, ...), got {type(tensor).__name__}{hint}")
        if not found.tensors:
            raise InputError("inputs are empty; at least one tensor (N, ...) is needed")
        return found

    def __len__(self) -> int:
        """How many examples there are, N."""
        return len(self.tensors[0])

    def __iter__(self) -> Iterator[tuple[str | int, Tensor]]:
        return iter(zip(self.keys, self.tensors, strict=True))

    @property
    def by_keyword(self) -> bool:
        """Whether the network takes them by name."""
        return isinstance(self.keys[0], str)

    @property
    def arguments(self) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword arguments of the network's call."""
        if self.by_keyword:
            return (), {str(key): tensor for key, tensor in self}
        return self.tensors, {}

    @property
    def floating(self) -> Tensor:
        """A floating-point tensor of the device that the inputs are on: the first there is, else an empty one."""
        found = next((t for t in self.tensors if t.is_floating_point()), None)
        return torch.empty(0, device=self.tensors[0].device) if found is None else found

    @property
    def signature(self) -> tuple[object, ...]:
        """What two calls that one trace serves have in common: everything but the values and their number."""
        return self.alone, self.keys, *((t.shape[1:], t.dtype, t.device) for t in self.tensors)

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same inputs with each tensor changed."""
        return Inputs(tuple(change(tensor) for tensor in self.tensors), self.keys, self.alone)

    def select(self, which: slice | Tensor) -> Inputs:
        """Some of the examples."""
        return self.map(lambda tensor: tensor[which])

    def cloned(self) -> Inputs:
        """Copies, for a network that may write over what it is given."""
        return self.map(lambda tensor: tensor.detach().clone())

    def prepared(self) -> Inputs:
        """Without history, images in the layout that convolutions are fastest in."""
        return self.map(lambda tensor: channels_last(detached(tensor)))

    def structured(self, values: Sequence[Tensor]) -> Any:
        """One value for each tensor, as the call has them: alone, as a tuple, or as a dict."""
        if self.alone:
            return values[0]
        return dict(zip(self.keys, values, strict=True)) if self.by_keyword else tuple(values)


def channels_last(tensor: Tensor) -> Tensor:
    """The layout that convolutions are fastest in."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
