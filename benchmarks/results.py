"""The tables of docs/results that compare methods: each is made by one command, and says by which.

    python -m benchmarks.results tiny20 --data ../shared/data
    python -m benchmarks.results efficientnet-lite0 --data ../shared/data
    python -m benchmarks.results resnet50 --data ../shared/data --model runs/resnet50-tiny20/seed-0

--data holds ``tiny20`` and ``imagenet-sample``. Rows that are in --out are not measured again; methods that run the
network a thousand times per image have a folder of their own, so that the others can be measured again without them.
The tables are written to docs/results/tables, from where the pages include them.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas
import torch

import headwater as hw
from headwater.evaluation import Settings, evaluate
from headwater.files import write_bytes, write_text
from headwater.methods import is_baseline
from headwater.methods.rise import Rise
from headwater.report.run_folder import CURVES
from headwater.report.tables import SummaryTable, curves_figure

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "docs" / "results" / "tables"
FEWER = "rise-1000"
"""RISE with a fifth of its masks: 5,000 of them take minutes per image. On tiny20 all of them are a row as well."""
SLOW = ("scorecam", "rise")
MAIN = (
    *("headwater", "headwater+hq", "otsuki2024", "otsuki2024+hq", "gradcam", "gradcam+hq"),
    *("scorecam", "scorecam+hq", FEWER, f"{FEWER}+hq", "random"),
)
OTHERS = (
    *("otsuki2024-published", "otsuki2024-published+hq", "random+hq"),
    *("otsuki2024-i", "otsuki2024-i+hq", "otsuki2024-ii", "otsuki2024-ii+hq", "otsuki2024-iii", "otsuki2024-iii+hq"),
    *("otsuki2024-mixture", "otsuki2024-mixture+hq", "doublet2024", "c1c-lrp", "c3-lrp", "epsilon"),
    *("gradient-x-input", "integrated-gradients", "integrated-gradients-published", "guided-backprop"),
    *("guided-backprop-published", "deeplift", "lrp-epsilon", "lrp-epsilon-published", "lrp-mixture"),
    "scorecam-published",
)
INFINITE = ("epsilon",)
"""Methods whose maps overflow on EfficientNet-Lite0."""


@dataclass(frozen=True)
class Comparison:
    """Methods on one network: which images, how many of them, and how fine the curves are."""

    model: str
    folder: str
    methods: tuple[str, ...]
    samples: int
    step: int
    batch_size: int = 10


COMPARISONS = {
    "tiny20": Comparison("tiny20", "tiny20", MAIN, 200, 164),
    "tiny20-all": Comparison("tiny20", "tiny20", (*MAIN, "rise", "rise+hq", *OTHERS), 40, 164),
    "efficientnet-lite0": Comparison("efficientnet-lite0", "imagenet-sample", MAIN, 100, 2508, 4),
    "efficientnet-lite0-all": Comparison(
        "efficientnet-lite0", "imagenet-sample", (*MAIN, *(m for m in OTHERS if m not in INFINITE)), 16, 2508, 4
    ),
    "resnet50": Comparison("", "tiny20", MAIN, 100, 164),
}


def progress(done: int, total: int, seconds: float) -> None:
    print(f"{done} of {total} images, {seconds:.0f} s", flush=True)


def measured(
    name: str, model: str, data: Path, out: Path, devices: Sequence[str] = ()
) -> tuple[pandas.DataFrame, dict[str, dict[str, list[float]]]]:
    """The rows of a comparison and the mean curves of its methods; what is in ``out`` is not measured again."""
    asked, network = COMPARISONS[name], hw.load_model(model)
    settings = settings_of(asked)
    groups = {
        "masking": tuple(m for m in asked.methods if m.startswith(SLOW)),
        "others": tuple(m for m in asked.methods if not m.startswith(SLOW)),
    }
    tables, curves = list[pandas.DataFrame](), dict[str, dict[str, list[float]]]()
    for group, methods in groups.items():
        folder, some = out / name / group, replace(settings, methods=methods)
        tables.append(evaluate(network, data / asked.folder, some, folder, devices=devices, progress=progress))
        curves |= json.loads((folder / CURVES).read_text())
    table = pandas.concat(tables, ignore_index=True)
    ordered = [table[table["method"] == method] for method in asked.methods]
    return pandas.concat(ordered, ignore_index=True), {method: curves[method] for method in asked.methods}


def settings_of(asked: Comparison) -> Settings:
    if FEWER not in hw.list_methods():
        hw.register_method(FEWER, lambda model: Rise(model, masks=1000), "RISE with 1,000 masks")
    return Settings(asked.methods, asked.samples, step=asked.step, batch_size=asked.batch_size)


def fragment(name: str, model: str, data: Path, out: Path, devices: Sequence[str]) -> Path:
    """Measure a comparison, and write its table with what it was made by."""
    asked = COMPARISONS[name]
    settings = settings_of(asked)
    table, curves = measured(name, model, data, out, devices)
    summary = SummaryTable.of(table, [m for m in asked.methods if is_baseline(m) or m.startswith(FEWER)])
    command = f"python -m benchmarks.results {name} --data ../shared/data" + f" --model {model}" * (not asked.model)
    machine = f"torch {torch.__version__}, {platform.machine()}"
    images = table["image"].nunique()
    about = f"{images} images, seed {settings.seed}, {asked.step} pixels per step; {machine}. Made by `{command}`."
    write_bytes(TABLES / f"{name}.png", curves_figure(curves))
    return write_text(TABLES / f"{name}.md", f"{about}\n\n{summary.markdown()}\n\n{summary.tests()}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("name", choices=COMPARISONS)
    parser.add_argument("--data", type=Path, required=True, help="holds tiny20 and imagenet-sample")
    parser.add_argument("--model", help="a run of headwater train; for resnet50")
    parser.add_argument("--devices", default="", help="such as cpu,cpu; chunks are distributed over them")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "results")
    options = parser.parse_args()
    model = COMPARISONS[options.name].model or options.model
    if not model:
        parser.error(f"{options.name} needs --model")
    devices = options.devices.split(",") if options.devices else ()
    print(fragment(options.name, model, options.data, options.out, devices))


if __name__ == "__main__":
    main()
