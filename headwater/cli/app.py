"""The command line."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import headwater
from headwater.cli.interruption import WORK, InterruptedWork, handled
from headwater.errors import HeadwaterError, InputError, OutputError

if TYPE_CHECKING:
    from torch import nn

    from headwater.engine.explanation import Conservation
    from headwater.engine.flow import Flow
    from headwater.models import ModelCard

app = typer.Typer(
    name="headwater",
    help="Which pixels a residual network used, with an account that adds up.",
    epilog="--debug, anywhere: show the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
console = Console(highlight=False, soft_wrap=True)


def _folder(text: str | Path) -> Path:
    if not str(text).strip():
        raise typer.BadParameter("the name of the folder is empty; . is this folder")
    return Path(text)


Folder = Annotated[Path, typer.Option(parser=_folder, metavar="DIR", help="Folder for the results.")]
RunFolder = Annotated[
    Path, typer.Option(parser=_folder, metavar="DIR", help="Folder of this run; an unfinished run in it goes on.")
]
Data = Annotated[Path, typer.Option(parser=_folder, metavar="DIR", help="Folder with labelled images.")]
Model = Annotated[
    str | None,
    typer.Option(help="Name, checkpoint file, run folder or module:function; ResNet-50 if not given."),
]
Arch = Annotated[str | None, typer.Option(help="Architecture of a checkpoint file.")]
Weights = Annotated[
    str, typer.Option(help="Member of torchvision's weights enum, none, or a file for module:function.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Let --model module:function import and call your own Python code.")
]
Devices = Annotated[str | None, typer.Option(help="Separated by commas; cuda where there is one.")]
Seed = Annotated[int, typer.Option(help="Of the sample and of ties.", min=0, max=2**63 - 1)]
Samples = Annotated[int, typer.Option(help="Images, balanced over the classes.", min=1)]
Step = Annotated[int | None, typer.Option(help="Pixels between two points; 500 of 224x224.", min=1)]
Labels = Annotated[
    str,
    typer.Option(
        help="names (matched with the network's), positions, predicted, or a CSV file: image,label or folder,label."
    ),
]


def main() -> None:
    """Run the command line; errors of our own are one line and status 1."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    for stream in ("stdout", "stderr"):
        _make_writable(stream)
    try:
        with handled():
            app(arguments, standalone_mode=True)
    except HeadwaterError as error:
        if debug:
            raise
        _complain(str(error))
        sys.exit(1)
    except InterruptedWork as interruption:
        print(f"headwater: {WORK}", file=sys.stderr)
        sys.exit(interruption.status)
    finally:
        _flush(sys.stdout)


def _make_writable(name: str) -> None:
    """A closed stream is a file that swallows; a stream for few characters replaces the others."""
    stream = getattr(sys, name)
    if stream is None:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - for the life of the process
    elif hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def _flush(stream: Any) -> None:
    """Write out what is left now, where it can be caught, not while Python ends; nobody may be reading."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(message: str) -> None:
    print(f"headwater: error: {message}", file=sys.stderr)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"headwater {headwater.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


def _network(model: str | None, weights: str, arch: str | None, allow_code: bool) -> nn.Module:
    """The network that was asked for, or the default one."""
    from headwater.image_explanation import default_model
    from headwater.models import load_model

    return default_model() if model is None else load_model(model, weights, arch, allow_code=allow_code)


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    model: Model = None,
    arch: Arch = None,
    weights: Weights = "DEFAULT",
    allow_code: AllowCode = False,
    method: Annotated[str, typer.Option(help="See headwater methods.")] = "otsuki2024",
    target: Annotated[
        str | None, typer.Option(help="Class to explain, by name or number; the predicted one if not given.")
    ] = None,
    out: Folder = Path("maps"),
    quantize: Annotated[int | None, typer.Option(help="Levels of heat quantization of the drawn maps.", min=2)] = None,
    colormap: Annotated[str | None, typer.Option(help="Any of matplotlib's; jet matches the papers.")] = None,
    sign: Annotated[str, typer.Option(help="auto, positive, absolute or signed.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; cuda where there is one.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 8,
    flow: Annotated[
        bool, typer.Option("--flow", help="Also where relevance flowed, averaged over the images: flow.*.png, .json.")
    ] = False,
) -> None:
    """Explain images: overlay, figure, raw map and JSON for each."""
    from headwater.files import check_folder, concerns_all
    from headwater.image_explanation import explain_files
    from headwater.models import card_of
    from headwater.report.images import Style

    style = Style(colormap, sign)  # type: ignore[arg-type]
    place = _device(device)
    network = _network(model, weights, arch, allow_code).to(place)
    WORK.begin(out, len(images))
    failed, explained = 0, list[Path]()
    flows: list[Flow] = []
    columns = (TextColumn("explaining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task, masks = progress.add_task("", total=len(images)), progress.add_task("", visible=False)

        def masked(done: int, total: int) -> None:
            progress.update(masks, completed=done, total=total, visible=done < total)

        results = explain_files(images, network, method, target, quantize, batch_size=batch_size, progress=masked)
        check_folder(out)
        for path, e in zip(images, results, strict=True):
            progress.advance(task)
            WORK.done += 1
            if isinstance(e, HeadwaterError):
                failed += 1
                _complain(str(e))
                continue
            if e.flow is not None:
                flows.append(e.flow)
                explained.append(path)
            try:
                overlay = e.save(out, style=style)[0]
            except OutputError as error:
                if concerns_all(error):
                    raise
                failed += 1
                _complain(f"{path}: {error}")
                continue
            progress.console.print(
                f"{path}: {e.card.class_name(int(e.target))} {e.probability.item():.1%} "
                f"({e.card.name}){_account(e.conservation)} -> {overlay}",
                markup=False,
            )
    if flow:
        _save_flow(flows, explained, out, card_of(network), method, target)
    if failed:
        others = f"; the others are in {out}" if failed < len(images) else ""
        _complain(f"{failed} of {len(images)} images could not be explained or saved{others}")
        raise typer.Exit(1)


def _account(account: Conservation | None) -> str:
    """Whether the map adds up, in words; the limit is that of the tests."""
    if account is None:
        return ""
    seed, arrived, error = account.seed.item(), account.input.item(), account.error.item()
    if error < 1e-5:
        return f"; relevance conserved to {error:.1e} of {seed:.4f}"
    return f"; relevance NOT conserved by this method: {arrived:.4f} of {seed:.4f} arrived"


def _save_flow(
    flows: list[Flow], images: list[Path], out: Path, card: ModelCard, method: str, target: str | None
) -> None:
    """Where relevance flowed, averaged over images, as a figure and as numbers."""
    from headwater.files import write_bytes, write_record
    from headwater.image_explanation import MADE_FROM, stem_of
    from headwater.report.flow import flow_figure

    if not flows:
        raise InputError(f"method {method!r} does not tell where relevance flows; the LRP composites do")
    mean = type(flows[0]).mean(flows)
    title = f"{method}: relevance at each join, percent, mean of {len(flows)} image{'s' * (len(flows) > 1)}"
    explained = "predicted" if target is None else card.class_name(card.class_index(target))
    paths = [str(path.absolute()) for path in images]
    source = {"images": paths, "model": card.name, "weights": card.weights, "method": method, "target": explained}
    record = {"images": len(flows), MADE_FROM: source, "joins": mean.as_rows()}
    figure = flow_figure(mean, title)
    name = write_record(out, stem_of("flow", card, method, explained), record, MADE_FROM, (".png",))
    drawn = write_bytes(out / f"{name}.png", figure)
    console.print(f"flow -> {drawn}", markup=False)


def _device(name: str | None) -> str:
    import torch

    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen.split(":")[0] == "meta":
        raise InputError("device 'meta' computes no values; take cpu, cuda, mps, ...")
    try:
        torch.zeros(1, device=chosen)
    except Exception as error:  # torch raises a different type for each backend that is missing
        raise InputError(f"device {chosen!r} is not available here: {str(error).splitlines()[0]}") from error
    return chosen


def _devices(names: str | None) -> list[str]:
    if names is None:
        return [_device(None)]
    if not _names(names):
        raise InputError(f"--devices {names!r} names no device; say cpu, cuda, cuda:0,cuda:1, ...")
    return [_device(name) for name in _names(names)]


@app.command()
def evaluate(
    data: Data,
    methods: Annotated[str, typer.Option(help="Names, separated by commas; NAME+hq for the quantized map.")],
    out: RunFolder,
    model: Model = None,
    arch: Arch = None,
    weights: Weights = "DEFAULT",
    allow_code: AllowCode = False,
    samples: Samples = 1000,
    protocol: Annotated[
        str, typer.Option(help="published, budget, or both, separated by commas.")
    ] = "published,budget",
    split: Annotated[str, typer.Option(help="Of the data set.")] = "val",
    seed: Seed = 42,
    step: Step = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 16,
    randomise: Annotated[
        int, typer.Option(help="Also: do maps change when the network's layers are random? On so many images.", min=0)
    ] = 0,
    devices: Devices = None,
    labels: Labels = "names",
) -> None:
    """Measure methods on labelled images: insertion, deletion, conservation, localisation, randomisation."""
    from headwater import evaluation
    from headwater.files import write_bytes, write_text
    from headwater.methods import is_baseline
    from headwater.metrics.insertion_deletion import Protocol
    from headwater.report.tables import SummaryTable, curves_figure, randomisation_figure

    protocols = cast("tuple[Protocol, ...]", tuple(_names(protocol)))
    settings = evaluation.Settings(tuple(_names(methods)), samples, protocols, split, seed, step, batch_size, labels)
    places = _devices(devices)
    network = _network(model, weights, arch, allow_code)
    WORK.begin(out, samples)
    with _measuring() as progress:
        table = evaluation.evaluate(
            network if len(places) > 1 else network.to(places[0]),
            data,
            settings,
            out,
            devices=places if len(places) > 1 else (),
            progress=progress,
        )
    baselines = [name for name in settings.methods if is_baseline(name)]
    summary = SummaryTable.of(table, baselines)
    write_text(out / "summary.csv", summary.csv())
    write_text(out / "summary.md", summary.markdown() + "\n")
    write_text(out / "summary.tex", summary.latex())
    write_bytes(out / "curves.png", curves_figure(json.loads((out / "curves.json").read_text())))
    if randomise:
        changed = evaluation.measure_randomisation(network, data, settings, randomise)
        write_text(out / "randomisation.csv", changed.to_csv(index=False))
        write_bytes(out / "randomisation.png", randomisation_figure(changed))
    console.print(summary.markdown(), markup=False)
    console.print(f"rows -> {out / 'results.parquet'}, curves -> {out / 'curves.png'}", markup=False)


@contextmanager
def _measuring() -> Iterator[Callable[[int, int, float], None]]:
    """Progress with rate and time left: a bar on a terminal, plain lines elsewhere."""
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, rate="")

        def say(message: Warning | str, *_: Any) -> None:
            print(f"headwater: warning: {message}", file=sys.stderr)

        def progress(done: int, total: int, seconds: float) -> None:
            WORK.done, WORK.total = done, total
            rate = f"{done / seconds:.2f} images/s" if seconds else ""
            bar.update(task, completed=done, total=total, rate=rate)
            if not console.is_terminal:
                left = seconds / done * (total - done)
                console.print(f"{done} of {total} images, {rate}, {left:.0f} s left", markup=False)

        with warnings.catch_warnings():
            warnings.showwarning = say  # type: ignore[assignment]  # one line, without the place in the code
            yield progress


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See headwater experiments.")],
    data: Data,
    out: RunFolder,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Name, checkpoint file or run folder; several give means over networks. ResNet-50 if none."),
    ] = None,
    arch: Arch = None,
    weights: Weights = "DEFAULT",
    allow_code: AllowCode = False,
    samples: Samples = 1000,
    split: Annotated[str, typer.Option(help="Of the data set.")] = "val",
    seed: Seed = 42,
    step: Step = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 16,
    threshold: Annotated[float, typer.Option(help="For tableD: an ID not above it is a failure.")] = 0.371,
    worst: Annotated[int, typer.Option(help="For tableD: failed images to look at.", min=1)] = 100,
    devices: Devices = None,
    labels: Labels = "names",
) -> None:
    """Run an experiment of the papers and print its numbers beside the published ones."""
    from headwater import experiments
    from headwater.evaluation import Settings
    from headwater.models import find_runs

    places = _devices(devices)
    names = [str(run) for given in model or [] for run in (find_runs(Path(given)) if Path(given).is_dir() else [given])]
    networks = [_network(given, weights, arch, allow_code) for given in names or (None,)]
    WORK.begin(out, samples)
    settings = Settings(
        ("otsuki2024",), samples, split=split, seed=seed, step=step, batch_size=batch_size, labels=labels
    )
    with _measuring() as progress:
        done = experiments.reproduce(
            name,
            data,
            [network.to(places[0]) for network in networks],
            out,
            settings,
            threshold=threshold,
            worst=worst,
            devices=places if len(places) > 1 else (),
            progress=progress,
        )
    console.print(done.report, markup=False)
    for path in done.files:
        console.print(f"-> {path}", markup=False)


@app.command()
def train(
    name: Annotated[str, typer.Argument(metavar="NAME", help="cub-resnet50, cub-abn, or tiny20 (the bundled one).")],
    data: Data,
    out: RunFolder,
    recipe: Annotated[str, typer.Option(help="otsuki2024 or doublet2024; for cub-.")] = "otsuki2024",
    seeds: Annotated[str, typer.Option(help="Of every random choice, separated by commas: a run each.")] = "0",
    epochs: Annotated[int | None, typer.Option(help="At most; what the recipe says if not given.", min=1)] = None,
    weights: Annotated[
        str | None, typer.Option(help="To begin with: member of torchvision's enum, a file, or none (from scratch).")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="Another network than ResNet-50.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images; 224 in the papers.", min=8)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step; 32 in the papers.", min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; 0.001 in the papers.")] = None,
    validation: Annotated[int | None, typer.Option(help="Images cut from the training set.", min=1)] = None,
    test_split: Annotated[str, typer.Option(help="What the data call their images for testing.")] = "test",
    workers: Annotated[int, typer.Option(help="Processes that load images.", min=0)] = 0,
    devices: Annotated[str, typer.Option(help="How many GPUs, or auto.")] = "auto",
) -> None:
    """Train a network by a committed recipe; every run folder can be explained with --model."""
    numbers = [_whole(seed) for seed in _names(seeds)]
    if not numbers or len(set(numbers)) != len(numbers):
        raise InputError(f"seeds must be different whole numbers, separated by commas, got {seeds!r}")
    if name not in ("tiny20", "cub-resnet50", "cub-abn"):
        raise InputError(f"no training is called {name!r}; there are cub-resnet50, cub-abn, tiny20")
    changes = {
        "epochs": epochs,
        "start": weights,
        "arch": arch,
        "size": size,
        "batch_size": batch_size,
        "lr": lr,
        "validation": validation,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    WORK.begin(out)
    try:
        if name == "tiny20":
            _train_tiny20(data, out, numbers, changes)
        else:
            _train_classifier(name, data, out, recipe, numbers, changes, test_split, workers, devices)
    except ModuleNotFoundError as error:
        from headwater.errors import MissingDependencyError

        raise MissingDependencyError(f"training needs {error.name}: pip install 'headwater[train]'") from error


def _train_tiny20(data: Path, out: Path, seeds: list[int], changes: dict[str, Any]) -> None:
    from headwater.training.tiny20 import Recipe, train_tiny20

    if set(changes) - {"epochs", "batch_size"}:
        raise InputError("tiny20 is trained by its own recipe; --epochs, --batch-size and --seeds can be changed")
    for seed in seeds:
        place = out if len(seeds) == 1 else out / f"seed-{seed}"
        trained = train_tiny20(data, place, Recipe(seed=seed, **changes), progress_bar=console.is_terminal)
        console.print(f"seed {seed}: validation accuracy {trained.accuracy:.1%} -> {trained.weights}", markup=False)


def _train_classifier(
    name: str,
    data: Path,
    out: Path,
    recipe: str,
    seeds: list[int],
    changes: dict[str, Any],
    test_split: str,
    workers: int,
    devices: str,
) -> None:
    from dataclasses import replace
    from statistics import mean, stdev

    from headwater.training.classifier import train_classifier
    from headwater.training.recipes import RECIPES

    if recipe not in RECIPES:
        raise InputError(f"no recipe is called {recipe!r}; there are {', '.join(RECIPES)}")
    chosen = replace(RECIPES[recipe], attention_after="layer3" if name == "cub-abn" else None, **changes)
    accuracies = []
    for seed in seeds:
        trained = train_classifier(
            data,
            out / f"seed-{seed}",
            replace(chosen, seed=seed),
            test_split=test_split,
            workers=workers,
            devices=devices if devices == "auto" else _whole(devices),
            progress_bar=console.is_terminal,
        )
        accuracies.append(trained.accuracy)
        console.print(
            f"seed {seed}: test accuracy {trained.accuracy:.1%} after {trained.epochs} epochs -> {trained.folder}",
            markup=False,
        )
    if len(accuracies) > 1:
        console.print(
            f"test accuracy {mean(accuracies):.1%} ± {stdev(accuracies):.1%} over {len(accuracies)} seeds",
            markup=False,
        )


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"a whole number was expected, got {text!r}")
    return int(text)


@app.command()
def models() -> None:
    """List the models."""
    from headwater.models import list_models

    for name in list_models():
        console.print(name, markup=False)
    print(
        "also: timm:NAME (needs timm), checkpoint files with --arch, and run folders of headwater train",
        file=sys.stderr,
    )


@app.command()
def methods() -> None:
    """List the explanation methods, with what each does."""
    from headwater.methods import describe_method, list_methods

    names = list_methods()
    for name in names:
        console.print(f"{name:<{max(map(len, names))}}  {describe_method(name)}", markup=False)
    print("also: NAME+hq: the map of NAME after heat quantization in 8 levels", file=sys.stderr)


@app.command()
def experiments() -> None:
    """List the experiments that headwater reproduce runs."""
    from headwater.experiments import list_experiments

    table = Table("experiment", "what it is", box=None)
    for name, title in list_experiments().items():
        table.add_row(name, title)
    console.print(table)


if __name__ == "__main__":
    main()
