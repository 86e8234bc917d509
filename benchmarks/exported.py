"""Architectures exported to ONNX and compared with ``LRP``: the file's size, the differences, or the reason why not.

    python -m benchmarks.exported [--networks resnet18 vit_b_16 ...]  # writes docs/results/export.md

Weights are random, as in ``benchmarks.architectures``; images are noise of the first size there.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch

import headwater as hw
from benchmarks.architectures import ARCHITECTURES, ROOT, Architecture, build
from headwater.engine.seed import Start
from headwater.files import write_text
from headwater.report.tabular import Cell, Table


def measure(architecture: Architecture) -> list[Cell]:
    """One row of the table."""
    size = architecture.sizes[0]
    model = build(architecture, size)
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    start: Start = "logit" if architecture.name.endswith("regression") else "probability"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explainer.onnx"
        try:
            done = hw.export(model, "otsuki2024", path, x, start=start, output=architecture.output)
        except hw.HeadwaterError as error:
            return [f"`{architecture.name}`", f"not exported: {re.split('[;.] ', str(error))[0]}", *[None] * 5]
        found, seconds = done.agreement, time.perf_counter() - began
        weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        sizes = [f"{path.stat().st_size / 1e6:.1f}", f"{weights / 1e6:.1f}"]
    batch = "any" if done.about["input"]["image"][0] == "N" else str(done.about["input"]["image"][0])
    return [f"`{architecture.name}`", batch, f"{found.map:.1e}", f"{found.conservation:.1e}", *sizes, f"{seconds:.0f}"]


def page(rows: Sequence[Sequence[Cell]]) -> str:
    columns = ("network", "batch", "map", "conservation", "file, MB", "weights, MB", "export, s")
    return f"""# Exported architectures

{len(rows)} of the {len(ARCHITECTURES)} networks of the first table of [Supported architectures](../architectures.md),
exported to ONNX with `otsuki2024`. Map and conservation: the largest difference between ONNX Runtime
{onnxruntime.__version__} and `LRP`, relative to the map's maximum and to the seed, over two images and one. torch
{torch.__version__.split("+")[0]}. Written by `python -m benchmarks.exported`.

{Table(columns, rows, align="llrrrrr").markdown()}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", nargs="+", default=[a.name for a in ARCHITECTURES])
    arguments = parser.parse_args()
    known = {architecture.name: architecture for architecture in ARCHITECTURES}
    rows = []
    for name in arguments.networks:
        rows.append(measure(known[name]))
        print(*rows[-1], flush=True)
        write_text(ROOT / "docs" / "results" / "export.md", page(rows))


if __name__ == "__main__":
    main()
