"""``headwater export``: a network with its relevance map as one graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from headwater.cli.options import AllowCode, Arch, Model, Weights, load_network
from headwater.cli.terminal import console


def export(
    model: Model = None,
    arch: Arch = None,
    weights: Weights = None,
    allow_code: AllowCode = False,
    composite: Annotated[str, typer.Option(help="Which rule goes where.")] = "otsuki2024",
    target: Annotated[
        str | None,
        typer.Option(help="Class to explain, by name or number; input: the graph takes it; the predicted one if none."),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images; the model's own if not given.", min=1)] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="The graph takes values from 0 to 1 and normalises them.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(help="How far the graph's results may be from LRP's, relative to the largest.", min=0)
    ] = 1e-4,
    out: Annotated[Path, typer.Option(metavar="FILE", help="An .onnx or a .pt2 file.")] = Path("explainer.onnx"),
) -> None:
    """Write a network with its relevance map as one graph: image in; logits, map and conservation out."""
    import torch

    from headwater.deployment import export as write
    from headwater.models import card_of

    network = load_network(model, weights, arch, allow_code)
    card = card_of(network)
    channels = len(card.preprocessing.mean)
    x = None if size is None else torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    chosen: int | Literal["input"] | None = None
    if target is not None:
        chosen = "input" if target == "input" else card.class_index(target)
    done = write(network, composite, out, x, target=chosen, pixels=pixels, tolerance=tolerance)
    console.print(
        f"{card.name}, {done.about['composite']}: images {tuple(done.about['input']['image'])} -> {done.path}; "
        f"map as LRP's to {done.agreement.map:.1e} of its maximum, conservation to {done.agreement.conservation:.1e}",
        markup=False,
    )
