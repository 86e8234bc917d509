"""What C3-LRP is made of: gradient times input, and a region; each measured on its own under both protocols.

    python -m benchmarks.c3_region --data ../shared/data/tiny20 --samples 40 --step 82 --out docs/results/c3-region.md

``c3-of-NAME`` and ``c1c-of-NAME`` are the maps of NAME inside the region that C3 or C1C chooses on them, and
``region-of-c3`` is that of C3-LRP with one value in all of it, none outside.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import headwater as hw
from headwater.data.labelled import load_labelled
from headwater.evaluation import Settings, evaluate
from headwater.files import write_text
from headwater.heatmaps import c1c, c3
from headwater.methods import load_method, register_method
from headwater.methods.method import Method
from headwater.methods.post_processed import PostProcessed
from headwater.models import card_of, network_input
from headwater.report.tables import SummaryTable

METHODS = (
    *("gradient-x-input", "doublet2024", "c3-lrp", "c1c-lrp", "c3-of-gradient-x-input", "region-of-c3"),
    *("random", "c3-of-random", "c1c-of-random", "otsuki2024", "c3-of-otsuki2024"),
)


def region(heatmap: Tensor) -> Tensor:
    """One inside of C3's region, zero outside."""
    return (c3(heatmap) != 0).to(heatmap)


def c1c_enlarged(heatmap: Tensor) -> Tensor:
    return c1c(heatmap, enlarge=True)


def register() -> None:
    """Make the parts known by name."""

    def inside(name: str, change: object) -> object:
        def make(model: nn.Module) -> Method:
            return PostProcessed(load_method(name, model), change)  # type: ignore[arg-type]

        return make

    for name in ("gradient-x-input", "random", "otsuki2024"):
        register_method(f"c3-of-{name}", inside(name, c3))  # type: ignore[arg-type]
    register_method("c1c-of-random", inside("random", c1c_enlarged))  # type: ignore[arg-type]
    register_method("region-of-c3", inside("doublet2024", region))  # type: ignore[arg-type]


def correlations(model: nn.Module, x: Tensor) -> Tensor:
    """Of the maps of ``doublet2024`` and ``gradient-x-input``, one per image."""
    maps = [load_method(name, model)(x).heatmap.flatten(1) for name in ("doublet2024", "gradient-x-input")]
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*maps, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="tiny20")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--step", type=int, default=82)
    parser.add_argument("--out", type=Path, required=True, help="Markdown file")
    arguments = parser.parse_args()
    register()
    model, data = hw.load_model("tiny20"), load_labelled(arguments.data, "val")
    settings = Settings(METHODS, arguments.samples, step=arguments.step, batch_size=10)
    with tempfile.TemporaryDirectory() as folder:
        table = evaluate(model, data, settings, Path(folder) / "run")
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
        "`c3-of-NAME`, `c1c-of-NAME`: the map of NAME inside the region that C3 or C1C chooses on it. "
        "`region-of-c3`: the region of `c3-lrp`",
        "alone, one value inside and none outside. What follows from it: [Methods](../methods.md).",
        "",
    )
    text = "\n".join(lines)
    write_text(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
