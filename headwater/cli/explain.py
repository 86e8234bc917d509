"""``headwater explain``: overlay, figure, raw map and JSON for each image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.interruption import WORK
from headwater.cli.options import (
    AllowCode,
    Arch,
    BatchSize,
    Engine,
    Folder,
    Model,
    Prepare,
    Weights,
    Workers,
    check_device,
    check_engine,
    load_network,
)
from headwater.cli.terminal import complain, console, evaluation_progress, progress_bar
from headwater.errors import HeadwaterError, InputError, OutputError

if TYPE_CHECKING:
    from torch import nn

    from headwater.cluster import Ray
    from headwater.engine.explanation import Conservation
    from headwater.engine.flow import Flow
    from headwater.explanation_run import Wanted
    from headwater.models import ModelCard


def explain(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Image files, or addresses; with --engine ray also folders.")
    ],
    model: Model = None,
    arch: Arch = None,
    weights: Weights = None,
    prepare: Prepare = None,
    allow_code: AllowCode = False,
    method: Annotated[
        str, typer.Option(help="See headwater methods; NAME+hq and NAME+hq-equation are quantized.")
    ] = "headwater",
    target: Annotated[
        str | None, typer.Option(help="Class to explain, by name or number; the predicted one if not given.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Why the target and not this class, by name or number; best with method headwater."),
    ] = None,
    out: Folder = Path("maps"),
    quantize: Annotated[int | None, typer.Option(help="Levels of heat quantization of the drawn maps.", min=2)] = None,
    colormap: Annotated[str | None, typer.Option(help="Any of matplotlib's; jet matches the papers.")] = None,
    sign: Annotated[str, typer.Option(help="auto, positive, absolute or signed.")] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; cuda where there is one.")] = None,
    batch_size: BatchSize = 8,
    scales: Annotated[
        bool, typer.Option("--scales", help="Also the map at every scale, from coarse to fine: *.scales.png.")
    ] = False,
    flow: Annotated[
        bool, typer.Option("--flow", help="Also where relevance flowed, averaged over the images: flow.*.png, .json.")
    ] = False,
    engine: Engine = "local",
    workers: Workers = None,
) -> None:
    """Explain images: overlay, figure, raw map and JSON for each."""
    cluster = check_engine(engine, workers, device)
    if cluster is not None and flow:
        raise InputError("--flow averages over the images of this process; it goes with --engine local")
    from headwater.data.storage import as_path
    from headwater.explanation_run import Wanted
    from headwater.explanations import explain_files
    from headwater.files import check_folder, concerns_all
    from headwater.models import card_of
    from headwater.report.images import Style

    style = Style(colormap, sign)  # type: ignore[arg-type]
    if cluster is not None:
        network = load_network(model, weights, arch, allow_code, prepare)
        wanted = Wanted(method, target, against, quantize, style, scales, batch_size)
        _explain_all(network, images, wanted, out, cluster)
        return
    files = [as_path(image) for image in images]
    place = check_device(device)
    network = load_network(model, weights, arch, allow_code, prepare).to(place)
    WORK.begin(out, len(images))
    failed, explained = 0, list[Path]()
    flows: list[Flow] = []
    with progress_bar("explaining", transient=True) as bar:
        task, within = bar.add_task("", total=len(images)), bar.add_task("", visible=False)

        def progress(done: int, total: int) -> None:
            bar.update(within, completed=done, total=total, visible=done < total)

        results = explain_files(
            files, network, method, target, quantize, batch_size=batch_size, progress=progress, against=against
        )
        check_folder(out)
        for path, e in zip(files, results, strict=True):
            bar.advance(task)
            WORK.done += 1
            if isinstance(e, HeadwaterError):
                failed += 1
                complain(str(e))
                continue
            if e.flow is not None:
                flows.append(e.flow)
                explained.append(path)
            try:
                overlay = e.save(out, style=style, scales=scales)[0]
            except OutputError as error:
                if concerns_all(error):
                    raise
                failed += 1
                complain(f"{path}: {error}")
                continue
            bar.console.print(
                f"{path}: {e.explained} {e.probability.item():.1%} "
                f"({e.card.name}){account_text(e.conservation)} -> {overlay}",
                markup=False,
            )
    if flow:
        _save_flow(flows, explained, out, card_of(network), method, target)
    if failed:
        others = f"; the others are in {out}" if failed < len(images) else ""
        complain(f"{failed} of {len(images)} images could not be explained or saved{others}")
        raise typer.Exit(1)


def _explain_all(network: nn.Module, places: list[str], wanted: Wanted, out: Path, cluster: Ray) -> None:
    """Explain folders, files and addresses on a cluster; say which images have no map."""
    from headwater.explanation_run import MANIFEST, explain_all, list_images

    images = list_images(places)
    WORK.begin(out, len(images))
    with evaluation_progress(len(images), wanted.batch_size, "explaining") as progress:
        table = explain_all(network, images, wanted, out, engine=cluster, progress=progress)
    failed = table[table["error"].notna()]
    for image, error in zip(failed["image"], failed["error"], strict=True):
        complain(error if image in error else f"{image}: {error}")
    console.print(f"{len(table) - len(failed)} of {len(table)} images -> {out / MANIFEST}.parquet", markup=False)
    if len(failed):
        complain(f"{len(failed)} of {len(table)} images could not be explained or saved; the others are in {out}")
        raise typer.Exit(1)


def account_text(account: Conservation | None) -> str:
    """Whether the map adds up, in words; the limit is that of the tests."""
    if account is None:
        return ""
    seed, arrived, error = account.seed.item(), account.input.item(), account.error.item()
    if error < 1e-5:
        return f"; relevance conserved to {error:.1e} of {seed:.4f}"
    return f"; relevance NOT conserved by this method: {arrived:.4g} of {seed:.4g} arrived"


def _save_flow(
    flows: list[Flow], images: list[Path], out: Path, card: ModelCard, method: str, target: str | None
) -> None:
    """Write where relevance flowed, averaged over the images, as a figure and as numbers."""
    from headwater.explanations import MADE_FROM, stem_of
    from headwater.files import write_bytes, write_record
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
