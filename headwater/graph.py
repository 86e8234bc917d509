"""A model as a flat list of ATen operations, in the order in which data flows.

``trace`` runs ``torch.export`` on a skeleton of the model (its modules copied, its tensors shared, its hooks left
out), so the user's model is never run, never switched to another mode and never written to. The list holds no
tensors: weights are named and looked up in the user's model at each call.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from headwater.errors import TraceError


@dataclass(frozen=True)
class Value:
    """An argument that an earlier operation (or the picture) provides."""

    name: str


@dataclass(frozen=True)
class Weight:
    """An argument that is a parameter or buffer of the model, by its qualified name."""

    name: str


@dataclass(frozen=True)
class Constant:
    """An argument that is a tensor created inside ``forward`` while tracing."""

    tensor: Tensor = field(repr=False)


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module: its path, its class, and a key that tells repeated calls of one module apart."""

    path: str
    kind: str
    key: str


@dataclass(frozen=True)
class Operation:
    """One ATen operation.

    Attributes:
        name: unique name of the operation and of the value it produces.
        target: the function to run, never in place.
        args, kwargs: its arguments; tensors appear as ``Value``, ``Weight`` or ``Constant``.
        calls: the module calls that enclose it, outermost first.
        inputs: names of the tensors among its arguments that depend on the picture, in argument order.
    """

    name: str
    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    calls: tuple[ModuleCall, ...]
    inputs: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """ATen's name without overload or underscore: ``conv2d``, ``relu``, ``add``."""
        return operation_kind(self.target)

    @property
    def module(self) -> str:
        """Path of the innermost module that this operation belongs to; ``""`` is the model itself."""
        return self.calls[-1].path if self.calls else ""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the parameters and buffers among the arguments."""
        return tuple(leaf.name for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Weight))

    def bind(self, lookup: Callable[[Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with every leaf replaced by ``lookup(leaf)``."""
        return rebuild(self.args, lookup), rebuild(self.kwargs, lookup)


@dataclass(frozen=True)
class Graph:
    """A model for pictures of one size: operations, the name of the picture, the name of the output.

    ``batch`` is ``None`` when the list holds for any number of pictures.
    """

    operations: tuple[Operation, ...]
    input: str
    output: str
    batch: int | None

    def users(self) -> dict[str, list[Operation]]:
        """For each value, the operations that take it, once for each operation."""
        users: dict[str, list[Operation]] = {self.input: []}
        for operation in self.operations:
            users[operation.name] = []
            for name in {
                leaf.name: None for leaf in leaves((operation.args, operation.kwargs)) if isinstance(leaf, Value)
            }:
                users[name].append(operation)
        return users

    def counts(self) -> Counter[str]:
        """How many operations of each kind there are."""
        return Counter(operation.kind for operation in self.operations)


def operation_kind(target: Callable[..., Any]) -> str:
    """ATen's plain name of an overload (``aten.add_.Tensor`` is ``add``), or a Python function's name."""
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket.__name__.rstrip("_")
    return getattr(target, "__name__", str(target))


def leaves(tree: Any) -> Iterator[Any]:
    """Every leaf of nested tuples, lists, dicts and slices."""
    if isinstance(tree, (tuple, list)):
        for item in tree:
            yield from leaves(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from leaves(item)
    elif isinstance(tree, slice):
        yield from leaves((tree.start, tree.stop, tree.step))
    else:
        yield tree


def rebuild(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of ``tree`` with every leaf replaced by ``change(leaf)``."""
    if isinstance(tree, tuple):
        return tuple(rebuild(item, change) for item in tree)
    if isinstance(tree, list):
        return [rebuild(item, change) for item in tree]
    if isinstance(tree, dict):
        return {key: rebuild(item, change) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*(rebuild(part, change) for part in (tree.start, tree.stop, tree.step)))
    return change(tree)


def trace(model: nn.Module, x: Tensor) -> Graph:
    """Turn ``model`` into the list of operations that it runs on pictures shaped as ``x``, in eval mode.

    Args:
        model: any module that maps one picture tensor ``(N, C, H, W)`` to one tensor.
        x: an example; its values do not matter, its size, dtype and device do.

    Raises:
        TraceError: the model's control flow depends on data, it cannot be exported, or it does not return one tensor.

    >>> import torch
    >>> graph = trace(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), torch.zeros(1, 3, 8, 8))
    >>> [operation.kind for operation in graph.operations]
    ['conv2d', 'relu']
    """
    program = _export(skeleton(model), x)
    if any(_mutates_a_view(node) for node in program.graph.nodes):
        program = program.run_decompositions({})  # rewrites writes into views; costs seconds, so only where needed
    signature, nodes = program.graph_signature, program.graph.nodes
    if len(signature.user_outputs) != 1 or not isinstance(signature.user_outputs[0], str):
        raise TraceError(
            f"{type(model).__name__} returns {len(signature.user_outputs)} values; "
            "one tensor is supported. Wrap it in a module whose forward picks the tensor to explain."
        )
    weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = signature.inputs_to_lifted_tensor_constants
    picture = next(node for node in nodes if node.op == "placeholder" and node.name in signature.user_inputs)
    current: dict[str, Any] = {}  # node name -> what it stands for now, after in-place operations
    depends = {picture.name}
    operations: list[Operation] = []
    for node in nodes:
        if node.op == "placeholder":
            if node.name in weights:
                current[node.name] = Weight(weights[node.name])
            elif node.name in constants:
                current[node.name] = Constant(program.constants[constants[node.name]])
            else:
                current[node.name] = Value(node.name)
        elif node.op == "call_function":
            target, inplace = _functional(node.target)
            lookup: Callable[[Any], Any] = lambda a: current[a.name] if isinstance(a, torch.fx.Node) else a  # noqa: E731
            args, kwargs = rebuild(tuple(node.args), lookup), rebuild(dict(node.kwargs), lookup)
            tensors = [leaf.name for leaf in leaves((args, kwargs)) if isinstance(leaf, Value) and leaf.name in depends]
            operation = Operation(node.name, target, args, kwargs, _calls(node), tuple(tensors))
            operations.append(operation)
            current[node.name] = Value(node.name)
            if inplace:
                current[node.args[0].name] = Value(node.name)
            if tensors and operation.kind not in ("sym_size",):
                depends.add(node.name)
        elif node.op == "get_attr":
            raise TraceError(
                f"{type(model).__name__} contains control flow that depends on data ({node.target}); "
                "only networks that run the same operations for every picture are supported."
            )
    result = current[signature.user_outputs[0]]
    if not isinstance(result, Value) or result.name not in depends:
        raise TraceError(f"the output of {type(model).__name__} does not depend on the picture.")
    batch = picture.meta["val"].shape[0]
    graph = Graph(tuple(operations), picture.name, result.name, batch if isinstance(batch, int) else None)
    return _without_dead_ends(graph)


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares every tensor with ``model``, in eval mode and without observing hooks.

    Hooks of ``torch.nn.utils`` that compute a weight (weight norm, spectral norm) are part of the network and stay.
    """
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    saved = [(module, {name: module.__dict__.get(name) for name in _HOOKS}) for module in model.modules()]
    for _, hooks in saved:
        for owner in hooks.values():
            if owner is not None:
                memo[id(owner)] = type(owner)(
                    (key, hook) for key, hook in owner.items() if type(hook).__module__.startswith("torch.nn.utils")
                )
    return copy.deepcopy(model, memo).eval()


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _export(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    example = torch.zeros((2, *x.shape[1:]), dtype=x.dtype, device=x.device)
    failure: Exception | None = None
    for dynamic in (({0: torch.export.Dim.AUTO},), None):
        try:
            with torch.no_grad():
                shapes = example if dynamic else example[:1].expand(len(x), *x.shape[1:])
                return torch.export.export(model, (shapes,), dynamic_shapes=dynamic, strict=False)
        except Exception as error:  # whatever the user's forward or the exporter raises
            failure = failure or error
    reason = str(failure).strip().splitlines()
    raise TraceError(
        f"{type(model).__name__} could not be traced for a picture of shape {tuple(x.shape[1:])}: "
        f"{type(failure).__name__}: {reason[0] if reason else ''}. Supported are networks that map one picture tensor "
        "to one tensor and run the same operations for every picture; the full message is this error's cause."
    ) from failure


def _functional(target: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """The out-of-place twin of an operation, and whether it was in place."""
    if not isinstance(target, torch._ops.OpOverload):
        return target, False
    name = target.overloadpacket.__name__
    if not name.endswith("_") or name.startswith("__"):
        return target, False
    packet = getattr(torch.ops.aten, name.rstrip("_"))
    return getattr(packet, target._overloadname), True


def _mutates_a_view(node: torch.fx.Node) -> bool:
    """Whether ``node`` writes into a tensor that shares memory with another one that is used afterwards."""
    if not callable(node.target) or not _functional(node.target)[1]:
        return False
    written = node.args[0]
    if not isinstance(written, torch.fx.Node):
        return False
    if operation_kind(node.target) == "copy":
        return True
    if _is_view(written):
        return True
    return any(_is_view(user) and any(later > node for later in (user, *user.users)) for user in written.users)


def _is_view(node: torch.fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function" and node.target is operator.getitem
    arguments = node.target._schema.arguments
    return bool(arguments) and arguments[0].alias_info is not None and not arguments[0].alias_info.is_write


def _calls(node: torch.fx.Node) -> tuple[ModuleCall, ...]:
    stack = node.meta.get("nn_module_stack") or {}
    calls = [ModuleCall(path, str(kind).rsplit(".", 1)[-1], key) for key, (path, kind) in stack.items()]
    return tuple(call for call in calls if call.path and not call.path.startswith("_empty_nn_module"))


def _without_dead_ends(graph: Graph) -> Graph:
    """The graph without operations whose values nobody takes."""
    alive, kept = {graph.output}, []
    for operation in reversed(graph.operations):
        if operation.name in alive:
            kept.append(operation)
            alive.update(leaf.name for leaf in leaves((operation.args, operation.kwargs)) if isinstance(leaf, Value))
    return replace(graph, operations=tuple(reversed(kept)))
