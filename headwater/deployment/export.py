"""``headwater.export``: images in; logits, map and conservation out."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import headwater
from headwater.data.preprocessing import Preprocessing
from headwater.deployment.running import OUTPUTS, Agreement, agreement, onnx_runtime, run_bytes
from headwater.engine.account import total
from headwater.engine.compiled import reason_of
from headwater.engine.composites import Composite
from headwater.engine.guards.checks import check_inputs, check_values
from headwater.engine.guards.modes import tracing
from headwater.engine.inputs import Inputs
from headwater.engine.lrp import LRP
from headwater.engine.plan import Plan
from headwater.engine.program import Request, SweepProgram
from headwater.engine.seed import Start, check_start, chosen_classes
from headwater.errors import ExportError, HeadwaterError, InputError
from headwater.files import write_bytes, write_text
from headwater.models.card import ModelCard, card_of

KEY = "headwater"
"""Of what a file says about itself, as JSON: in ONNX's metadata, in the archive's extra file ``headwater.json``."""


@dataclass(frozen=True)
class Exported:
    """An exported graph.

    Attributes:
        path: the file.
        about: what it is, as in the JSON file beside it.
        agreement: how far its results are from those of :class:`headwater.LRP`, on the images it was exported with.
    """

    path: Path
    about: dict[str, Any]
    agreement: Agreement


class _Graph(nn.Module):
    """What is exported: the sweep with its weights, and what comes before and after it."""

    def __init__(self, program: SweepProgram, target: int | None, card: ModelCard | None) -> None:
        super().__init__()
        self.sweep, self.outputs, self.target = program.graph, program.outputs, target
        self.count = len(program.tensors())
        for k, tensor in enumerate(program.tensors()):
            self.register_buffer(f"weight_{k}", tensor)
        self.normalised = card is None
        if card is not None:
            like = next((t for t in program.tensors() if t.is_floating_point()), torch.zeros(()))
            self.register_buffer("mean", like.new_tensor(card.preprocessing.mean)[:, None, None])
            self.register_buffer("std", like.new_tensor(card.preprocessing.std)[:, None, None])

    def forward(self, image: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        weights = [self.get_buffer(f"weight_{k}") for k in range(self.count)]
        x = image if self.normalised else (image - self.get_buffer("mean")) / self.get_buffer("std")
        given = [] if target is None else [target]
        if self.target is not None:
            given = [image.new_full((image.shape[0],), self.target, dtype=torch.long)]
        found = dict(zip(self.outputs, self.sweep(*weights, x, *given), strict=True))
        relevance, seed = found["relevance"], found["total"]
        account = torch.stack([total(seed[:, None], image.shape[0]), total(relevance, image.shape[0])], 1)
        return found["logits"], relevance.sum(1), account


def export(
    model: nn.Module,
    composite: str | Composite,
    path: str | Path,
    x: Tensor | None = None,
    *,
    target: int | Literal["input"] | None = None,
    start: Start = "probability",
    output: str | int | None = None,
    pixels: bool = False,
    tolerance: float = 1e-4,
) -> Exported:
    """Write a network with its relevance map as one graph, for any number of images of one size.

    The graph takes ``image (N, C, H, W)`` and gives ``logits`` as the network does, ``map (N, H, W)`` and
    ``conservation (N, 2)``: the relevance that the sweep began with and the map's sum, in double precision. Before the
    file is written, the graph is run on ``x`` and on its first image alone, and compared with :class:`LRP`. Beside it,
    ``NAME.json`` says what it is.

    Args:
        model: the network.
        composite: which rule goes where, by name or as a :class:`Composite`.
        path: ``.onnx`` (needs the extra ``headwater[onnx]``) or ``.pt2``, an archive of ``torch.export``.
        x: images ``(N, C, H, W)`` of the size, dtype and device that the graph is for; by default noise of the size
            that the model's card has.
        target: class to explain, ``None`` for the predicted one, or ``"input"``: the graph takes a second input
            ``target``, int64 ``(N,)``.
        start: relevance to begin with, as for :class:`LRP`.
        output: which output to explain, if the model returns several.
        pixels: the graph takes pixel values from 0 to 1 and normalises them by the model's card; ``x`` too.
        tolerance: of the comparison, relative to the map's largest value, the seed and the largest logit.

    Raises:
        InputError: the path's suffix, the images, the target or the composite does not fit, or ``NAME.json`` says what
            another graph of that name is.
        TraceError: the network cannot be traced.
        UnsupportedOperationError: the network has an operation without a rule.
        ExportError: an operation cannot be exported, the file would be too large, or the graph's results differ from
            those of :class:`LRP` by more than ``tolerance``. Nothing is written.
        MissingDependencyError: the extra is not installed.
        OutputError: the file cannot be written.

    >>> import torch, headwater as hw, tempfile
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = hw.export(network, "otsuki2024", f"{folder}/explainer.pt2", torch.rand(2, 3, 8, 8))
    >>> exported.agreement.worst < 1e-4, exported.about["input"]["image"]
    (True, ['N', 3, 8, 8])
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise InputError(f"an exported graph is an .onnx or a .pt2 file, got {path.name!r}")
    if path.suffix == ".onnx":
        onnx_runtime()
    check_start(start)
    card = card_of(model)
    if pixels and not isinstance(getattr(model, "card", None), ModelCard):
        raise InputError("pixels=True normalises by the model's card, and this model has none; see headwater.ModelCard")
    if pixels and type(card.preprocessing) is not Preprocessing:
        raise InputError(
            f"pixels=True subtracts a mean and divides; {card.name} has its own processor: give x normalised"
        )
    x = _noise(model, card) if x is None else x
    check_values(Inputs.of(x))
    check_inputs(Inputs.of(x), model)
    if path.suffix == ".onnx" and x.dtype != torch.float32:
        raise InputError(
            f"ONNX Runtime convolves in float32 on the CPU, the images are {x.dtype}; write a .pt2 archive"
        )
    lrp = LRP(model, composite, output)
    plan = lrp.plan(x)
    if len(plan.graph.inputs) > 1 or plan.graph.sources[0].channels != 1:
        raise ExportError("a graph is exported for one input with its channels in dimension 1, such as images")
    if isinstance(target, int):
        classes = plan.graph.shapes[plan.graph.output][1:2]
        chosen_classes(target, len(x), classes[0] or 1 if classes else 1, x.device)
    elif target not in (None, "input"):
        raise InputError(f"target must be None, a class or 'input', got {target!r}")
    images = x if plan.graph.batch is None else x[:1].expand(plan.graph.batch, -1, -1, -1).contiguous()
    about = _about(plan, lrp.composite, start, target, card, images, pixels)
    _check_beside(path, about)
    program = _exported_program(plan, start, target, card if pixels else None, images)
    content = _archive(program, about) if path.suffix == ".pt2" else _onnx(program, about, plan)
    found = _compare(content, path.suffix, lrp, images, card if pixels else None, target, start)
    if not found.worst <= tolerance:
        raise ExportError(
            f"the exported graph gives other results than LRP: map {found.map:.1e}, conservation "
            f"{found.conservation:.1e}, logits {found.logits:.1e} of their largest value. With a tolerance of "
            f"{tolerance:g} nothing was written. Network or rules may enlarge rounding: whether it is that, a .pt2 "
            "archive of model.double() with x.double() shows. Rules with a larger threshold may differ less; a larger "
            "tolerance allows more"
        )
    about["agreement"] = asdict(found)
    written = write_bytes(path, content)
    write_text(path.with_suffix(".json"), json.dumps(about, indent=1))
    return Exported(written, about, found)


def _check_beside(path: Path, about: Mapping[str, Any]) -> None:
    """Refuse to replace the JSON file of another graph, in the other format, by one that says something else.

    Raises:
        InputError: there is such a graph.
    """
    other, beside = (path.with_suffix(suffix) for suffix in (".pt2" if path.suffix == ".onnx" else ".onnx", ".json"))
    if not other.is_file():
        return
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    ours = json.loads(json.dumps(about))
    differing = [key for key in ours if said.get(key) != ours[key]] if isinstance(said, dict) else []
    if differing:
        raise InputError(
            f"{beside} says what {other.name} is, which is another graph (differing: {', '.join(differing)}); choose "
            f"another name, or remove {other.name}"
        )


def _noise(model: nn.Module, card: ModelCard) -> Tensor:
    """Two images of the size that the model is for."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    size = card.preprocessing.size
    noise = torch.rand(2, len(card.preprocessing.mean), *size, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


def _exported_program(
    plan: Plan, start: Start, target: int | str | None, card: ModelCard | None, x: Tensor
) -> torch.export.ExportedProgram:
    """The graph as torch's own program."""
    any_number = plan.graph.batch is None
    example = x.new_zeros((2, *x.shape[1:])) if any_number else torch.zeros_like(x)
    given = [example] if target != "input" else [example, example.new_zeros(len(example), dtype=torch.long)]
    try:
        sweep = SweepProgram(plan, Request(start, chosen=target is not None), Inputs.of(x), derive=True)
        graph = _Graph(sweep, target if isinstance(target, int) else None, card)
        sizes = [{0: torch.export.Dim.DYNAMIC} if any_number else None for _ in given]
        with tracing(x):
            return torch.export.export(graph, tuple(given), dynamic_shapes=tuple(sizes), strict=False)
    except HeadwaterError:
        raise
    except Exception as error:  # whatever a rule or the exporter raises
        raise ExportError(f"the sweep cannot be exported: {reason_of(error)}") from error


def _archive(program: torch.export.ExportedProgram, about: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={f"{KEY}.json": json.dumps(about)})
    return stream.getvalue()


def _onnx(program: torch.export.ExportedProgram, about: dict[str, Any], plan: Plan) -> bytes:
    from headwater.deployment.translations import translations

    table: dict[Callable[..., Any], Callable[..., Any]] = translations()
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        with program.graph.inserting_before(node):  # torch's decompositions change the strides that a view relies on
            whole = program.graph.call_function(
                torch.ops.aten.clone.default, (node.args[0],), {"memory_format": torch.contiguous_format}
            )
        node.replace_input_with(node.args[0], whole)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = torch.onnx.export(
                program,
                (),
                input_names=list(about["input"]),
                output_names=list(OUTPUTS),
                custom_translation_table=table,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common base
        raise ExportError(_unconverted(error, plan)) from error
    assert converted is not None
    proto = converted.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(about)
    try:
        return proto.SerializeToString()
    except ValueError as error:
        raise ExportError(f"ONNX holds at most 2 GiB in one file ({error}); write a .pt2 archive") from error


def _unconverted(error: BaseException, plan: Plan) -> str:
    """Which operation torch could not convert, and the modules of the network that have it."""
    named = re.search(r"(?:target=torch\.ops\.|OpOverload\(op=')aten\.(\w+)", str(error))
    if named is None:
        return f"the graph cannot be converted to ONNX: {reason_of(error)}"
    kind = named[1]
    places = [o.module or "(the model itself)" for o in plan.graph.operations if kind.startswith(o.kind)]
    where = f", in module {', '.join(dict.fromkeys(places[:3]))}" if places else ""
    if "No ONNX function" not in str(error):
        return f"operation {kind!r}{where} cannot be converted to ONNX: {reason_of(error)}"
    return f"operation {kind!r}{where} has no counterpart in ONNX that torch knows; write a .pt2 archive, or change it"


def _about(
    plan: Plan,
    composite: Composite,
    start: Start,
    target: int | str | None,
    card: ModelCard,
    x: Tensor,
    pixels: bool,
) -> dict[str, Any]:
    """What a graph is, in values that JSON can hold."""
    batch: str | int = "N" if plan.graph.batch is None else plan.graph.batch
    shape = [batch if size is None else size for size in plan.graph.shapes[plan.graph.output]]
    prepare = card.preprocessing
    return {
        "model": card.name,
        "weights": card.weights,
        "composite": composite.name,
        "start": start,
        "target": target,
        "input": {"image": [batch, *x.shape[1:]], **({"target": [batch]} if target == "input" else {})},
        "dtype": str(x.dtype).removeprefix("torch."),
        "output": {
            "logits": shape if len(shape) > 1 else [*shape, 1],
            "map": [batch, *x.shape[2:]],
            "conservation": [batch, 2],
        },
        "values": "pixels from 0 to 1" if pixels else "normalised",
        "resize": prepare.resize,
        "mean": list(prepare.mean),
        "std": list(prepare.std),
        "classes": None if card.classes is None else list(card.classes),
        "versions": {"headwater": headwater.__version__, "torch": torch.__version__},
    }


def _compare(
    content: bytes, suffix: str, lrp: LRP, x: Tensor, card: ModelCard | None, target: int | str | None, start: Start
) -> Agreement:
    """Run a graph on images and on the first alone, if it takes any number, beside LRP."""
    batches = [x, x[:1]] if lrp.plan(x).graph.batch is None and len(x) > 1 else [x]
    found = []
    for images in batches:
        given, wanted = {"image": images.detach().cpu().numpy()}, images
        if card is not None:
            mean, std = (images.new_tensor(v)[:, None, None] for v in (card.preprocessing.mean, card.preprocessing.std))
            wanted = (images - mean) / std
        e = lrp(wanted, target if isinstance(target, int) else None, start)
        if target == "input":
            given["target"] = e.target.cpu().numpy()
        try:
            results = run_bytes(content, suffix, given)
        except Exception as error:  # those of ONNX Runtime have no common base
            raise ExportError(f"the exported graph does not run: {reason_of(error)}") from error
        found.append(agreement(results, e))
    return Agreement(*(max(getattr(one, name) for one in found) for name in ("map", "conservation", "logits")))
