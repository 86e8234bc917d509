"""A network rebuilt from its list of operations, one module per call, for libraries that hook modules.

Captum and CAM libraries fail on networks that use one ReLU module several times, add in place or call functions. Here
every operation is a module of its own, never in place. The weights are the user's own tensors, in parameters of ours,
so nothing that a library does to modules, hooks or gradients reaches the user's model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headwater.engine.graph import Constant, Graph, Operation, Shape, Value, Weight
from headwater.engine.inputs import Inputs
from headwater.engine.layers import Layer, Lookup
from headwater.engine.weights import Bindings, check_finite, live_tensors
from headwater.errors import InputError


class Rebuilt(nn.Module):
    """The network of ``graph`` with the weights of ``model``, in eval mode.

    Args:
        graph: list of operations, for images of one size.
        model: whose weights are looked up.
        addition: makes the module for an addition of two values; one of torch's operations by default.
        functions: operations without a module class in torch stay functions, which hooks do not see, as additions and
            flattening are in torchvision's networks; by default they are modules too.
    """

    def __init__(
        self,
        graph: Graph,
        model: nn.Module,
        addition: Callable[[], nn.Module] | None = None,
        functions: bool = False,
    ) -> None:
        super().__init__()
        self.graph = graph
        self.tensors = live_tensors(model, graph.weights)
        check_finite(self.tensors)
        self._bindings = Bindings(graph, lambda: self.tensors)
        self.calls = nn.ModuleDict()
        self._functions: dict[str, Layer] = {}
        for operation in graph.operations:
            if operation.inputs:
                module = _module(operation, graph.shapes.get(operation.name, ()), self.tensors, addition)
                if module is None and functions:
                    self._functions[operation.name] = Layer(operation, self._bindings)
                else:
                    self.calls[operation.name] = module or _Call(operation, self._bindings)
        self.eval().requires_grad_(False)

    @property
    def has_classes(self) -> bool:
        """Whether the output has a dimension of classes; else it is one value per example."""
        return len(self.graph.shapes[self.graph.output]) > 1

    def ordered(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The inputs of the network's call in the order of :meth:`forward`: first those that have relevance."""
        pairs = list(zip(self.graph.inputs, tensors, strict=True))
        return [t for carried in (True, False) for given, t in pairs if given.carries == carried]

    def forward(self, *tensors: Tensor) -> Tensor:
        left = {carried: iter([g for g in self.graph.inputs if g.carries == carried]) for carried in (True, False)}
        count = len(self.graph.sources)
        named = {next(left[k < count]).name: tensor for k, tensor in enumerate(tensors)}
        self._bindings.compute(Inputs(tuple(named[given.name] for given in self.graph.inputs)))
        values = {source.name: named[source.name] for source in self.graph.sources}
        for operation in self.graph.operations:
            if operation.inputs:
                given = [values[name] for name in operation.inputs]
                function = self._functions.get(operation.name)
                values[operation.name] = self.calls[operation.name](*given) if function is None else function.run(given)
        return values[self.graph.output]

    def feature_map(self) -> tuple[nn.Module, int]:
        """The module whose output is the last feature map, and the dimension of that map's channels, for CAM methods.

        The last feature map is the input of the last pooling or flattening of more than one pixel; in a ResNet it is
        the output of the last block. Its channels are dimension 1, or 3 where the pooling is a mean over dimensions 1
        and 2, as in some transformers.

        Raises:
            InputError: there is none, as in a vision transformer without windows.
        """
        shapes = self.graph.shapes
        for operation in reversed(self.graph.operations):
            name = operation.inputs[0] if operation.inputs else ""
            shape = shapes.get(name, ())
            if len(shape) != 4 or shape[0] != self.graph.batch or name not in self.calls:
                continue
            flattens = operation.kind in ("flatten", "view", "reshape") and len(shapes[operation.name]) == 2
            dims: set[int] = set()
            if operation.kind in ("mean", "sum", "amax"):
                given = Layer(operation, self._bindings).argument(1, "dim") or ()
                dims = {d % 4 for d in ([given] if isinstance(given, int) else given)}
            if not (flattens or dims in ({2, 3}, {1, 2}) or operation.kind in _POOLING):
                continue
            channels = 3 if dims == {1, 2} else 1
            if math.prod(size or 0 for d, size in enumerate(shape) if d not in (0, channels)) > 1:
                return self.calls[name], channels
        raise InputError("the network has no feature map (N, C, H, W) of more than one pixel; CAM methods need one")

    def features(self, x: Tensor) -> Tensor:
        """The last feature map of images, channels in dimension 1.

        Raises:
            InputError: there is none, see :meth:`feature_map`.
        """
        module, channels = self.feature_map()
        kept: list[Tensor] = []
        hook = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        self(x)
        hook.remove()
        return kept[0].movedim(channels, 1)

    def value_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the values that depend on the image, the batch first; of images of the size that was traced."""
        return [
            tuple(size or 0 for size in shape)
            for shape in self.graph.shapes.values()
            if shape[:1] == (self.graph.batch,)
        ]


_POOLING = ("avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")


class _Call(nn.Module):
    """An operation without a module class in torch; its inputs are the values that depend on the image."""

    def __init__(self, operation: Operation, lookup: Lookup) -> None:
        super().__init__()
        self.layer = Layer(operation, lookup)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.layer.run(inputs)


def _module(
    operation: Operation, shape: Shape, tensors: dict[str, Tensor], addition: Callable[[], nn.Module] | None
) -> nn.Module | None:
    """The module of torch that computes ``operation``, whose result has that shape, if there is one."""
    kind, args = operation.kind, operation.args
    if len(operation.inputs) == 2 and kind == "add" and addition is not None and len(args) == 2:
        return addition()
    flat = kind in _FOR_IMAGES and len(shape) != 4
    make = None if flat else _MODULES.get(kind)
    simple = len(operation.inputs) == 1 and isinstance(args[0], Value) and args[0].name == operation.inputs[0]
    others = [a for a in args[1:] if isinstance(a, (Value, Constant))]
    if make is None or not simple or others or operation.kwargs:
        return None
    bound = [tensors[a.name] if isinstance(a, Weight) else a for a in args[1:]]
    return make(*bound)


def _conv2d(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> nn.Module:
    out, per_group, *kernel = weight.shape
    pair: Callable[[Any], Any] = lambda v: tuple(v) * (3 - len(v)) if isinstance(v, list) else v  # noqa: E731
    module = nn.Conv2d(
        per_group * groups,
        out,
        (kernel[0], kernel[1]),
        pair(stride),
        pair(padding),
        pair(dilation),
        groups,
        bias is not None,
        device="meta",
    )
    return _with(module, weight=weight, bias=bias)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return _with(module, weight=weight, bias=bias)


def _batch_norm(
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> nn.Module:
    module = nn.BatchNorm2d(len(mean), eps, momentum, weight is not None, device="meta")
    module.running_mean, module.running_var = mean, variance
    module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=mean.device)
    return _with(module, weight=weight, bias=bias)


def _with(module: nn.Module, **parameters: Tensor | None) -> nn.Module:
    """``module`` with new parameters that share memory with the given tensors."""
    for name, tensor in parameters.items():
        setattr(module, name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))
    return module


def _max_pool(kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False) -> nn.Module:
    return nn.MaxPool2d(kernel, stride or kernel, padding, dilation, ceil_mode=ceil)


_FOR_IMAGES = frozenset(("batch_norm", "max_pool2d", "adaptive_avg_pool2d"))
_MODULES: dict[str, Callable[..., nn.Module]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "max_pool2d": _max_pool,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "dropout": lambda *_: nn.Dropout(),
}
