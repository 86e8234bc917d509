"""The protocol of explanation methods: called with images, a method returns an ``Explanation``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from headwater.engine.explanation import Explanation
from headwater.engine.graph import Graph
from headwater.engine.inputs import Inputs, NetworkInput
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
        x: NetworkInput,
        target: Target = None,
        *,
        checkpoints: Checkpoints = (),
        progress: Progress | None = None,
    ) -> Explanation:
        """Explain inputs.

        Args:
            x: what the network takes, as for :class:`headwater.LRP`; methods for images alone say so.
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


def check_kind(method: str, graph: Graph, inputs: Inputs, refuses: Mapping[str, str]) -> None:
    """Refuse inputs that a method is not for.

    Args:
        method: its name.
        graph: the network.
        inputs: what it is called with.
        refuses: kinds of inputs, ``"ids"``, ``"several"`` and ``"not images"``, each with the reason.

    Raises:
        InputError: the inputs are of a kind that the method refuses.
    """
    sources = graph.sources
    images = len(inputs.tensors) == 1 and inputs.tensors[0].ndim == 4 and not sources[0].ids
    kinds = {
        "ids": any(source.ids for source in sources),
        "several": len(inputs.tensors) > 1,
        "not images": not images,
    }
    for kind, reason in refuses.items():
        if kinds[kind]:
            given = ", ".join(str(tuple(t.shape)) for t in inputs.tensors)
            raise InputError(f"{method} cannot explain inputs of shape {given}: {reason}; the LRP composites can")


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
        self, x: NetworkInput, target: Target = None, *, checkpoints: Checkpoints = (), progress: Progress | None = None
    ) -> Explanation:
        check_no_modules(checkpoints)
        e = self.call(x, target)
        if progress is not None:
            progress(1, 1)
        return e
