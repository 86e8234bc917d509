"""``headwater reproduce``: a table or figure of the papers, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.interruption import WORK
from headwater.cli.options import (
    AllowCode,
    Arch,
    BatchSize,
    Data,
    Devices,
    Labels,
    RunFolder,
    Samples,
    Seed,
    Split,
    Step,
    Weights,
    check_devices,
    load_network,
)
from headwater.cli.terminal import console, evaluation_progress


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See headwater experiments.")],
    data: Data,
    out: RunFolder,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Name, checkpoint file or run folder; several give means over networks."),
    ] = None,
    arch: Arch = None,
    weights: Weights = "DEFAULT",
    allow_code: AllowCode = False,
    samples: Samples = 1000,
    split: Split = "val",
    seed: Seed = 42,
    step: Step = None,
    batch_size: BatchSize = 16,
    threshold: Annotated[float, typer.Option(help="For tableD: an ID not above it is a failure.")] = 0.371,
    worst: Annotated[int, typer.Option(help="For tableD: failed images to look at.", min=1)] = 100,
    devices: Devices = None,
    labels: Labels = "names",
) -> None:
    """Run an experiment of the papers and print its numbers beside the published ones."""
    from headwater import experiments
    from headwater.evaluation import Settings
    from headwater.models import find_runs

    places = check_devices(devices)
    names = [str(run) for given in model or [] for run in (find_runs(Path(given)) if Path(given).is_dir() else [given])]
    networks = [load_network(given, weights, arch, allow_code) for given in names or (None,)]
    WORK.begin(out, samples)
    settings = Settings(
        ("otsuki2024",), samples, split=split, seed=seed, step=step, batch_size=batch_size, labels=labels
    )
    with evaluation_progress() as progress:
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
