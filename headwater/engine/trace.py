"""From a model to its list of operations, by ``torch.export``.

``trace`` exports a copy of the model's modules that shares its tensors and leaves out its hooks, so the user's model is
never run, never switched to another mode and never written to.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from headwater.engine.graph import (
    BatchSize,
    Constant,
    Graph,
    ModuleCall,
    OnACopy,
    Operation,
    Pick,
    Shape,
    Value,
    Weight,
    copied,
    leaves,
    operation_kind,
    rebuild,
    returns_view,
)
from headwater.engine.guards.modes import tracing
from headwater.engine.guards.randomness import draws, equal_programs, generators, refusal
from headwater.errors import TraceError

aten = torch.ops.aten


def trace(model: nn.Module, x: Tensor, output: str | int | None = None) -> Graph:
    """Turn ``model`` into the list of operations that it runs on images shaped as ``x``, in eval mode.

    Args:
        model: any module that maps one image tensor ``(N, C, H, W)`` to one tensor, or to several by name or place.
        x: an example; its values do not matter, its size, dtype and device do.
        output: which of several outputs to take: a key of a dict, a position in a tuple.

    Raises:
        TraceError: the model's control flow depends on data, two forwards differ by random numbers, it cannot be
            exported, or it does not return one tensor.

    >>> import torch
    >>> graph = trace(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), torch.zeros(1, 3, 8, 8))
    >>> [operation.kind for operation in graph.operations]
    ['conv2d', 'relu']
    """
    _check_signature(model)
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        raise TraceError(
            f"{type(model).__name__} has weights that were made in torch.inference_mode(), which torch does not trace; "
            "make or load the model outside of it"
        )
    with tracing(x), _quiet_exporter(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assigned during export.*")  # a pruned weight, in the shared_copy
        before = generators()
        program = _export(shared_copy(model), x)
        for _ in range(3 if generators() != before else 0):
            if not equal_programs(program, _export(shared_copy(model), x)):
                raise TraceError(refusal(f"forward of {type(model).__name__}"))
        if any(node.op == "get_attr" or _mutates_a_view(node) for node in program.graph.nodes):
            # Rewrites writes into views and opens what is wrapped in a mode (autocast); costs seconds.
            program = program.run_decompositions({})
    chosen = _chosen_output(program, output, type(model).__name__)
    reader = _Reader(program)
    for node in program.graph.nodes:
        if node.op == "get_attr":
            raise TraceError(
                f"{type(model).__name__} contains control flow that depends on data ({node.target}); "
                "only networks that run the same operations for every image are supported."
            )
        reader.read(node)
    result = reader.current[chosen]
    if not isinstance(result, Value) or result.name not in reader.depends:
        raise TraceError(f"the output of {type(model).__name__} does not depend on the image.")
    batch = reader.shapes[reader.image][0]
    graph = _without_dead_ends(Graph(tuple(reader.operations), reader.image, result.name, batch, reader.shapes))
    for operation in graph.operations:
        target = operation.target.target if isinstance(operation.target, Pick) else operation.target
        if draws(target, operation.args, operation.kwargs):
            where = operation.module or "(the model itself)"
            raise TraceError(refusal(f"operation {operation.kind!r} in module {where!r}"))
    return graph


class _Reader:
    """Turns the nodes of an exported program into operations, one after the other."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        signature = program.graph_signature
        self.weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.constants = {
            name: program.constants[key] for name, key in signature.inputs_to_lifted_tensor_constants.items()
        }
        self.current: dict[str, Any] = {}  # node name -> what it stands for now, after in-place operations
        self.several: dict[str, torch.fx.Node] = {}  # nodes whose value is a list or tuple
        self.depends: set[str] = set()
        self.operations: list[Operation] = []
        self.shapes: dict[str, Shape] = {}
        (self.image,) = (
            n.name for n in program.graph.nodes if n.op == "placeholder" and n.name in signature.user_inputs
        )

    def read(self, node: torch.fx.Node) -> None:
        value, first = node.meta.get("val"), node.args[0] if node.args else None
        if node.op == "placeholder":
            if node.name in self.weights:
                self.current[node.name] = Weight(self.weights[node.name])
            elif node.name in self.constants:
                self.current[node.name] = Constant(self.constants[node.name])
            else:
                self.current[node.name] = Value(node.name)
                self.depends.add(node.name)
                self.shapes[node.name] = _shape(cast(Tensor, value))
        elif node.op != "call_function":
            return
        elif isinstance(value, torch.SymInt):
            self._append(node, node.name, BatchSize(value.node.expr), (Value(self.image),), {}, carries=False)
        elif isinstance(value, (list, tuple)):
            self.several[node.name] = node
        elif node.target is operator.getitem and isinstance(first, torch.fx.Node) and first.name in self.several:
            source = self.several[first.name]
            args, kwargs = self._arguments(source)
            self._append(source, node.name, Pick(_target(source), cast(int, node.args[1])), args, kwargs, value)
        elif operation_kind(_target(node)) == "scaled_dot_product_attention":
            self._attention(node, value)
        else:
            target, inplace = _functional(_target(node))
            self._append(node, node.name, target, *self._arguments(node), value)
            if inplace and isinstance(first, torch.fx.Node):
                self.current[first.name] = Value(node.name)

    def _arguments(self, node: torch.fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        lookup: Callable[[Any], Any] = lambda a: self.current[a.name] if isinstance(a, torch.fx.Node) else a  # noqa: E731
        return rebuild(tuple(node.args), lookup), rebuild(dict(node.kwargs), lookup)

    def _append(
        self,
        node: torch.fx.Node,
        name: str,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        value: Any = None,
        carries: bool = True,
    ) -> Value:
        """Add one operation; ``value`` is torch's stand-in for its result, with the shape."""
        inputs = tuple(
            leaf.name
            for leaf in leaves((args, kwargs))
            if carries and isinstance(leaf, Value) and leaf.name in self.depends
        )
        self.operations.append(Operation(name, target, args, kwargs, _calls(node), inputs))
        self.current[name] = Value(name)
        if inputs:
            self.depends.add(name)
        if isinstance(value, Tensor):
            self.shapes[name] = _shape(value)
        return Value(name)

    def _attention(self, node: torch.fx.Node, value: Any) -> None:
        """Scaled dot-product attention as the two matrix products and the softmax that it is made of."""
        (query, key, values, *rest), options = self._arguments(node)
        mask = rest[0] if rest else options.get("attn_mask")
        if options.get("is_causal") or (len(rest) > 2 and rest[2]) or options.get("enable_gqa"):
            raise TraceError("causal or grouped-query attention is not supported")
        if rest[1] if len(rest) > 1 else options.get("dropout_p"):
            raise TraceError(refusal(f"attention with dropout in module {_path(node)!r}"))
        q, k = (cast(torch.fx.Node, n).meta["val"] for n in node.args[:2])
        scale = options.get("scale") or q.shape[-1] ** -0.5
        name = node.name
        keys = self._append(node, f"{name}_keys", aten.transpose.int, (key, -2, -1), {}, k.transpose(-2, -1))
        scores_like = q @ k.transpose(-2, -1)
        scaled = self._append(node, f"{name}_query", aten.mul.Tensor, (query, scale), {}, q)
        scores = self._append(node, f"{name}_scores", aten.matmul.default, (scaled, keys), {}, scores_like)
        if mask is not None:
            given = cast(torch.fx.Node, node.args[3] if len(node.args) > 3 else node.kwargs["attn_mask"])
            if given.meta["val"].dtype == torch.bool:
                mask = self._append(node, f"{name}_mask", additive_mask, (mask, q.dtype), {})
            scores = self._append(node, f"{name}_masked", aten.add.Tensor, (scores, mask), {}, scores_like)
        weights = self._append(node, f"{name}_weights", aten.softmax.int, (scores, -1), {}, scores_like)
        self._append(node, name, aten.matmul.default, (weights, values), {}, value)


def _check_signature(model: nn.Module) -> None:
    """Refuse a model that takes more than one image before the exporter says so in its own words."""
    parameters = inspect.signature(model.forward).parameters.values()
    required = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if len(required) > 1:
        raise TraceError(
            f"{type(model).__name__} takes {len(required)} inputs ({', '.join(required)}); networks with one input, a "
            "image tensor, are supported. Wrap it in a module that takes the image and supplies the others."
        )


def _target(node: torch.fx.Node) -> Callable[..., Any]:
    assert callable(node.target), "a call's target is a function"
    return node.target


def _shape(tensor: Tensor) -> Shape:
    return tuple(_fixed(size) for size in tensor.shape)


def _fixed(size: int | torch.SymInt) -> int | None:
    """A size as a number, or ``None`` if it grows with the number of images."""
    if isinstance(size, int):
        return size
    return int(size.node.expr) if size.node.expr.is_number else None  # torch may have fixed it while tracing


def _chosen_output(program: torch.export.ExportedProgram, output: str | int | None, model: str) -> str:
    """Name of the node that is explained."""
    names = program.graph_signature.user_outputs
    spec = program.call_spec.out_spec
    assert spec is not None
    structure = _pytree.tree_unflatten(list(names), spec)
    if output is None and isinstance(structure, str):
        return structure
    if output is not None and not isinstance(structure, str):
        try:
            chosen = structure[output]
        except (KeyError, IndexError, TypeError):
            chosen = None
        if isinstance(chosen, str):
            return chosen
    if isinstance(structure, str):
        raise TraceError(f"{model} returns one tensor, so output must be None, got {output!r}")
    keys = list(structure) if isinstance(structure, Mapping) else list(range(len(names)))
    raise TraceError(
        f"{model} returns {len(names)} values ({', '.join(map(repr, keys))}); one tensor can be explained at a time. "
        f"Say which with LRP(model, output={keys[0]!r}), or wrap the model in a module whose forward picks the tensor."
    )


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares every tensor with ``model``, in eval mode and without observing hooks.

    Hooks of ``torch.nn.utils`` that compute a weight (weight norm, spectral norm, pruning) are part of the network and
    stay.
    """
    attributes = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    tensors = [*model.parameters(), *model.buffers(), *attributes]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    saved = [(module, {name: module.__dict__.get(name) for name in _HOOKS}) for module in model.modules()]
    for _, hooks in saved:
        for owner in hooks.values():
            if owner is not None:
                memo[id(owner)] = type(owner)((key, hook) for key, hook in owner.items() if computes_a_weight(hook))
    return copy.deepcopy(model, memo).eval()


def own_copy(model: nn.Module, device: str) -> nn.Module:
    """Like :func:`shared_copy`, with tensors of its own on ``device``."""
    return copy.deepcopy(shared_copy(model)).to(device)


def computes_a_weight(hook: Any) -> bool:
    """Whether a hook is one of ``torch.nn.utils`` or of a class derived from them, which is part of the network."""
    return any(kind.__module__.startswith("torch.nn.utils") for kind in type(hook).__mro__)


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without what torch logs and prints of a program that it cannot export; the error says it in one line."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before, logger.disabled = logger.disabled, True
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.disabled = before


def _export(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    example = torch.zeros((2, *x.shape[1:]), dtype=x.dtype, device=x.device)
    failure: Exception | None = None
    for dynamic in (({0: torch.export.Dim.AUTO},), None):
        try:
            shapes = example if dynamic else torch.zeros_like(x)
            program = torch.export.export(model, (shapes,), dynamic_shapes=dynamic, strict=False)
            image = next(n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs)
            if dynamic is None or _fixed(image.meta["val"].shape[0]) is None:
                return program  # else the network has fixed the batch size: once more, with this one
        except Exception as error:  # whatever the user's forward or the exporter raises
            failure = failure or error
    reason = str(failure).strip().splitlines()
    raise TraceError(
        f"{type(model).__name__} could not be traced for an image of shape {tuple(x.shape[1:])}: "
        f"{type(failure).__name__}: {reason[0] if reason else ''}. Supported are networks that map one image tensor "
        "to one tensor and run the same operations for every image; the full message is this error's cause."
    ) from failure


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores for a boolean mask: 0 where it is true, minus infinity elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _functional(target: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """The out-of-place twin of an operation, and whether it was in place."""
    if not isinstance(target, torch._ops.OpOverload):
        return target, False
    name = target.overloadpacket.__name__
    if name in ("view", "_unsafe_view"):
        return aten.reshape.default, False  # values may be laid out otherwise than while tracing
    if name == "copy":
        return copied, False  # torch has no derivative for it
    if not name.endswith("_") or name.startswith("__"):
        return target, False
    twin = getattr(getattr(torch.ops.aten, name.rstrip("_"), None), target._overloadname, None)
    return (OnACopy(target) if twin is None else twin), True


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
    return node.op == "call_function" and (node.target is operator.getitem or returns_view(node.target))


def _calls(node: torch.fx.Node) -> tuple[ModuleCall, ...]:
    stack = node.meta.get("nn_module_stack") or {}
    calls = [ModuleCall(path, str(kind).rsplit(".", 1)[-1], key) for key, (path, kind) in stack.items()]
    return tuple(call for call in calls if call.path and not call.path.startswith("_empty_nn_module"))


def _path(node: torch.fx.Node) -> str:
    calls = _calls(node)
    return calls[-1].path if calls else "(the model itself)"


def _without_dead_ends(graph: Graph) -> Graph:
    """The graph without operations whose values nobody takes."""
    alive, kept = {graph.output}, []
    for operation in reversed(graph.operations):
        if operation.name in alive:
            kept.append(operation)
            alive.update(leaf.name for leaf in leaves((operation.args, operation.kwargs)) if isinstance(leaf, Value))
    shapes = {name: shape for name, shape in graph.shapes.items() if name in alive}
    return replace(graph, operations=tuple(reversed(kept)), shapes=shapes)
