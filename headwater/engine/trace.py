"""From a model to its list of operations, by ``torch.export``.

``trace`` exports a copy of the model's modules that shares its tensors and leaves out its hooks, so the user's model is
never run, never switched to another mode and never written to.
"""

from __future__ import annotations

import inspect
import io
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind
from torch.utils._sympy.numbers import int_oo

from headwater.engine import compound
from headwater.engine.axes import with_channels
from headwater.engine.constants import without_constants
from headwater.engine.copies import shared_copy
from headwater.engine.graph import (
    BatchSize,
    Constant,
    Graph,
    GraphInput,
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
from headwater.engine.guards.checks import check_inputs
from headwater.engine.guards.modes import tracing
from headwater.engine.guards.randomness import draws, equal_programs, generators, refusal
from headwater.engine.heads import with_classes_second, with_probabilities, without_head
from headwater.engine.inputs import Inputs, NetworkInput
from headwater.engine.outputs import Output, check_output, chosen_output, own_output
from headwater.errors import TraceError

aten = torch.ops.aten


def trace(model: nn.Module, x: NetworkInput | Inputs, output: Output = None) -> Graph:
    """Turn ``model`` into the list of operations that it runs on inputs shaped as ``x``, in eval mode.

    The list is run once on ``x`` and compared with what the model itself returns.

    Args:
        model: any module that maps tensors with the batch first to one tensor, or to several of which one is meant.
        x: a tensor ``(N, ...)``, a tuple of them by position, or a mapping of them by keyword.
        output: which of several outputs to take, see :func:`~headwater.engine.outputs.chosen_output`.

    Raises:
        InputError: the model fails on such inputs.
        TraceError: the model's control flow depends on data, two forwards differ by random numbers, it cannot be
            exported, the list gives another output than the model, or of several tensors that it returns none is meant.

    >>> import torch
    >>> graph = trace(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), torch.zeros(1, 3, 8, 8))
    >>> [operation.kind for operation in graph.operations]
    ['conv2d', 'relu']
    """
    return trace_of(model, Inputs.of(x), output)[0]


def trace_of(model: nn.Module, inputs: Inputs, output: Output = None) -> tuple[Graph, frozenset[tuple[str, str]]]:
    """As :func:`trace`; also which attributes of its modules the model's forward writes."""
    check_inputs(inputs, model)
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        raise TraceError(
            f"{type(model).__name__} has weights that were made in torch.inference_mode(), which torch does not trace; "
            "make or load the model outside of it"
        )
    own, written = own_output(model, inputs)
    returned, result = chosen_output(own, output, type(model).__name__, len(inputs))
    if result.ndim == 0:
        raise TraceError(
            f"{type(model).__name__} returns one number for the whole batch; what is explained needs one for each "
            "example: logits (N, K) or a value (N,)"
        )
    with tracing(inputs.floating), _quiet_exporter(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*assigned during export.*")  # a pruned weight, in the shared_copy
        before = generators()
        program = _export(shared_copy(model), inputs)
        for _ in range(3 if generators() != before else 0):
            if not equal_programs(program, _export(shared_copy(model), inputs)):
                raise TraceError(refusal(f"forward of {type(model).__name__}"))
        if any(n.op == "get_attr" or (_mutates_a_view(n) and not _slices_written(n)) for n in program.graph.nodes):
            # Rewrites writes into views and opens what is wrapped in a mode (autocast); costs seconds.
            program = program.run_decompositions({})
    reader = _Reader(program, inputs, type(model))
    for node in program.graph.nodes:
        if node.op == "get_attr":
            raise TraceError(
                f"{type(model).__name__} contains control flow that depends on data ({node.target}); "
                "only networks that run the same operations for every input are supported."
            )
        reader.read(node)
    graph = reader.graph(returned)
    for operation in graph.operations:
        target = operation.target.target if isinstance(operation.target, Pick) else operation.target
        if draws(target, operation.args, operation.kwargs):
            where = operation.module or "(the model itself)"
            raise TraceError(refusal(f"operation {operation.kind!r} in module {where!r}"))
    graph = without_constants(graph, model, inputs)
    check_output(graph, model, inputs, result)
    graph = with_probabilities(graph, result.movedim(-1, 1) if graph.classes_last else result)
    return replace(graph, inputs=with_channels(graph)), written


class _Reader:
    """Turns the nodes of an exported program into operations, one after the other."""

    def __init__(self, program: torch.export.ExportedProgram, inputs: Inputs, kind: type[nn.Module]) -> None:
        signature = program.graph_signature
        self.kind = kind.__name__
        self.weights = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.constants = {
            name: program.constants[key] for name, key in signature.inputs_to_lifted_tensor_constants.items()
        }
        self.returned = [spec.arg for spec in signature.output_specs if spec.kind == OutputKind.USER_OUTPUT]
        self.current: dict[str, Any] = {}  # node name -> what it stands for now, after in-place operations
        self.several: dict[str, Any] = {}  # nodes whose value is a list: the node, or what each item stands for
        self.depends: set[str] = set()  # values that relevance can go back to
        self.whole: set[str] = set()  # those of them before an embedding
        self.beside: set[str] = set()  # what is computed from them and only chooses or masks others
        self.operations: list[Operation] = []
        self.shapes: dict[str, Shape] = {}
        placeholders = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in signature.user_inputs]
        named = list(zip(placeholders, _parameter_names(kind, inputs), strict=True))
        numbers = {n.name for n, name in named if not n.meta["val"].is_floating_point() and not _is_mask(name)}
        ids = _leading_to_features(program, numbers, ("embedding",))
        if not ids and len(numbers) == len(named):  # whole numbers alone, such as pixels from 0 to 255
            ids = _leading_to_features(program, numbers, _FEATURES)
        self.inputs: list[GraphInput] = []
        names = [name for _, name in named]
        beside = any(not (n.meta["val"].dtype.is_floating_point and _is_mask(name)) for n, name in named)
        for node, name in named:
            whole = not node.meta["val"].is_floating_point()
            carries = node.name in ids if whole else not beside or not _is_mask(name)
            self.inputs.append(GraphInput(node.name, carries))
            if carries:
                self.depends.add(node.name)
                self.whole |= {node.name} if whole else set()
        if not self.depends:
            raise TraceError(
                f"no input of {self.kind} can carry relevance: among {', '.join(map(repr, names))} are no "
                "floating-point values, and no token ids that an embedding looks up"
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
                self.shapes[node.name] = _shape(cast(Tensor, value))
        elif node.op != "call_function":
            return
        elif isinstance(value, torch.SymInt):
            size = (BatchSize(value.node.expr), (Value(self.inputs[0].name),))
            self._append(node, node.name, *size, {}, carries=False)
        elif node.target is operator.getitem and isinstance(first, torch.fx.Node) and first.name in self.several:
            source = self.several[first.name]
            if isinstance(source, list):
                self.current[node.name] = source[cast(int, node.args[1])]
                return
            args, kwargs = self._arguments(source)
            self._append(source, node.name, Pick(_target(source), cast(int, node.args[1])), args, kwargs, value)
        elif not self._compound(node):
            if isinstance(value, (list, tuple)):
                choosing = operation_kind(_target(node)) in ("topk", "sort")
                self.several[node.name] = self._chosen(node, value) if choosing else node
                return
            if operation_kind(_target(node)) in _LIKE:
                self._constant(node, cast(Tensor, value))
                return
            if operation_kind(_target(node)) in ("type_as", "expand_as", "view_as", "reshape_as"):
                self._as(node, cast(Tensor, value))
                return
            target, inplace = _functional(_target(node))
            written = _slices_written(node)
            kind = operation_kind(_target(node))
            if kind == "zero" or (kind == "fill" and isinstance(node.args[1], (int, float))):
                self._constant(node, cast(Tensor, value))
            else:
                self._append(node, node.name, target, *self._arguments(node), value)
            if inplace and isinstance(first, torch.fx.Node):
                self.current[first.name] = Value(node.name)
            for part in written:
                self._write_back(node, part)

    def graph(self, returned: int) -> Graph:
        """The list for one of the tensors that the model returns, flattened."""
        name = getattr(self.returned[returned], "name", None)
        result = self.current.get(name) if name is not None else None
        if not isinstance(result, Value) or result.name not in self.depends:
            raise TraceError(f"the output of {self.kind} does not depend on the input.")
        batch = self.shapes[self.inputs[0].name][0]
        whole = Graph(tuple(self.operations), tuple(self.inputs), result.name, batch, self.shapes, returned=returned)
        return _without_dead_ends(with_classes_second(without_head(whole)))

    def _compound(self, node: torch.fx.Node) -> bool:
        """Write an operation that is several at once in simpler ones; whether it is one."""
        kind = operation_kind(_target(node))
        if kind not in ("scaled_dot_product_attention", "lstm", "gru", "cosine_similarity", "glu", "baddbmm"):
            return False
        given, options = self._arguments(node)
        if kind == "baddbmm" and not all(isinstance(v, Value) and v.name in self.depends for v in given[1:3]):
            return False
        count = 0

        def write(target: Callable[..., Any], *args: Any, shape: Shape) -> Value:
            nonlocal count
            count += 1
            return self._append(node, f"{node.name}_{count}", target, args, {}, shape)

        def sizes(leaf: Any) -> Shape:
            return self.shapes[leaf.name] if isinstance(leaf, Value) else _shape(of[id(leaf)])

        like = [n.meta["val"] for n in node.all_input_nodes]
        of = {id(self.current[n.name]): v for n, v in zip(node.all_input_nodes, like, strict=True)}
        if kind in ("lstm", "gru"):
            found = compound.recurrent(write, kind, given, _shape(node.args[0].meta["val"]), sizes)  # type: ignore[union-attr]
            self.several[node.name] = found
            return True
        if kind == "baddbmm":
            self.current[node.name] = compound.added_product(write, given, options, _shape(node.meta["val"]))
            return True
        if kind == "glu":
            dim = given[1] if len(given) > 1 else options.get("dim", -1)
            self.current[node.name] = compound.gated(write, given[0], dim, _shape(node.meta["val"]))
            return True
        if kind == "cosine_similarity":
            one, other = (_shape(cast(torch.fx.Node, n).meta["val"]) for n in node.args[:2])
            dim = given[2] if len(given) > 2 else options.get("dim", 1)
            eps = given[3] if len(given) > 3 else options.get("eps", 1e-8)
            self.current[node.name] = compound.cosine_similarity(write, given[0], given[1], dim, eps, (one, other))
            return True
        rest = given[3:]
        if rest[1] if len(rest) > 1 else options.get("dropout_p"):
            raise TraceError(refusal(f"attention with dropout in module {_path(node)!r}"))
        q, k, v = (cast(torch.fx.Node, n).meta["val"] for n in node.args[:3])
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        bool_mask = isinstance(mask, torch.fx.Node) and mask.meta["val"].dtype == torch.bool
        shapes = (_shape(q), _shape(k), _shape(v))
        self.current[node.name] = compound.attention(write, given, options, shapes, q.dtype, bool_mask)
        return True

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
        """Add one operation; ``value`` is torch's stand-in for its result, or the result's shape."""
        taken = [leaf.name for leaf in leaves((args, kwargs)) if carries and isinstance(leaf, Value)]
        whole = [given for given in taken if given in self.whole]
        features = [given for given in taken if given in self.depends and given not in self.whole]
        chosen = [given for given in taken if given in self.beside]
        is_float = isinstance(value, tuple) or (isinstance(value, Tensor) and not _is_whole(value))
        inputs: list[str] = []
        beside = stays_whole = embeds = False
        if features and is_float:
            inputs = features
        elif features or chosen:
            inputs, beside = [*features, *chosen], True
        elif whole and isinstance(value, Tensor) and value.dtype != torch.bool:  # what is else made of ids is a mask
            stays_whole, embeds = not is_float, is_float and operation_kind(target) in _FEATURES
            inputs = whole if stays_whole or embeds else []
        kinds = {"whole": stays_whole, "embeds": embeds, "beside": beside}
        self.operations.append(Operation(name, target, args, kwargs, _calls(node), tuple(inputs), **kinds))
        self.current[name] = Value(name)
        if beside:
            self.beside.add(name)
        elif inputs:
            self.depends.add(name)
            if stays_whole:
                self.whole.add(name)
        if isinstance(value, Tensor):
            self.shapes[name] = _shape(value)
        elif isinstance(value, tuple):
            self.shapes[name] = value
        return Value(name)

    def _constant(self, node: torch.fx.Node, value: Tensor) -> None:
        """Write an operation that takes only the shape of its argument as a constant of that shape."""
        kind = operation_kind(_target(node))
        if kind in ("full_like", "fill"):
            filled = node.args[1]
        else:
            filled = node.args[2] if kind == "new_full" else int("ones" in kind)
        options = {"dtype": value.dtype, "device": value.device}
        self._append(node, node.name, aten.full.default, (self._sizes(node, value), filled), options, value)

    def _as(self, node: torch.fx.Node, value: Tensor) -> None:
        """Write an operation that takes of its second argument the dtype or the shape alone as one of the first."""
        first, _ = self._arguments(node)[0]
        if operation_kind(_target(node)) == "type_as":
            self._append(node, node.name, aten.to.dtype, (first, value.dtype), {}, value)
            return
        target = aten.expand.default if operation_kind(_target(node)) == "expand_as" else aten.reshape.default
        self._append(node, node.name, target, (first, self._sizes(node, value)), {}, value)

    def _write_back(self, node: torch.fx.Node, part: torch.fx.Node) -> None:
        """Write the present value of a slice into the value that it was cut out of."""
        whole = part.args[0]
        assert isinstance(whole, torch.fx.Node)
        select = operation_kind(_target(part)) == "select"
        scatter = aten.select_scatter.default if select else aten.slice_scatter.default
        present = (self.current[whole.name], self.current[part.name], *self._arguments(part)[0][1:])
        name = f"{node.name}_in_{whole.name}"
        self.current[whole.name] = self._append(node, name, scatter, present, {}, whole.meta["val"])

    def _sizes(self, node: torch.fx.Node, value: Tensor) -> list[Any]:
        """The sizes of a value, those that grow with the number of examples as operations."""
        sizes: list[Any] = []
        for k, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                first = (Value(self.inputs[0].name),)
                name = f"{node.name}_size_{k}"
                sizes.append(self._append(node, name, BatchSize(size.node.expr), first, {}, carries=False))
            else:
                sizes.append(size)
        return sizes

    def _chosen(self, node: torch.fx.Node, values: Any) -> list[Value]:
        """Write a sort or the choice of the largest as the places that it takes, and their values."""
        args, kwargs = self._arguments(node)
        target = _target(node)
        names = [argument.name for argument in target._schema.arguments]  # type: ignore[attr-defined]
        given = dict(zip(names, args, strict=False)) | kwargs
        places = self._append(node, f"{node.name}_places", Pick(target, 1), args, kwargs, values[1])
        taken = (args[0], given.get("dim", -1), places)
        return [self._append(node, f"{node.name}_values", aten.gather.default, taken, {}, values[0]), places]


def _is_whole(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex())


_LIKE = frozenset(
    ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
)
"""Operations that take of their argument the shape alone."""


_FEATURES = ("embedding", "index", "index_select", "to", "_to_copy", "type_as")
"""Operations that make features of an input's whole numbers: an embedding, or the numbers as they are."""


def _leading_to_features(program: torch.export.ExportedProgram, whole: set[str], kinds: tuple[str, ...]) -> set[str]:
    """Those inputs of whole numbers from which a chain of whole numbers leads to an operation of these kinds."""
    origin = {name: {name} for name in whole}
    found: set[str] = set()
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor) or value.dtype == torch.bool:
            continue
        given = set().union(*(origin.get(n.name, set()) for n in node.all_input_nodes))
        if not value.is_floating_point():
            origin[node.name] = given
        elif operation_kind(_target(node)) in kinds:
            found |= given
    return found


def _is_mask(name: str) -> bool:
    """Whether an input of that name has no relevance of its own: a mask, or what places tokens have."""
    return name in _PLACING or name.endswith(("mask", "_masked_pos"))


_PLACING = frozenset(("token_type_ids", "segment_ids", "position_ids", "cache_position", "bbox"))


def _parameter_names(kind: type[nn.Module], inputs: Inputs) -> list[str]:
    """What the model's forward calls its inputs."""
    if inputs.by_keyword:
        return [str(key) for key in inputs.keys]
    named = [p for p in list(inspect.signature(kind.forward).parameters.values())[1:] if p.kind in _POSITIONAL]
    return [named[k].name if k < len(named) else str(k) for k in range(len(inputs.tensors))]


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


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


def _export(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    failure: Exception | None = None
    for count in (2, None):
        try:
            given = inputs.map(lambda t: torch.zeros((count or len(t), *t.shape[1:]), dtype=t.dtype, device=t.device))  # noqa: B023
            args, kwargs = given.arguments
            grows = [{0: torch.export.Dim.AUTO} for _ in given.tensors]
            dynamic: Any = (
                {str(k): d for k, d in zip(given.keys, grows, strict=True)} if given.by_keyword else tuple(grows)
            )
            parameters = list(inspect.signature(model.forward).parameters.values())
            if args and parameters and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
                dynamic = (tuple(grows),)
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic if count else None, strict=False)
            names = program.graph_signature.user_inputs
            sizes = [n.meta["val"].shape[0] for n in program.graph.nodes if n.name in names]
            if count is None or (all(_fixed(size) is None for size in sizes) and not _is_bounded(program)):
                return program  # else the network has fixed the batch size: once more, with this one
        except Exception as error:  # whatever the user's forward or the exporter raises
            failure = failure or error
    reason = str(failure).strip().splitlines()
    shapes = ", ".join(str(tuple(t.shape[1:])) for t in inputs.tensors)
    raise TraceError(
        f"{type(model).__name__} could not be traced for inputs of shape {shapes}: "
        f"{type(failure).__name__}: {reason[0] if reason else ''}. Supported are networks that run the same operations "
        "for every input; the full message is this error's cause."
    ) from failure


def _is_bounded(program: torch.export.ExportedProgram) -> bool:
    """Whether the program holds up to some number of examples only, as of a forward that asks for it."""
    given = [n.meta["val"].shape[0] for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
    symbols = {symbol for size in given if isinstance(size, torch.SymInt) for symbol in size.node.expr.free_symbols}
    bounds = [program.range_constraints[symbol].upper for symbol in symbols if symbol in program.range_constraints]
    return any(upper != int_oo and upper < 2**31 for upper in bounds)


def _functional(target: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    """The out-of-place twin of an operation, and whether it was in place."""
    if not isinstance(target, torch._ops.OpOverload):
        return target, False
    name = target.overloadpacket.__name__
    if name in ("view", "_unsafe_view"):
        return aten.reshape.default, False  # values may be laid out otherwise than while tracing
    if name == "copy_":
        return copied, True  # torch has no derivative for it
    if name == "copy":
        return copied, False
    if not name.endswith("_") or name.startswith("__"):
        return target, False
    twin = getattr(getattr(torch.ops.aten, name.rstrip("_"), None), target._overloadname, None)
    return (OnACopy(target) if twin is None else twin), True


def _mutates_a_view(node: torch.fx.Node) -> bool:
    """Whether ``node`` writes into a tensor that shares memory with another one that is used afterwards."""
    if not callable(node.target) or not _functional(node.target)[1]:
        return False
    written = base = node.args[0]
    while isinstance(base, torch.fx.Node) and _is_view(base):
        base = base.args[0]
    if not isinstance(base, torch.fx.Node):
        return False
    if base.op == "placeholder" and base is not written:
        return True
    sharing, waiting = {base}, [base]
    while waiting:
        for user in waiting.pop().users:
            if _is_view(user) and user not in sharing and user is not node:
                sharing.add(user)
                waiting.append(user)
    return any(other is not written and any(later > node for later in other.users) for other in sharing)


def _slices_written(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The slices of a tensor, innermost first, that an operation writes into, where nothing else shares its memory.

    Empty where it writes into something else: another view, an input, or a tensor of which other views are still used.
    """
    if not callable(node.target) or not (_functional(node.target)[1] or operation_kind(node.target) == "copy"):
        return []
    chain: list[torch.fx.Node] = []
    base = node.args[0]
    while isinstance(base, torch.fx.Node) and base.op == "call_function" and _is_slice(base):
        chain.append(base)
        base = base.args[0]
    if not chain or not isinstance(base, torch.fx.Node) or base.op != "call_function" or _is_view(base):
        return []
    for whole in (*chain[1:], base):
        for user in whole.users:
            if user not in chain and user < node and _is_view(user) and any(later > node for later in user.users):
                return []
    return chain


def _is_slice(node: torch.fx.Node) -> bool:
    return operation_kind(_target(node)) in ("slice", "select") and not node.kwargs


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
    alive.update(given.name for given in graph.inputs)
    shapes = {name: shape for name, shape in graph.shapes.items() if name in alive}
    return replace(graph, operations=tuple(reversed(kept)), shapes=shapes)
