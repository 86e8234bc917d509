"""What an image costs at each stage of a run, in seconds of one processor core, and what Ray adds to a chunk.

    python -m benchmarks.cluster [--arch resnet50] [--images 16] [--chunks 200]

One thread, processor time, so that other work on the machine hardly counts. The network has random weights, the images
are the photographs in examples/ at 500 x 375, as most of ImageNet's. What tables cost is measured on rows of tiny20.
Ray's part is wall-clock time: one worker that returns rows of the usual size and measures nothing.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
from PIL import Image

import headwater as hw
from headwater.cluster import Ray
from headwater.data.images import open_image
from headwater.data.labelled import LabelledImage
from headwater.evaluation import Settings
from headwater.evaluation.run import _collected
from headwater.evaluation.worker import Worker
from headwater.explanations import explain_files
from headwater.files import write_checked
from headwater.models import card_of, network_input

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@dataclass(frozen=True)
class Empty:
    """A worker that measures nothing."""

    rows_each: int
    size: int

    def rows(self, images: Sequence[Any], given_up: object) -> list[dict[str, Any]]:
        return [{"image": image.name, "map": b"." * self.size} for image in images for _ in range(self.rows_each)]


@dataclass(frozen=True)
class Named:
    name: str


def cost(work: Callable[[], object], images: int, rounds: int = 5) -> float:
    """Median processor time per image."""
    work()
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append((time.process_time() - began) / images)
    return statistics.median(times)


def stages(arch: str, count: int, folder: Path) -> dict[str, float]:
    """Seconds of a core per image of each stage."""
    paths = []
    for k in range(count):
        source = sorted(EXAMPLES.glob("*.jpg"))[k % 2]
        paths.append(folder / f"{k}.jpg")
        Image.open(source).convert("RGB").resize((500, 375)).save(paths[-1], quality=90)
    torch.manual_seed(0)
    model = hw.load_model(arch, weights="none").requires_grad_(False)
    photos = [open_image(path) for path in paths]
    x = network_input(model, photos)
    method = hw.load_method("otsuki2024", model)
    explained = [e for e in explain_files(paths[:4], model) if isinstance(e, hw.ImageExplanation)]

    def forward() -> None:
        with torch.no_grad():
            model(x)

    def draw() -> None:
        for e in explained:
            e.save(folder / "maps")

    return {
        "read, decode and prepare": cost(lambda: network_input(model, [open_image(p) for p in paths]), count),
        "forward pass": cost(forward, count),
        "map, otsuki2024": cost(lambda: method(x), count),
        "draw and write its files": cost(draw, len(explained)),
    }


def tables(folder: Path) -> dict[str, float]:
    """Seconds of a core per chunk of 16 images and 7 methods to write its rows and to put them into the table."""
    methods = ("otsuki2024", "otsuki2024-i", "otsuki2024-ii", "headwater", "lrp-epsilon", "gradient-x-input", "random")
    model = hw.load_model("tiny20")
    images = [LabelledImage(f"{k}.jpg", -1, sorted(EXAMPLES.glob("*.jpg"))[k % 2]) for k in range(16)]
    rows = Worker(model, card_of(model).preprocessing, Settings(methods, 16, labels="predicted")).rows(images)
    paths = [folder / f"{k}.parquet" for k in range(50)]

    def write(path: Path) -> None:
        stream = io.BytesIO()
        pandas.DataFrame(rows).assign(digest="0" * 29).to_parquet(stream, index=False)
        write_checked(path, stream.getvalue())

    return {
        "write the rows": cost(lambda: [write(path) for path in paths], len(paths)),
        f"put the table together, {paths[0].stat().st_size / 16e3:.1f} kB per image": cost(
            lambda: _collected(paths, methods), len(paths)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--chunks", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for stage, seconds in stages(arguments.arch, arguments.images, Path(folder)).items():
            print(f"{stage}: {1000 * seconds:.1f} ms of a core per image")
        for stage, seconds in tables(Path(folder)).items():
            print(f"{stage}: {1000 * seconds:.1f} ms of a core per chunk")
    chunks = [[Named(str(k))] * 16 for k in range(arguments.chunks)]
    ends = []
    for _ in Ray(1).run(lambda device: Empty(7, 1000), chunks, range(len(chunks))):
        ends.append(time.monotonic())
    each = (ends[-1] - ends[len(ends) // 2]) / (len(ends) - 1 - len(ends) // 2)
    print(f"Ray: {1000 * each:.1f} ms per chunk of 16 images and 7 methods; load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
