"""What every explanation method is: called with images, it returns an ``Explanation``."""

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
"""Modules at whose input relevance is noted, or ``"cuts"``: every value that all paths from image to output cross."""
Progress = Callable[[int, int], None]
"""Called during one call of a method: steps done, steps in all."""


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
            checkpoints: where relevance is noted, for methods that send it through the network. Others have none at
                any cut; asked for a module's, they refuse.
            progress: called after each step of methods that take many per image.
        """
        ...


def check_no_modules(checkpoints: Checkpoints) -> None:
    """For methods that send no relevance through the network.

    Raises:
        InputError: relevance at a module's input was asked for.
    """
    if checkpoints not in ((), [], None, "cuts"):
        raise InputError(f"this method has no relevance inside the network, so no checkpoints {checkpoints!r}")


def as_method(call: Callable[..., Explanation]) -> Method:
    """A callable ``(x, target)`` as a method; one that takes ``checkpoints`` and ``progress`` too is one already."""
    parameters = inspect.signature(call).parameters
    if {"checkpoints", "progress"} <= set(parameters) or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return call
    return _Plain(call)


class _Plain:
    """A method that knows neither checkpoints nor progress."""

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
