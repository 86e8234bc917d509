"""What has been made from a model's trace, kept for some image sizes and as long as the model is as it was."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from headwater.engine.guards.fingerprint import Fingerprint

Made = TypeVar("Made")
_SIZES = 8  # image sizes that are kept


class Kept(Generic[Made]):
    """Results by the size, dtype and device of the images; all are dropped once the model's fingerprint differs.

    Threads may share one. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[Fingerprint, OrderedDict[tuple[object, ...], Made]] | None = None

    def get(self, model: nn.Module, x: Tensor, make: Callable[[], tuple[Made, int | None]], *further: object) -> Made:
        """What is kept for images like ``x``, else what ``make`` returns, with the batch size that it is tied to.

        ``further`` is what else it depends on.
        """
        known = self._known
        if known is None or not known[0].holds(model):
            known = self._known = Fingerprint(model), OrderedDict()  # before tracing: what changes meanwhile shows
        made = known[1]
        key: tuple[object, ...] = (*x.shape[1:], x.dtype, x.device, *further)
        with self._lock:
            for size in (key, (*key, len(x))):
                if size in made:
                    made.move_to_end(size)
                    return made[size]
        result, batch = make()
        with self._lock:
            made[key if batch is None else (*key, batch)] = result
            while len(made) > _SIZES:
                made.popitem(last=False)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()
