"""``headwater train``: a network trained by a committed recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from headwater.cli.interruption import WORK
from headwater.cli.options import Data, RunFolder, split_names, whole_number
from headwater.cli.terminal import console
from headwater.errors import InputError, MissingDependencyError

_BRANCHES: dict[str, Any] = {
    "cub-abn": {"attention_after": "layer3"},
    "cub-abn-published": {"attention_after": "layer1", "attention_variant": "published"},
}
"""Trainings of networks with an attention branch, and what they set in a recipe."""


def train(
    name: Annotated[str, typer.Argument(metavar="NAME", help="cub-resnet50, cub-abn, cub-abn-published, or tiny20.")],
    data: Data,
    out: RunFolder,
    recipe: Annotated[
        str, typer.Option(help="otsuki2024, otsuki2024-published (as the code does) or doublet2024; for cub-.")
    ] = "otsuki2024",
    seeds: Annotated[str, typer.Option(help="Of every random choice, separated by commas: a run each.")] = "0",
    epochs: Annotated[int | None, typer.Option(help="At most; what the recipe says if not given.", min=1)] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="v1|v2|FILE|none", help="To begin with; v1 in the papers, none from scratch.")
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
    numbers = [whole_number(seed) for seed in split_names(seeds)]
    if not numbers or len(set(numbers)) != len(numbers):
        raise InputError(f"seeds must be different whole numbers, separated by commas, got {seeds!r}")
    if name not in ("tiny20", "cub-resnet50", *_BRANCHES):
        raise InputError(f"no training is called {name!r}; there are cub-resnet50, {', '.join(_BRANCHES)}, tiny20")
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
    from headwater.training.classifier import train_classifier
    from headwater.training.recipes import RECIPES

    if recipe not in RECIPES:
        raise InputError(f"no recipe is called {recipe!r}; there are {', '.join(RECIPES)}")
    chosen = replace(RECIPES[recipe], **_BRANCHES.get(name, {}), **changes)
    accuracies = []
    for seed in seeds:
        trained = train_classifier(
            data,
            out / f"seed-{seed}",
            replace(chosen, seed=seed),
            test_split=test_split,
            workers=workers,
            devices=devices if devices == "auto" else whole_number(devices),
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
