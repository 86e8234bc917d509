"""What C3-LRP is made of: gradient times input, and a region; each measured on its own under both protocols.

    python -m benchmarks.c3_region --data ../shared/data/tiny20 --samples 40 --step 205 --out docs/results/c3-region.md

``c3-of-NAME`` is the map of NAME inside the region that C3 chooses on it, and ``region-of-c3`` is the region of C3-LRP
with one value in all of it, none outside.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import headwater as hw
from headwater.data.labelled import load_labelled
from headwater.evaluation import Settings, evaluate
from headwater.files import write_text
from headwater.heatmaps import c3
from headwater.methods import load_method, register_method
from headwater.methods.method import Method
from headwater.methods.post_processed import PostProcessed
from headwater.models import card_of, network_input
from headwater.report.tables import SummaryTable

METHODS = (
    *("gradient-x-input", "doublet2024", "c3-lrp", "c1c-lrp", "c3-of-gradient-x-input", "region-of-c3"),
    *("random", "c3-of-random"),
)


def region(heatmap: Tensor) -> Tensor:
    """One inside of C3's region, zero outside."""
    return (c3(heatmap) != 0).to(heatmap)


def register() -> None:
    """Make the parts known by name."""

    def inside(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], Method]:
        return lambda model: PostProcessed(load_method(name, model), change)

    for name in ("gradient-x-input", "random"):
        register_method(f"c3-of-{name}", inside(name, c3))
    register_method("region-of-c3", inside("doublet2024", region))


def progress(done: int, total: int, seconds: float) -> None:
    print(f"{done} of {total} images, {seconds:.0f} s", flush=True)


def correlations(model: nn.Module, x: Tensor) -> Tensor:
    """Of the maps of ``doublet2024`` and ``gradient-x-input``, one per image."""
    maps = [load_method(name, model)(x).heatmap.flatten(1) for name in ("doublet2024", "gradient-x-input")]
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*maps, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="tiny20")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--step", type=int, default=205)
    parser.add_argument("--out", type=Path, required=True, help="Markdown file")
    arguments = parser.parse_args()
    register()
    model, data = hw.load_model("tiny20"), load_labelled(arguments.data, "val")
    settings = Settings(METHODS, arguments.samples, step=arguments.step, batch_size=10)
    with tempfile.TemporaryDirectory() as folder:
        table = evaluate(model, data, settings, Path(folder) / "run", progress=progress)
    images = data.sample(arguments.samples, settings.seed)
    x = network_input(model, [image.open() for image in images], card_of(model).preprocessing)
    same = correlations(model, x)
    count, step, out = arguments.samples, arguments.step, "docs/results/c3-region.md"
    lines = (
        "# Results: what C3's region adds",
        "",
        f"C3-LRP in its parts on tiny20, {count} validation images, seed {settings.seed}, {step} pixels per step. "
        "Maps of `doublet2024`",
        f"(Eq. 1 of Doublet et al.) and of `gradient-x-input` correlate by {same.mean():.5f} on average, "
        f"{same.min():.5f} at least. Made by",
        "",
        "```",
        f"python -m benchmarks.c3_region --data ../shared/data/tiny20 --samples {count} --step {step} --out {out}",
        "```",
        "",
        SummaryTable.of(table, ["gradient-x-input", "random"]).markdown(),
        "",
        "`c3-of-NAME`: the map of NAME inside the region that C3 chooses on it. `region-of-c3`: the region of `c3-lrp`",
        "alone, one value inside and none outside. What follows from it: [Methods](../methods.md).",
        "",
    )
    text = "\n".join(lines)
    write_text(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
