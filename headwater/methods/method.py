"""The protocol of explanation methods: called with images, a method returns an ``Explanation``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from headwater.engine.explanation import Explanation
from headwater.engine.seed import Target
from headwater.errors import InputError

Checkpoints = Sequence[str] | Literal["cuts"] | None
"""Modules at whose input relevance is recorded, or ``"cuts"``: each value that all paths from image to output cross."""
Progress = Callable[[int, int], None]
"""Called with the steps done and the steps in all while a method works on a batch."""


class Method(Protocol):
    """An explanation method for one model."""

    def __call__(
        self,
        x: Float[Tensor, "n c h w"],
        target: Target = None,
        *,
        checkpoints: Checkpoints = (),
        progress: Progress | None = None,
    ) -> Explanation:
        """Explain images.

        Args:
            x: images ``(N, C, H, W)``, normalised as the network expects.
            target: class to explain: ``None`` for the predicted one, an int for all images, or long ``(N,)``.
            checkpoints: where relevance is recorded, for methods that propagate it through the network. The others
                have nothing to record at cuts, and raise an error for the name of a module.
            progress: called after each step; a method without steps of its own calls it once, with (1, 1).

        Raises:
            InputError: the images, the target or the checkpoints do not fit.
        """
        ...


def check_no_modules(checkpoints: Checkpoints) -> None:
    """Check the checkpoints of a method that propagates no relevance through the network.

    Raises:
        InputError: relevance at the input of a module was asked for.
    """
    if checkpoints not in ((), [], None, "cuts"):
        raise InputError(
            f"this method has no relevance inside the network, so none at {checkpoints!r}; the LRP composites do"
        )


def as_method(call: Callable[..., Explanation]) -> Method:
    """``call(x, target)`` as a method; unchanged if it also takes ``checkpoints`` and ``progress``."""
    parameters = inspect.signature(call).parameters
    if {"checkpoints", "progress"} <= set(parameters) or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return call
    return _Plain(call)


class _Plain:
    """A method made from a callable that takes neither checkpoints nor progress."""

    def __init__(self, call: Callable[..., Explanation]) -> None:
        self.call = call

    def __call__(
        self, x: Tensor, target: Target = None, *, checkpoints: Checkpoints = (), progress: Progress | None = None
    ) -> Explanation:
        check_no_modules(checkpoints)
        e = self.call(x, target)
        if progress is not None:
            progress(1, 1)
        return e
