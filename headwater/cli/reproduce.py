"""``headwater reproduce``: a table or figure of the papers, measured."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwater.cli.interruption import WORK
from headwater.cli.options import (
    AllowCode,
    Arch,
    BatchSize,
    Devices,
    Labels,
    Prepare,
    RunFolder,
    Samples,
    Seed,
    Split,
    Step,
    Weights,
    by_name,
    check_devices,
    check_readable,
    folder,
    load_network,
)
from headwater.cli.terminal import console, evaluation_progress, say_estimate
from headwater.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_DEFAULT = "resnet50"


def reproduce(
    name: Annotated[str, typer.Argument(metavar="NAME", help="See headwater experiments.")],
    data: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]DIR", help="Folder with labelled images; cub=DIR and imagenet=DIR for figures of both."
        ),
    ],
    out: RunFolder,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL",
            help="Name, checkpoint file or run folder; several give means over networks. With named data, NAME=MODEL.",
        ),
    ] = None,
    arch: Arch = None,
    weights: Weights = None,
    prepare: Prepare = None,
    allow_code: AllowCode = False,
    samples: Samples = 1000,
    split: Split = "val",
    seed: Seed = 42,
    step: Step = None,
    batch_size: BatchSize = 16,
    threshold: Annotated[float, typer.Option(help="For tableD: an ID not above it is a failure.")] = 0.371,
    worst: Annotated[int, typer.Option(help="For tableD: failed images to look at.", min=1)] = 100,
    style: Annotated[
        str,
        typer.Option(
            metavar="published|headwater",
            help="Of maps in figures: as the authors drew them (quantized, positive, jet), or exact in our colours.",
        ),
    ] = "published",
    devices: Devices = None,
    labels: Labels = "names",
) -> None:
    """Run an experiment of the papers and print its numbers beside the published ones."""
    folders, chosen = _pairs(data, model or [])
    for part in folders.values():
        check_readable(part)
    from headwater import experiments
    from headwater.evaluation import Settings

    places = check_devices(devices)
    chosen = {part: _runs(given) for part, given in chosen.items()}
    experiments.check_names(name, [part for part in folders if part], style)
    flat = [given for mine in chosen.values() for given in mine]
    models = {
        part: [_network(given, flat, weights, arch, allow_code, prepare).to(places[0]) for given in mine]
        for part, mine in chosen.items()
    }
    WORK.begin(out, samples)
    settings = Settings(
        ("otsuki2024",), samples, split=split, seed=seed, step=step, batch_size=batch_size, labels=labels
    )
    with evaluation_progress(samples, batch_size) as progress:
        done = experiments.reproduce(
            name,
            folders.get("", folders),
            models.get("", models),
            out,
            settings,
            threshold=threshold,
            worst=worst,
            devices=places if len(places) > 1 else (),
            progress=progress,
            expected=functools.partial(say_estimate, len(places)),
            style=style,
        )
    console.print(done.report, markup=False)
    for path in done.files:
        console.print(f"-> {path}", markup=False)


def _pairs(data: list[str], model: list[str]) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """The folders and the networks by name of the data set; the name is empty where there is one without.

    Raises:
        InputError: a data set has no name beside others, or a network no data set.
    """
    folders = {}
    for name, given in by_name(data).items():
        if len(given) > 1:
            raise InputError(f"{given[0]} and {given[1]} need different names: --data cub=DIR --data imagenet=DIR")
        folders[name] = folder(given[0])
    if "" in folders and len(folders) > 1:
        raise InputError(f"{folders['']} needs a name as the other data have: --data NAME={folders['']}")
    models = by_name(model)
    if list(models) == [""] and len(folders) == 1:
        models = dict.fromkeys(folders, models[""])
    for name, given in models.items():
        if name not in folders:
            hint = f"--data {name}=DIR gives it data" if name else f"--model NAME={given[0]} says for which data it is"
            raise InputError(f"--model {name}{'=' * bool(name)}{given[0]} has no data; {hint}")
    return folders, {name: models.get(name, [_DEFAULT]) for name in folders}


def _runs(given: list[str]) -> list[str]:
    """The names as they are, and in place of a folder each of its runs."""
    from headwater.models import find_runs
    from headwater.models.huggingface import is_saved

    def is_group(name: str) -> bool:
        return Path(name).is_dir() and not is_saved(Path(name))

    return [str(run) for name in given for run in (find_runs(Path(name)) if is_group(name) else [name])]


def _network(
    name: str, all_names: list[str], weights: str | None, arch: str | None, allow_code: bool, prepare: str | None
) -> nn.Module:
    """One of the networks: ``--weights`` is for those without weights of their own, ``--arch`` for the others.

    An option that is for none of them is the error that :func:`headwater.load_model` raises.
    """
    from headwater.models import has_own_weights

    own = has_own_weights(name)
    mixed = len({has_own_weights(other) for other in all_names}) > 1
    weights, arch = (None if mixed and own else weights), (None if mixed and not own else arch)
    return load_network(name, weights, arch, allow_code, prepare)
