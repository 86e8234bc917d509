"""The trace of each model, made once and kept for as long as its module tree does not change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from weakref import WeakKeyDictionary

from torch import nn

from headwater.engine.graph import Graph
from headwater.engine.guards.checks import check_module
from headwater.engine.guards.coupling import check_independence
from headwater.engine.guards.signature import Signature, changed, signature
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.outputs import Output
from headwater.engine.trace import trace_of

_SIZES = 16  # input sizes that are kept for each model


class _Traces:
    """One model's traces.

    Attributes:
        found: graphs by the inputs' sizes and the output.
        seen: the signature that they were made for.
        written: attributes that the model's own forward writes, which do not count.
    """

    def __init__(self, seen: Signature) -> None:
        self.found: OrderedDict[tuple[object, ...], Graph] = OrderedDict()
        self.seen = seen
        self.written: frozenset[tuple[str, str]] = frozenset()

    def hold(self, seen: Signature) -> bool:
        """Whether the model is as it was."""
        return seen == self.seen or changed(seen, self.seen) <= self.written


_TRACES: WeakKeyDictionary[nn.Module, _Traces] = WeakKeyDictionary()
_LOCK = threading.Lock()


def traced(model: nn.Module, x: NetworkInput | Inputs, output: Output = None) -> Graph:
    """The operations that inputs like ``x`` go through, made at the first call and after a change of the model.

    All explanation methods of a model share its traces.

    Args:
        model: the network.
        x: its inputs.
        output: which output is explained, if the model returns several.

    Raises:
        InputError: the model fails on such inputs.
        TraceError: the model cannot be traced.
        UnsupportedOperationError: the examples of a batch change each other's results.
    """
    check_module(model)
    inputs = Inputs.of(x)
    seen = signature(model)
    with _LOCK:
        known = _TRACES.get(model)
        if known is None or not known.hold(seen):
            known = _TRACES[model] = _Traces(seen)
        key = (inputs.signature, output if isinstance(output, (str, int, type(None))) else tuple(output))
        for size in (key, (*key, len(inputs))):
            if size in known.found:
                known.found.move_to_end(size)
                return known.found[size]
    graph, written = trace_of(model, inputs, output)
    check_independence(graph, model, inputs)
    with _LOCK:
        known.written |= written
        known.found[key if graph.batch is None else (*key, graph.batch)] = graph
        while len(known.found) > _SIZES:
            known.found.popitem(last=False)
    return graph


def is_current(model: nn.Module, graph: Graph) -> bool:
    """Whether a graph is among those that are kept for the model."""
    known = _TRACES.get(model)
    return known is not None and any(found is graph for found in known.found.values())


def forget(model: nn.Module) -> None:
    """Drop a model's traces, so that the next call makes them anew."""
    with _LOCK:
        _TRACES.pop(model, None)
