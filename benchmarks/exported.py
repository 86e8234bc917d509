"""Architectures exported to ONNX and compared with ``LRP``: the file's size, the differences, or the reason why not.

    python -m benchmarks.exported [--networks resnet18 vit_b_16 ...] [--minutes 25]
    python -m benchmarks.exported --image examples/tabby.jpg

The first writes docs/results/export.md after each network; those that are in runs/exported.json are not exported
again, and none is begun after so many minutes. Weights are random, as in ``benchmarks.architectures``; images are noise
of the first size there. The second draws the map of an exported network beside that of ``LRP``:
docs/images/exported.png.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import headwater as hw
from benchmarks.architectures import ARCHITECTURES, ROOT, Architecture, build
from headwater.data.images import open_image
from headwater.data.preprocessing import seen
from headwater.deployment import run_exported
from headwater.engine.seed import Start
from headwater.files import write_bytes, write_text
from headwater.models import card_of, network_input
from headwater.report.images import as_png, overlay
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


def draw(photo: Path) -> Path:
    """A photograph under the map of LRP and under that of the exported graph, and how far they are apart."""
    model = hw.load_model("efficientnet-lite0")
    prepare = card_of(model).preprocessing
    x = network_input(model, [open_image(photo)], prepare)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explainer.onnx"
        hw.export(model, "otsuki2024", path, x)
        found = run_exported(path, x.numpy())
    e = hw.LRP(model)(x)
    ours, exported = e.heatmap[0].numpy(), found["map"][0]
    apart = (exported - ours) / np.abs(ours).max()
    image, limit = seen(x[0], prepare), float(np.abs(apart).max())
    canvas = Figure(figsize=(9, 2.7), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(1, 4)
    titles = (
        "what the network saw",
        f"LRP: sum {ours.sum(dtype=np.float64):.6f}",
        f"ONNX Runtime: sum {exported.sum(dtype=np.float64):.6f}",
        f"difference, at most {limit:.0e} of the map's largest",
    )
    panels = (image, overlay(image, ours), overlay(image, exported))
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=7)
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        axis.imshow(np.asarray(panel))
    shown = axes[3].imshow(apart, cmap="RdBu_r", vmin=-limit, vmax=limit)
    canvas.colorbar(shown, ax=axes[3], fraction=0.046).ax.tick_params(labelsize=6)
    return write_bytes(ROOT / "docs" / "images" / "exported.png", as_png(canvas))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--networks", nargs="+", default=[a.name for a in ARCHITECTURES])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of processor time")
    parser.add_argument("--image", type=Path, help="draw the maps of this photograph instead")
    arguments = parser.parse_args()
    if arguments.image:
        print(draw(arguments.image))
        return
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
