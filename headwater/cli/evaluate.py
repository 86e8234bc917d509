"""``headwater evaluate``: measures of methods on labelled images."""

from __future__ import annotations

import functools
import math
import shlex
import sys
from typing import Annotated, cast

import typer

from headwater.cli.interruption import WORK
from headwater.cli.options import (
    AllowCode,
    Arch,
    BatchSize,
    DataPlace,
    Devices,
    Engine,
    Labels,
    Model,
    Prepare,
    RunFolder,
    Samples,
    Seed,
    Split,
    Step,
    Weights,
    Workers,
    check_devices,
    check_engine,
    check_readable,
    load_network,
    split_names,
)
from headwater.cli.terminal import console, evaluation_progress, say_estimate


def evaluate(
    data: DataPlace,
    methods: Annotated[
        str, typer.Option(help="Names, separated by commas; NAME+hq or NAME+hq-equation for the quantized map.")
    ],
    out: RunFolder,
    model: Model = None,
    arch: Arch = None,
    weights: Weights = None,
    prepare: Prepare = None,
    allow_code: AllowCode = False,
    samples: Samples = 1000,
    protocol: Annotated[
        str, typer.Option(help="published, budget, or both, separated by commas.")
    ] = "published,budget",
    split: Split = "val",
    seed: Seed = 42,
    step: Step = None,
    batch_size: BatchSize = 16,
    randomise: Annotated[
        int,
        typer.Option(help="Also: do maps change when the network's layers are random? On this many images.", min=0),
    ] = 0,
    devices: Devices = None,
    labels: Labels = "names",
    engine: Engine = "local",
    workers: Workers = None,
) -> None:
    """Measure methods on labelled images: insertion, deletion, conservation, localisation, randomisation."""
    cluster = check_engine(engine, workers, devices)
    check_readable(data)
    from headwater import evaluation
    from headwater.metrics.insertion_deletion import Protocol
    from headwater.models import card_of

    protocols = cast("tuple[Protocol, ...]", tuple(split_names(protocol)))
    settings = evaluation.Settings(
        tuple(split_names(methods)), samples, protocols, split, seed, step, batch_size, labels
    )
    places = check_devices(devices) if cluster is None else ["cpu"]
    network = load_network(model, weights, arch, allow_code, prepare).to(places[0])
    settings.step_for(math.prod(card_of(network).preprocessing.size))
    WORK.begin(out, samples)
    with evaluation_progress(samples, batch_size) as progress:
        evaluation.evaluate(
            network,
            data,
            settings,
            out,
            devices=places if len(places) > 1 else (),
            engine=cluster,
            progress=progress,
            expected=functools.partial(say_estimate, len(places)),
            command=shlex.join(["headwater", *sys.argv[1:]]),
        )
    if randomise:
        evaluation.measure_randomisation(network, data, settings, randomise, out=out)
    console.print((out / "summary.md").read_text(encoding="utf-8"), markup=False, end="")
    console.print(
        f"rows -> {out / 'results.parquet'}, curves -> {out / 'curves.png'}; a page of it all: headwater report {out}",
        markup=False,
    )
