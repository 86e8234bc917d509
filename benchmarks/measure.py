"""Throughput of insertion and deletion relative to the network's own, and that of a loop over thresholds.

    python -m benchmarks.measure [--arch resnet50] [--batch 16] [--rounds 5]

All of them evaluate the same number of images in turn, for several rounds; medians are reported.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn

import headwater as hw
from benchmarks.speed import network


def raw(model: nn.Module, x: Tensor, evaluations: int, batch: int) -> None:
    """Only the network, on full batches."""
    images = x[:1].expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(evaluations // batch):
            model(images).softmax(1)


def loop(model: nn.Module, x: Tensor, heatmap: Tensor, label: int, step: int) -> None:
    """One mask per threshold, made in numpy, one image at a time, as in the published code."""
    values, image = heatmap.numpy(), x.numpy()
    ordered = np.sort(values.ravel())[::-1]
    for k in range(0, len(ordered), step):
        threshold = ordered[min(k + step, len(ordered) - 1)]
        for keep in (values >= threshold, values < threshold):
            masked = torch.from_numpy((image * keep[None]).astype(np.float32))
            with torch.no_grad():
                model(masked[None]).softmax(1)[0, label].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=32, help="steps of a curve")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = network(arguments.arch, torch.channels_last)
    x, heatmap = torch.randn(1, 3, 224, 224), torch.rand(1, 224, 224)
    step = -(-224 * 224 // arguments.points)
    evaluations = 2 * arguments.points
    times: dict[str, list[float]] = {"raw forward": [], "insertion_deletion": [], "numpy loop": []}
    for _ in range(arguments.rounds + 1):
        for name, run in (
            ("raw forward", lambda: raw(model, x, evaluations, arguments.batch)),
            (
                "insertion_deletion",
                lambda: hw.insertion_deletion(model, x, heatmap, 0, "budget", step, batch_size=arguments.batch),
            ),
            ("numpy loop", lambda: loop(model, x[0], heatmap[0], 0, step)),
        ):
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    best = statistics.median(times["raw forward"][1:])
    print(f"{arguments.arch}, {evaluations} images of 224x224 in batches of {arguments.batch}, medians")
    for name, seconds in times.items():
        median = statistics.median(seconds[1:])
        print(f"{name:20} {evaluations / median:7.2f} images/s   {best / median:5.2f} of the raw forward throughput")


if __name__ == "__main__":
    main()
