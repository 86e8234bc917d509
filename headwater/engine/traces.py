"""The trace of each model, made once and kept for as long as its module tree does not change."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict

from torch import nn

from headwater.engine.graph import Graph
from headwater.engine.guards.checks import check_module, check_values
from headwater.engine.guards.coupling import check_independence
from headwater.engine.guards.signature import Signature, changed, signature
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.outputs import Output, check_again
from headwater.engine.trace import trace_of

_SIZES = 16  # input sizes that are kept for each model


class _Traces:
    """One model's traces.

    Attributes:
        found: graphs by the inputs' sizes and the output.
        seen: the signature that they were made for, without what the forward writes.
        written: attributes that the model's own forward writes, which do not count.
        checked: graphs, and whether they were compared with the model for one example, or for several.
        lock: held while a trace is made, so that threads make one of each.
    """

    def __init__(self, seen: Signature) -> None:
        self.found: OrderedDict[tuple[object, ...], Graph] = OrderedDict()
        self.seen = seen
        self.written: frozenset[tuple[str, str]] = frozenset()
        self.checked: set[tuple[int, bool]] = set()
        self.lock = threading.RLock()

    def hold(self, seen: Signature) -> bool:
        """Whether the model is as it was."""
        return seen == self.seen or changed(seen, self.seen) <= self.written

    def get(self, key: tuple[object, ...], count: int) -> Graph | None:
        """The graph for inputs of that size, of any number or of this one."""
        for size in (key, (*key, count)):
            if size in self.found:
                self.found.move_to_end(size)
                return self.found[size]
        return None

    def add(self, key: tuple[object, ...], graph: Graph, written: frozenset[tuple[str, str]]) -> None:
        """Keep a graph, and forget the oldest of too many."""
        self.written |= written
        self.seen = {at: value for at, value in self.seen.items() if at not in self.written}
        self.found[key if graph.batch is None else (*key, graph.batch)] = graph
        while len(self.found) > _SIZES:
            self.found.popitem(last=False)


_TRACES: dict[int, _Traces] = {}  # by the model's address; an entry goes with its model
_LOCK = threading.Lock()


def traced(model: nn.Module, x: NetworkInput | Inputs, output: Output = None) -> Graph:
    """The operations that inputs like ``x`` go through, made at the first call and after a change of the model.

    All explanation methods of a model share its traces.

    Args:
        model: the network.
        x: its inputs.
        output: which output is explained, if the model returns several.

    Raises:
        InputError: the inputs are no dense tensors of finite numbers, or the model fails on them.
        TraceError: the model cannot be traced.
        UnsupportedOperationError: the examples of a batch change each other's results.
    """
    check_module(model)
    inputs = Inputs.of(x)
    check_values(inputs)
    seen = signature(model)
    key = (inputs.signature, output if isinstance(output, (str, int, type(None))) else tuple(output))
    with _LOCK:
        known = _TRACES.get(id(model))
        if known is None:
            weakref.finalize(model, _TRACES.pop, id(model), None)
        if known is None or not known.hold(seen):
            known = _TRACES[id(model)] = _Traces(seen)
        graph = known.get(key, len(inputs))
    alone = len(inputs) == 1  # which torch.export does not tell from several
    if graph is not None and (id(graph), alone) in known.checked:
        return graph
    with known.lock:  # another thread may have made it meanwhile
        with _LOCK:
            graph = known.get(key, len(inputs))
        if graph is None:
            graph, written = trace_of(model, inputs, output)
            check_independence(graph, model, inputs)
            with _LOCK:
                known.add(key, graph, written)
        elif (id(graph), alone) not in known.checked:
            check_again(graph, model, inputs)
        known.checked.add((id(graph), alone))
    return graph


def is_current(model: nn.Module, graph: Graph) -> bool:
    """Whether a graph is among those that are kept for the model."""
    with _LOCK:
        known = _TRACES.get(id(model))
        return known is not None and any(found is graph for found in known.found.values())


def forget(model: nn.Module) -> None:
    """Drop a model's traces, so that the next call makes them anew."""
    with _LOCK:
        known = _TRACES.get(id(model))
        if known is not None:
            known.found.clear()
