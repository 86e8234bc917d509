"""Throughput of insertion and deletion, RISE and Score-CAM relative to the network's own, and that of a loop.

    python -m benchmarks.measure [--arch resnet50] [--size 224] [--batch 16] [--rounds 5]
    python -m benchmarks.measure --arch tiny20 resnet18 --size 64 --batch 32 --images 2

All of them evaluate in turn, for several rounds, and each is set against the forward passes before it in its round;
medians and quartiles are reported.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import headwater as hw
from benchmarks.speed import network
from headwater.methods.rise import Rise
from headwater.methods.score_cam import ScoreCAM


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


def measure(arch: str, arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = hw.load_model("tiny20") if arch == "tiny20" else network(arch, torch.channels_last)
    model = model.requires_grad_(False).to(memory_format=torch.channels_last)
    size, batch, count = arguments.size, arguments.batch, arguments.images
    x, heatmap = torch.randn(count, 3, size, size), torch.rand(count, size, size)
    points, step = arguments.points, -(-size * size // arguments.points)
    points = -(-size * size // step)
    masks = batch * -(-2 * points // batch)
    rise, cam = Rise(model, masks, batch_size=batch), Counting(model, batch)
    cam(x)
    contenders: dict[str, tuple[int, Callable[[], object]]] = {
        "insertion_deletion": (
            count * 2 * points,
            lambda: hw.insertion_deletion(model, x, heatmap, 0, "budget", step, batch_size=batch),
        ),
        "rise": (count * masks, lambda: rise(x)),
        "scorecam": (cam.evaluated, lambda: cam(x)),
        "numpy loop": (2 * points, lambda: loop(model, x[0], heatmap[0], 0, step)),
    }
    shares: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds + 1):
        for name, (evaluations, run) in contenders.items():
            whole = batch * -(-evaluations // batch)
            began = time.perf_counter()
            raw(model, x, whole, batch)
            between = time.perf_counter()
            run()
            shares[name].append((between - began) / whole * evaluations / (time.perf_counter() - between))
    print(f"{arch}, {count} images of {size}x{size}, batches of {batch}: part of the raw forward throughput")
    for name, (evaluations, _) in contenders.items():
        low, middle, high = statistics.quantiles(shares[name][1:], n=4)
        print(f"{name:20} {evaluations:6} images   {middle:5.2f} ({low:.2f} to {high:.2f})")


class Counting(ScoreCAM):
    """Score-CAM that tells how many images it evaluated: one for each channel that varies."""

    evaluated = 0

    def _map(self, x: Tensor, features: Tensor, varying: Tensor, scores: Tensor) -> Tensor:
        self.evaluated = int(varying.sum())
        return super()._map(x, features, varying, scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--arch", nargs="+", default=["resnet50"])
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--points", type=int, default=32, help="steps of a curve")
    arguments = parser.parse_args()
    for arch in arguments.arch:
        measure(arch, arguments)


if __name__ == "__main__":
    main()
