"""Networks in which the images of a batch change each other's results are found before anything is explained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from headwater.engine.copies import shared_copy
from headwater.engine.graph import Graph, Operation, Pick, Shape, Value
from headwater.engine.guards.modes import computing
from headwater.engine.inputs import Inputs
from headwater.engine.interpreter import values_of
from headwater.engine.weights import live_tensors
from headwater.errors import UnsupportedOperationError

_IMAGE_BY_IMAGE = frozenset(
    (
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm"),
        *(
            "max_pool1d",
            "max_pool2d",
            "max_pool3d",
            "max_pool2d_with_indices",
            "avg_pool1d",
            "avg_pool2d",
            "avg_pool3d",
        ),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d"),
        *("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
        *("pixel_shuffle", "pixel_unshuffle", "group_norm", "instance_norm", "pad", "constant_pad_nd"),
        *("reflection_pad2d", "expand", "repeat", "_native_batch_norm_legit_no_training"),
    )
)
"""Where the first dimension counts the images."""
_ALONG_A_DIMENSION = frozenset(
    (
        *("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "prod", "norm", "linalg_vector_norm"),
        *(
            "logsumexp",
            "softmax",
            "log_softmax",
            "_safe_softmax",
            "cat",
            "stack",
            "split",
            "split_with_sizes",
            "chunk",
            "unbind",
        ),
        *("select", "slice", "narrow", "roll", "flip", "cumsum", "argmax", "argmin", "topk", "sort", "tensor_split"),
        *("slice_scatter", "select_scatter", "gather", "glu"),
    )
)
"""Along other dimensions than that of the images."""
_MOVES = frozenset(("permute", "transpose", "unsqueeze", "squeeze", "movedim", "swapaxes", "t", "mT", "numpy_T"))
_RESHAPES = frozenset(("flatten", "view", "reshape", "_unsafe_view", "unflatten"))
_ELEMENT_BY_ELEMENT = frozenset(("dropout", "contiguous", "clone", "to", "alias", "detach", "copy", "feature_dropout"))


def check_independence(graph: Graph, model: nn.Module, inputs: Inputs) -> None:
    """Refuse a network in which the images of a batch change each other's results.

    Nearly every operation is known to keep images apart by its kind and its dimensions. If one is not, the network
    runs on two images of which the first, then the second, is NaN (of token ids, their embeddings are): the result of
    the other must be numbers. Where it is not, two runs with other numbers in that image decide, by which nothing else
    is made to differ. That costs up to four images' forward passes, once for each trace.

    Args:
        graph: the list of operations.
        model: whose weights it uses.
        inputs: what it is called with; the first example is taken.

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
    if graph.batch is not None and len(inputs) > 1 and _depends_on_count(model, inputs):
        raise UnsupportedOperationError(
            f"{type(model).__name__} gives an image other results in a batch than alone, so a map would depend on how "
            "many are explained together; its forward must not compute with the batch size"
        )
    count = 2 if graph.batch is None else graph.batch
    suspects = _suspects(graph)
    if not suspects or count < 2:
        return
    tensors = live_tensors(model, graph.weights)
    batch = inputs.map(lambda t: t[:1].detach().repeat(count, *[1] * (t.ndim - 1)))
    with computing(inputs.floating):
        for changed in (0, count - 1):
            if not _result(graph, tensors, batch, changed, float("nan")).isnan().any():
                continue
            results = [_result(graph, tensors, batch, changed, value) for value in (3.0, -7.0)]
            if not torch.equal(*results):
                leaked = _leaks(graph, tensors, batch, changed)
                culprit = next((suspects[name] for name in leaked if name in suspects), None)
                raise UnsupportedOperationError(_refusal(culprit or next(iter(suspects.values()))))


def _depends_on_count(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the first image has other results alone; for networks whose list of operations fixes the batch size."""
    network = shared_copy(model, to_run=True)
    try:
        with computing(inputs.floating):
            calls = [part.cloned().arguments for part in (inputs, inputs.select(slice(1)))]
            batch, alone = (_pytree.tree_leaves(network(*args, **kwargs)) for args, kwargs in calls)
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


def fronts_of(graph: Graph) -> dict[str, int]:
    """How much stands in front of the images in the dimension that they are in, by value; 1 where nothing does."""
    return _kept_apart(graph)[1]


def _suspects(graph: Graph) -> dict[str, Operation]:
    """The operations that do not surely keep images apart, by name."""
    return _kept_apart(graph)[0]


def _kept_apart(graph: Graph) -> tuple[dict[str, Operation], dict[str, int]]:
    """The operations that do not surely keep images apart, and how much stands in front of the images in each value.

    A value has one dimension that grows with the number of images; others may be merged with it, in front of the
    images (tokens, as ``nn.MultiheadAttention`` has them) or behind. What is in front is counted, so that the values of
    an image are known to stay together.
    """
    suspects: dict[str, Operation] = {}
    inside: dict[str, int] = {}  # by value: how much stands in front of the images in the dimension that they are in
    for operation in graph.operations:
        if not operation.inputs or operation.whole:
            continue
        shapes = [graph.shapes.get(name, ()) for name in (*operation.inputs, operation.name)]
        front = {inside.get(name, 1) for name in operation.inputs}
        after = front.pop()
        if any(shape.count(None) != 1 for shape in shapes) or front:
            suspects[operation.name] = operation
            continue
        if operation.kind in _RESHAPES:
            before, behind = (math.prod(_sizes(shape[: shape.index(None)])) for shape in (shapes[0], shapes[-1]))
            if before * after % behind:
                suspects[operation.name] = operation
                continue
            after = before * after // behind
        elif not _apart(operation, shapes):
            suspects[operation.name] = operation
        inside[operation.name] = after
    if graph.output not in suspects and (inside.get(graph.output, 1) > 1 or graph.shapes[graph.output][0] is not None):
        suspects[graph.output] = graph.operations[-1]
    return suspects, inside


def _apart(operation: Operation, shapes: Sequence[Shape]) -> bool:
    """Whether the operation surely works on each image alone, along the one dimension that grows with their number."""
    kind, before = operation.kind, shapes[0]
    batch, ndim = before.index(None), len(before)
    if kind in _MOVES:
        return True
    if operation.embeds:
        return shapes[-1].index(None) == batch
    if kind == "linear":
        return batch != ndim - 1
    if kind in ("layer_norm", "rms_norm"):
        return batch < ndim - len(_argument(operation, "normalized_shape"))
    if kind in ("matmul", "bmm"):
        if len(operation.inputs) > 1:
            return all(shape.index(None) - len(shape) == batch - ndim < -2 for shape in shapes)
        first = isinstance(operation.args[0], Value) and operation.args[0].name in operation.inputs
        return batch != (ndim - 1 if first else max(ndim - 2, 0))
    if kind == "einsum":
        return _einsum_apart(operation, shapes)
    if kind in _ALONG_A_DIMENSION:
        if kind in ("slice", "slice_scatter") and _argument(operation, "dim") % ndim == batch:
            start, end = _argument(operation, "start"), _argument(operation, "end")
            return start in (0, None) and (end is None or (isinstance(end, int) and end >= 2**62))
        given = _argument(operation, "dim")
        given = _argument(operation, "dims") if given is None else given
        dims = given if isinstance(given, (list, tuple)) else [given]
        return bool(dims) and all(isinstance(dim, int) and dim % ndim != batch for dim in dims)
    target = operation.target
    pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    if pointwise or kind in _ELEMENT_BY_ELEMENT:
        return all(shape.index(None) - len(shape) == batch - ndim for shape in shapes)
    return kind in _IMAGE_BY_IMAGE and all(shape[0] is None for shape in shapes)


def _sizes(shape: Shape) -> list[int]:
    return [size or 0 for size in shape]


def _einsum_apart(operation: Operation, shapes: Sequence[Shape]) -> bool:
    """Whether the letter of the batch is the same in all terms that have one, and in the result."""
    terms, arrow, result = operation.args[0].replace(" ", "").partition("->")
    if not arrow or "." in terms:
        return False
    letters = terms.split(",")
    taken = [k for k, leaf in enumerate(operation.args[1]) if isinstance(leaf, Value) and leaf.name in operation.inputs]
    found = [letters[k][shape.index(None)] for k, shape in zip(taken, shapes, strict=False)]
    return set(found) == {result[shapes[-1].index(None)]}


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


def _run(graph: Graph, tensors: Mapping[str, Tensor], batch: Inputs, changed: int, value: float) -> Any:
    """The operations with their values, one example of the batch changed."""

    def change(tensor: Tensor, dimension: int = 0) -> None:
        example = tensor.select(dimension, changed)
        example.copy_(example * value + value)

    carries = [given.carries for given in graph.inputs]
    given = [t.clone() for t in batch.tensors]
    for tensor, carried in zip(given, carries, strict=True):
        if carried and tensor.is_floating_point():
            change(tensor)
    for operation, result in values_of(graph, tensors, Inputs(tuple(given), batch.keys, batch.alone)):
        if operation.embeds:  # features of token ids
            change(result, graph.batch_dimension(operation.name))
        yield operation, result


def _leaks(graph: Graph, tensors: Mapping[str, Tensor], batch: Inputs, changed: int) -> list[str]:
    """Names of the values in which examples other than the changed one hold NaN, in order."""
    leaked = []
    for operation, value in _run(graph, tensors, batch, changed, float("nan")):
        if operation.inputs and isinstance(value, Tensor) and value.is_floating_point():
            dimension = graph.batch_dimension(operation.name)
            if value.ndim and _others(value, len(batch), changed, dimension).isnan().any():
                leaked.append(operation.name)
    return leaked


def _result(graph: Graph, tensors: Mapping[str, Tensor], batch: Inputs, changed: int, value: float) -> Tensor:
    """The output for the examples that were not changed."""
    outputs = [found for o, found in _run(graph, tensors, batch, changed, value) if o.name == graph.output]
    return _others(outputs[0], len(batch), changed, graph.batch_dimension(graph.output))


def _others(value: Tensor, count: int, changed: int, dimension: int = 0) -> Tensor:
    """What belongs to the other images, of a value ``(N, ...)`` or ``(N * k, ...)`` along ``dimension``."""
    value = value.movedim(dimension, 0)
    if len(value) % count:
        return value
    rows = value.reshape(count, -1)
    return torch.cat([rows[:changed], rows[changed + 1 :]])
