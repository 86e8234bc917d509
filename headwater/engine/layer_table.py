"""Which layer stands for which ATen operation, and how to add to that."""

from __future__ import annotations

from collections.abc import Callable

from headwater.engine.graph import Operation, Value
from headwater.engine.layers import (
    Activation,
    BatchNorm,
    Beside,
    Elementwise,
    Join,
    Layer,
    Lookup,
    MatrixProduct,
    MaxPool,
    MaxSelect,
    Product,
    Rearrange,
    TokenPath,
    Unknown,
)
from headwater.engine.linear_layers import (
    AdaptiveAveragePool,
    Average,
    AveragePool,
    Bicubic,
    Convolution,
    Dense,
    FixedEinsum,
    FixedMatrix,
    Linear,
    Mean,
    TransposedConvolution,
)

LayerFactory = Callable[[Operation, Lookup], Layer]
_LAYERS: dict[str, LayerFactory] = {}
_CHANGES: list[str] = []  # kinds in the order of their registrations


def register_layer(factory: LayerFactory, *kinds: str) -> None:
    """Let ``factory(operation, lookup)`` stand for ATen operations of these names (``"conv2d"``, ``"relu"``, ...)."""
    for kind in kinds:
        _LAYERS[kind] = factory
        _CHANGES.append(kind)


def layer_version() -> int:
    """Differs from before once a layer was registered."""
    return len(_CHANGES)


def joins_branches(kind: str) -> bool:
    """Whether operations of this ATen name are additions or subtractions, where branches may join."""
    factory = _LAYERS.get(kind)
    return isinstance(factory, type) and issubclass(factory, Join)


def is_registered(kind: str) -> bool:
    """Whether a layer stands for operations of this ATen name."""
    return kind in _LAYERS


def layer_for(operation: Operation, lookup: Lookup) -> Layer:
    """The layer that stands for ``operation``; :class:`Unknown` if nothing is registered for its kind."""
    if operation.whole or operation.embeds:
        return TokenPath(operation, lookup)
    if operation.beside:
        return Beside(operation, lookup)
    layer = _LAYERS.get(operation.kind, Unknown)(operation, lookup)
    one = isinstance(layer, (Linear, Elementwise, MaxPool))
    # Two values of the image, as in a convolution whose kernel the image makes: not what these classes stand for.
    return Unknown(operation, lookup) if one and len(operation.inputs) != 1 else layer


def _product(operation: Operation, lookup: Lookup) -> Layer:
    """A product with a constant is as elementwise as a normalisation; dividing by the image is not."""
    if len(operation.inputs) > 1:
        return Product(operation, lookup)
    first = operation.args[0]
    divides = operation.kind == "div" and not (isinstance(first, Value) and first.name in operation.inputs)
    return (Unknown if divides else Elementwise)(operation, lookup)


def _matrix_product(operation: Operation, lookup: Lookup) -> Layer:
    return (MatrixProduct if len(operation.inputs) > 1 else FixedMatrix)(operation, lookup)


def _einsum(operation: Operation, lookup: Lookup) -> Layer:
    if len(operation.args[1]) != 2:
        return Unknown(operation, lookup)
    return (MatrixProduct if len(operation.inputs) == 2 else FixedEinsum)(operation, lookup)


def _mean(operation: Operation, lookup: Lookup) -> Layer:
    """Over named dimensions; a mean over everything would mix the images."""
    return (Mean if len(operation.args) > 1 or "dim" in operation.kwargs else Unknown)(operation, lookup)


def _maximum(operation: Operation, lookup: Lookup) -> Layer:
    """Of several values, or over named dimensions; one over everything would mix the images."""
    named = len(operation.args) > 1 or "dim" in operation.kwargs
    return (MaxSelect if named else Unknown)(operation, lookup)


def _sum(operation: Operation, lookup: Lookup) -> Layer:
    return (Average if len(operation.args) > 1 or "dim" in operation.kwargs else Unknown)(operation, lookup)


register_layer(Dense, "linear")
register_layer(Convolution, "conv1d", "conv2d", "conv3d")
register_layer(TransposedConvolution, "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
register_layer(_matrix_product, "matmul", "mm", "bmm", "addmm", "baddbmm")
register_layer(_einsum, "einsum")
register_layer(AveragePool, "avg_pool2d")
register_layer(AdaptiveAveragePool, "adaptive_avg_pool2d")
register_layer(_mean, "mean")
register_layer(_sum, "sum")
register_layer(
    Average,
    *("avg_pool1d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_trilinear3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_bilinear2d_aa", "col2im", "cumsum"),
)
register_layer(Bicubic, "upsample_bicubic2d", "_upsample_bicubic2d_aa")
register_layer(MaxPool, "max_pool2d")
register_layer(
    MaxSelect,
    *("max_pool1d", "max_pool3d", "max_pool2d_with_indices", "adaptive_max_pool1d", "adaptive_max_pool2d"),
)
register_layer(_maximum, "amax", "max", "maximum")
register_layer(Join, "add", "sub", "rsub", "subtract")
register_layer(_product, "mul", "div", "multiply", "divide")
register_layer(Activation, "relu")
register_layer(BatchNorm, "batch_norm")
register_layer(
    Elementwise,
    *("relu6", "hardtanh", "leaky_relu", "prelu", "elu", "celu", "selu", "silu", "hardswish", "gelu", "mish", "tanh"),
    *(
        "square",
        "abs",
        "exp",
        "erf",
        "acos",
        "reciprocal",
        "log",
        "log1p",
        "rsqrt",
        "sin",
        "cos",
        "softshrink",
        "threshold",
        "log_softmax",
    ),
    *("softplus", "softsign", "sigmoid", "hardsigmoid", "log_sigmoid", "clamp", "clamp_min", "clamp_max", "hardshrink"),
    *("layer_norm", "group_norm", "instance_norm", "rms_norm", "native_layer_norm", "native_group_norm"),
    *("_native_batch_norm_legit_no_training", "softmax", "_softmax", "_safe_softmax", "neg", "pow", "sqrt", "addcmul"),
    *("dropout", "feature_dropout", "alpha_dropout", "detach", "clone", "contiguous", "to", "_to_copy", "alias"),
    *("lift_fresh_copy", "type_as"),
)
register_layer(
    Rearrange,
    *("flatten", "view", "reshape", "_unsafe_view", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t"),
    *("expand", "expand_as", "repeat", "roll", "flip", "movedim", "swapaxes", "pixel_shuffle", "pixel_unshuffle"),
    *("channel_shuffle", "slice", "select", "narrow", "index", "chunk", "split", "split_with_sizes", "unbind"),
    *("cat", "concat", "stack", "pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "numpy_T"),
    *("mT", "adjoint", "matrix_H", "index_select", "gather", "masked_fill", "where"),
    *("repeat_interleave", "concatenate", "tril", "triu", "scatter", "index_put", "index_copy", "tile", "broadcast_to"),
    *("slice_scatter", "select_scatter", "unfold", "im2col", "view_as", "reshape_as", "tensor_split", "hsplit", "copy"),
)
