"""``headwater models``, ``methods`` and ``experiments``: what there is."""

from __future__ import annotations

import sys

from rich.table import Table

from headwater.cli.terminal import console


def models() -> None:
    """List the models."""
    from headwater.models import list_models

    for name in list_models():
        console.print(name, markup=False)
    print(
        "also: timm:NAME (needs timm), hf:OWNER/NAME and folders of save_pretrained (need transformers), checkpoint "
        "files with --arch, and run folders of headwater train",
        file=sys.stderr,
    )


def methods() -> None:
    """List the explanation methods, with what each does."""
    from headwater.methods import describe_method, list_methods

    names = list_methods()
    for name in names:
        console.print(f"{name:<{max(map(len, names))}}  {describe_method(name)}", markup=False)
    print(
        "also: NAME+hq: the map of NAME heat-quantized in 8 levels, as published; NAME+hq-equation: as printed",
        file=sys.stderr,
    )


def experiments() -> None:
    """List the experiments that headwater reproduce runs."""
    from headwater.experiments import list_experiments

    table = Table("experiment", "what it is", box=None)
    for name, title in list_experiments().items():
        table.add_row(name, title)
    console.print(table)
