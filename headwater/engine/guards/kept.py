"""What is made from a model's trace, kept for some image sizes and for as long as the model does not change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from headwater.engine.graph import Graph
from headwater.engine.guards.coupling import check_independence
from headwater.engine.guards.fingerprint import Fingerprint
from headwater.engine.trace import trace

Made = TypeVar("Made")
_SIZES = 8  # image sizes that are kept


class Kept(Generic[Made]):
    """Results by the size, dtype and device of the images; all are dropped once the model's fingerprint differs.

    Threads may share one. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[Fingerprint, OrderedDict[tuple[object, ...], Made]] | None = None

    def get(
        self,
        model: nn.Module,
        x: Tensor,
        make: Callable[[Graph], Made],
        output: str | int | None = None,
        further: object = None,
    ) -> Made:
        """What is kept for images like ``x``, else what ``make`` returns for the model's trace.

        Args:
            model: the network.
            x: images.
            make: from the list of operations that such images go through.
            output: which output is traced, if the model returns several.
            further: anything else that the result depends on.

        Raises:
            TraceError: the model cannot be traced.
            InputError: the images of a batch change each other's results.
        """
        known = self._known
        if known is None or not known[0].holds(model):
            known = self._known = Fingerprint(model), OrderedDict()  # before tracing: what changes meanwhile shows
        made = known[1]
        key: tuple[object, ...] = (*x.shape[1:], x.dtype, x.device, output, further)
        with self._lock:
            for size in (key, (*key, len(x))):
                if size in made:
                    made.move_to_end(size)
                    return made[size]
        graph = trace(model, x, output)
        check_independence(graph, model, x)
        result = make(graph)
        with self._lock:
            made[key if graph.batch is None else (*key, graph.batch)] = result
            while len(made) > _SIZES:
                made.popitem(last=False)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()
