"""Architectures exported to ONNX and compared with ``LRP``: the file's size, the differences, or the reason why not.

    python -m benchmarks.exported [--networks resnet18 vit_b_16 ...] [--minutes 25]

Writes docs/results/export.md after each network; those that are in runs/exported.json are not exported again, and none
is begun after so many minutes. Weights are random, as in ``benchmarks.architectures``; images are noise of the first
size there.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import onnxruntime
import torch

import headwater as hw
from benchmarks.architectures import ARCHITECTURES, ROOT, Architecture, build
from headwater.engine.seed import Start
from headwater.files import write_text
from headwater.report.tabular import Cell, Table

KEPT = ROOT / "runs" / "exported.json"
VERSIONS = {"torch": torch.__version__.split("+")[0], "onnxruntime": onnxruntime.__version__}
COLUMNS = ("network", "batch", "map", "conservation", "file, MB", "weights, MB", "export, s")

Row = list[Cell]


def measure(architecture: Architecture) -> Row:
    """What follows the network's name in its row of the table."""
    size = architecture.sizes[0]
    model = build(architecture, size)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    start: Start = "logit" if architecture.name.endswith("regression") else "probability"
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explainer.onnx"
        try:
            done = hw.export(model, "otsuki2024", path, x, start=start, output=architecture.output)
        except hw.HeadwaterError as error:
            reason = f"not exported: {re.split('[;.] ', str(error))[0]}"
            if "other results" in reason:  # by rounding, or wrong?
                model, x = model.double(), x.double()
                archive = path.with_suffix(".pt2")
                exact = hw.export(model, "otsuki2024", archive, x, start=start, output=architecture.output).agreement
                reason += f"; its archive in float64: map {exact.map:.1e}, logits {exact.logits:.1e}"
            return [reason, *[None] * 5]
        found, seconds = done.agreement, time.process_time() - began
        weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        sizes = [f"{path.stat().st_size / 1e6:.1f}", f"{weights / 1e6:.1f}"]
    batch = "any" if done.about["input"]["image"][0] == "N" else str(done.about["input"]["image"][0])
    return [batch, f"{found.map:.1e}", f"{found.conservation:.1e}", *sizes, f"{seconds:.0f}"]


def kept() -> dict[str, Row]:
    """What was measured before with the same versions, by the network's name."""
    if not KEPT.is_file():
        return {}
    before = json.loads(KEPT.read_text())
    rows: dict[str, Row] = before["rows"]
    return rows if before["versions"] == VERSIONS else {}


def page(rows: Mapping[str, Row]) -> str:
    """The page with the table of all architectures; those without a row were not tried."""
    exported = sum(row[1] is not None for row in rows.values())
    cells: list[Row] = [[f"`{a.name}`", *rows.get(a.name, ["not tried", *[None] * 5])] for a in ARCHITECTURES]
    return f"""# Exported architectures

The {len(ARCHITECTURES)} networks of the first table of [Supported architectures](../architectures.md), exported to ONNX
with `otsuki2024`: {exported} exported, {len(rows) - exported} not, {len(ARCHITECTURES) - len(rows)} not tried. Map and
conservation: the largest difference between ONNX Runtime {VERSIONS["onnxruntime"]} and `LRP`, relative to the map's
maximum and to the seed, over two images and one. Export: processor time, with the comparison. Torch
{VERSIONS["torch"]}. Written by `python -m benchmarks.exported`.

{Table(COLUMNS, cells, align="llrrrrr").markdown()}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", nargs="+", default=[a.name for a in ARCHITECTURES])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of processor time")
    arguments = parser.parse_args()
    known = {architecture.name: architecture for architecture in ARCHITECTURES}
    rows = kept()
    for name in arguments.networks:
        if name in rows or time.process_time() > 60 * arguments.minutes:
            continue
        rows[name] = measure(known[name])
        print(name, *rows[name], flush=True)
        write_text(KEPT, json.dumps({"versions": VERSIONS, "rows": rows}, indent=1))
        write_text(ROOT / "docs" / "results" / "export.md", page(rows))


if __name__ == "__main__":
    main()
