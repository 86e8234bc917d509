"""Networks in which the images of a batch change each other's results are found before anything is explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from headwater.engine.graph import Constant, Graph, Operation, Pick, Value, Weight, leaves
from headwater.engine.guards.modes import computing
from headwater.engine.trace import shared_copy
from headwater.engine.weights import live_tensors
from headwater.errors import UnsupportedOperationError

_IMAGE_BY_IMAGE = (
    "conv1d conv2d conv3d conv_transpose2d linear batch_norm max_pool2d avg_pool2d adaptive_avg_pool2d "
    "adaptive_max_pool2d max_pool2d_with_indices upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
    "pixel_shuffle pixel_unshuffle layer_norm group_norm instance_norm rms_norm dropout reshape view contiguous clone "
    "to alias detach expand permute transpose pad constant_pad_nd reflection_pad2d getitem"
)
_ALONG_A_DIMENSION = (
    "mean sum amax amin max min var std var_mean prod norm linalg_vector_norm logsumexp softmax log_softmax cat stack "
    "split split_with_sizes chunk unbind select slice narrow roll flip squeeze unsqueeze cumsum flatten unflatten glu "
    "argmax argmin topk sort"
)


def check_independence(graph: Graph, model: nn.Module, x: Tensor) -> None:
    """Refuse a network in which the images of a batch change each other's results.

    Nearly every operation is known to keep images apart by its kind and its dimensions. If one is not, the network
    runs on three images of which the first, then the last, is NaN: the results of the others must be numbers. Where
    they are not, two runs with other numbers in that image decide, by which nothing else is made to differ.

    Args:
        graph: the list of operations.
        model: whose weights it uses.
        x: images; the first one is taken.

    Raises:
        UnsupportedOperationError: they do change each other's results, by the operation that is named.
    """
    for operation in graph.operations:
        # One without inputs normalises weights, such as the kernels of BiT, and no images.
        if operation.inputs and operation.kind == "batch_norm" and _argument(operation, "training"):
            raise UnsupportedOperationError(
                f"batch normalisation {operation.module!r} keeps no running statistics, so images in a batch change "
                "each other's results; give it track_running_stats=True"
            )
    if graph.batch is not None and len(x) > 1 and _depends_on_count(model, x):
        raise UnsupportedOperationError(
            f"{type(model).__name__} gives an image other results in a batch than alone, so a map would depend on how "
            "many are explained together; its forward must not compute with the batch size"
        )
    count = 3 if graph.batch is None else graph.batch
    suspects = {o.name: o for o in graph.operations if o.inputs and not _apart(o, graph)}
    if not suspects or count < 2:
        return
    network = _Network(graph, live_tensors(model, (name for o in graph.operations for name in o.weights)))
    with computing(x):
        for changed in (0, count - 1):
            leaked = network.leaks(_batch(x, count, changed, float("nan")), changed)
            if graph.output not in leaked:
                continue
            results = [network.others(_batch(x, count, changed, value), changed) for value in (3.0, -7.0)]
            if not torch.equal(*results):
                culprit = next((suspects[name] for name in leaked if name in suspects), None)
                raise UnsupportedOperationError(_refusal(culprit or next(iter(suspects.values()))))


def _depends_on_count(model: nn.Module, x: Tensor) -> bool:
    """Whether the first image has other results alone; for networks whose list of operations fixes the batch size."""
    network = shared_copy(model)
    try:
        with computing(x):
            batch, alone = (_pytree.tree_leaves(network(part)) for part in (x, x[:1]))
    except Exception:  # whatever a forward raises that works for one batch size only
        return False
    pairs = [(b[:1], a) for b, a in zip(batch, alone, strict=True) if isinstance(a, Tensor) and a.is_floating_point()]
    # Kernels for another batch size add in another order: half of the dtype's digits are far more than that takes.
    return any(
        b.shape == a.shape and (b - a).abs().max() > a.abs().max() * torch.finfo(a.dtype).eps ** 0.5 for b, a in pairs
    )


def _refusal(operation: Operation) -> str:
    return (
        f"operation {operation.kind!r} in module {operation.module or '(the model itself)'!r} lets the images of a "
        "batch change each other's results, so a map would depend on the other images; make it work on each image "
        "alone (normalise by stored statistics, reduce over other dimensions than the first)"
    )


def _apart(operation: Operation, graph: Graph) -> bool:
    """Whether the operation surely works on each image alone, image by image along dimension 0."""
    shapes = [graph.shapes.get(name, ()) for name in (*operation.inputs, operation.name)]
    if any(shape.count(None) != 1 or shape[0] is not None for shape in shapes):
        return False
    target, kind, ndim = operation.target, operation.kind, len(shapes[0])
    if kind in ("matmul", "bmm"):
        return len(operation.inputs) == 1 or all(len(shape) > 2 for shape in shapes)
    if kind in _ALONG_A_DIMENSION.split():
        given = _argument(operation, "start_dim" if kind == "flatten" else "dim")
        given = _argument(operation, "dims") if given is None else given
        dims = given if isinstance(given, (list, tuple)) else [given]
        return bool(dims) and all(isinstance(dim, int) and dim % ndim != 0 for dim in dims)
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return all(len(shape) == ndim for shape in shapes)
    return kind in _IMAGE_BY_IMAGE.split()


def _argument(operation: Operation, name: str) -> Any:
    """An argument by its name in ATen's schema, or its default."""
    target = operation.target.target if isinstance(operation.target, Pick) else operation.target
    if isinstance(target, torch._ops.OpOverload):
        for position, argument in enumerate(target._schema.arguments):
            if argument.name == name:
                default = argument.default_value if argument.has_default_value() else None
                given = operation.args[position] if position < len(operation.args) else default
                return operation.kwargs.get(name, given)
    return None


def _batch(x: Tensor, count: int, changed: int, value: float) -> Tensor:
    """The first image ``count`` times, one of them changed: times ``value``, plus ``value``."""
    batch = x[:1].detach().repeat(count, *[1] * (x.ndim - 1))
    batch[changed] = batch[changed] * value + value
    return batch


class _Network:
    """The list of operations, to be run."""

    def __init__(self, graph: Graph, tensors: dict[str, Tensor]) -> None:
        self.graph, self.tensors = graph, tensors

    def leaks(self, batch: Tensor, changed: int) -> dict[str, bool]:
        """Names of the values in which images other than the changed one hold NaN, in order."""
        leaked = {}
        for name, value in self._run(batch):
            if isinstance(value, Tensor) and value.is_floating_point():
                shape = self.graph.shapes.get(name, ())
                dimension = shape.index(None) if None in shape else 0
                if value.ndim and _others(value, len(batch), changed, dimension).isnan().any():
                    leaked[name] = True
        return leaked

    def others(self, batch: Tensor, changed: int) -> Tensor:
        """The output for the images that were not changed."""
        *_, (_, output) = self._run(batch)
        return _others(output, len(batch), changed)

    def _run(self, batch: Tensor) -> Iterator[tuple[str, Any]]:
        """Each operation's value, the output last."""
        last_use = {name: k for k, operation in enumerate(self.graph.operations) for name in _taken(operation)}
        values: dict[str, Any] = {self.graph.input: batch}

        def lookup(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return values[leaf.name]
            if isinstance(leaf, Weight):
                return self.tensors[leaf.name]
            return leaf.tensor if isinstance(leaf, Constant) else leaf

        for k, operation in enumerate(self.graph.operations):
            args, kwargs = operation.bind(lookup)
            values[operation.name] = operation.target(*args, **kwargs)
            if operation.inputs:
                yield operation.name, values[operation.name]
            for name in _taken(operation):
                if last_use[name] == k:
                    del values[name]


def _others(value: Tensor, count: int, changed: int, dimension: int = 0) -> Tensor:
    """What belongs to the other images, of a value ``(N, ...)`` or ``(N * k, ...)`` along ``dimension``."""
    value = value.movedim(dimension, 0)
    if len(value) % count:
        return value
    rows = value.reshape(count, -1)
    return torch.cat([rows[:changed], rows[changed + 1 :]])


def _taken(operation: Operation) -> set[str]:
    return {leaf.name for leaf in leaves((operation.args, operation.kwargs)) if isinstance(leaf, Value)}
