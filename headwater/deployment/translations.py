"""Operations of the way back that torch's exporter to ONNX does not know, as ONNX has them.

Each is the adjoint of a linear operation. ONNX has those of convolutions by name. Pooling and interpolation act on rows
and columns apart, so their adjoints are two products with small constant matrices, which are read off the operation
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import ir, opset18
from torch import Tensor

aten = torch.ops.aten
op: Any = opset18  # whose types have no values of the graph
functional: Any = torch.nn.functional  # whose types have no lists of sizes

Sizes = Sequence[int]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By torch's operation, for ``torch.onnx.export``."""
    return {
        aten.convolution_backward.default: _convolution,
        aten.avg_pool2d_backward.default: _average_pool,
        aten._adaptive_avg_pool2d_backward.default: _adaptive_average_pool,
        aten.upsample_nearest2d_backward.default: _nearest,
        aten.upsample_bilinear2d_backward.default: _bilinear,
        aten.upsample_bicubic2d_backward.default: _bicubic,
        aten.empty_permuted.default: _empty,
    }


def _convolution(
    grad_output: Any,
    input: Any,
    weight: Any,
    bias_sizes: Sizes | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    options = {"strides": list(stride), "pads": [*padding, *padding], "dilations": list(dilation), "group": groups}
    kernel = list(weight.shape[2:])
    if transposed:
        back = op.Conv(grad_output, weight, kernel_shape=kernel, **options)
        return back, back, back  # those by weight and bias are never asked for
    reached = [
        (o - 1) * s - 2 * p + d * (k - 1) + 1
        for o, s, p, d, k in zip(grad_output.shape[2:], stride, padding, dilation, kernel, strict=True)
    ]
    rest = [size - there for size, there in zip(input.shape[2:], reached, strict=True)]
    back = op.ConvTranspose(grad_output, weight, kernel_shape=kernel, output_padding=rest, **options)
    return back, back, back


def _average_pool(
    grad_output: Any,
    self: Any,
    kernel_size: Sizes,
    stride: Sizes,
    padding: Sizes,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    if divisor_override is not None:
        raise NotImplementedError("avg_pool2d with divisor_override")
    stride = stride or kernel_size

    def pool(h: Tensor, axis: int) -> Tensor:
        settings = [_along(axis, sizes, rest) for sizes, rest in ((kernel_size, 1), (stride, 1), (padding, 0))]
        return functional.avg_pool2d(h, *settings, ceil_mode, count_include_pad)

    return _separable(grad_output, self.shape[2:], pool)


def _adaptive_average_pool(grad_output: Any, self: Any) -> Any:
    sizes = grad_output.shape[2:]
    return _separable(
        grad_output, self.shape[2:], lambda h, axis: functional.adaptive_avg_pool2d(h, _along(axis, sizes, 1))
    )


def _nearest(
    grad_output: Any,
    output_size: Sizes,
    input_size: Sequence[Any],
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Any:
    def enlarge(h: Tensor, axis: int) -> Tensor:
        scales = (scales_h, 1.0) if axis == 0 else (1.0, scales_w)
        return aten.upsample_nearest2d(h, _along(axis, output_size, 1), *scales)

    return _separable(grad_output, input_size[2:], enlarge)


def _bilinear(
    grad_output: Any,
    output_size: Sizes,
    input_size: Sequence[Any],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Any:
    return _interpolated(
        aten.upsample_bilinear2d, grad_output, output_size, input_size, align_corners, scales_h, scales_w
    )


def _bicubic(
    grad_output: Any,
    output_size: Sizes,
    input_size: Sequence[Any],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Any:
    return _interpolated(
        aten.upsample_bicubic2d, grad_output, output_size, input_size, align_corners, scales_h, scales_w
    )


def _interpolated(
    operation: Any,
    grad_output: Any,
    output_size: Sizes,
    input_size: Sequence[Any],
    align_corners: bool,
    *scales: float | None,
) -> Any:
    def enlarge(h: Tensor, axis: int) -> Tensor:
        return operation(h, _along(axis, output_size, 1), align_corners, *_along(axis, scales, 1.0))

    return _separable(grad_output, input_size[2:], enlarge)


def _empty(
    size: Sequence[Any],
    physical_layout: Sizes,
    dtype: int | None = None,
    layout: str | None = None,
    device: str | None = None,
    pin_memory: bool | None = None,
) -> Any:
    """Memory that is written over before it is read; ONNX has none, so zeros."""
    one = op.Constant(value_ints=[1])
    parts = [op.Constant(value_ints=[s]) if isinstance(s, int) else op.Reshape(s, one) for s in size]
    return op.ConstantOfShape(op.Concat(*parts, axis=0))


def _along(axis: int, values: Sequence[Any], rest: Any) -> list[Any]:
    """Of a setting for rows and columns the one for this axis, and ``rest`` for the other."""
    own = values[axis] if len(values) > 1 else values[0]
    return [own, rest] if axis == 0 else [rest, own]


def _separable(grad_output: Any, sizes: Sequence[int], operation: Callable[[Tensor, int], Tensor]) -> Any:
    """The adjoint of an operation on images of ``sizes`` that acts on rows and columns apart.

    Args:
        grad_output: shaped as the operation's output.
        sizes: rows and columns of its input.
        operation: itself along one of both axes, on images of one pixel along the other.
    """
    rows, columns = (_matrix(size, axis, operation, grad_output.dtype) for axis, size in enumerate(sizes))
    return op.MatMul(op.MatMul(rows, grad_output), op.Transpose(columns, perm=[1, 0]))


def _matrix(size: int, axis: int, operation: Callable[[Tensor, int], Tensor], dtype: Any) -> Any:
    """What each input along an axis gives to each output, ``(inputs, outputs)``."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        one_each = torch.eye(size, dtype=torch.float64).view((1, size, size, 1) if axis == 0 else (1, size, 1, size))
        matrix = operation(one_each, axis).view(size, -1)
        return op.Constant(value=ir.tensor(matrix.numpy().astype(dtype.numpy())))
