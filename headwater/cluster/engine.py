"""What a run asks of an engine, and an engine of a run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

Row = dict[str, Any]
Rows = Generator[tuple[int, list[Row]], None, None]
"""Number and rows of each chunk, as it is finished."""


class ChunkWorker(Protocol):
    """What makes the rows of a chunk of images; an image is anything with a ``name``."""

    def rows(self, images: Sequence[Any], given_up: Mapping[str, str]) -> list[Row]:
        """The rows of the images; those of ``given_up`` are not tried, and have the reason as their ``error``."""
        ...


class Engine(Protocol):
    """What spreads the chunks of a run over workers."""

    def run(self, make: Callable[[str], ChunkWorker], chunks: Sequence[Sequence[Any]], todo: Sequence[int]) -> Rows:
        """Number and rows of each chunk to do, each once, in any order.

        Args:
            make: makes a worker, given its device; it is sent to the workers with all that it holds.
            chunks: of images.
            todo: numbers of the chunks that are wanted.
        """
        ...
