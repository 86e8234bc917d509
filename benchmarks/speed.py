"""Time and memory of one explanation, as ratios to a forward pass plus the gradient with respect to the image.

Every contender runs in turn, for several rounds, in one process, so that a noisy machine affects all alike; medians are
reported. The reference is the faster of the two memory formats, without gradients of parameters.

    python -m benchmarks.speed [--arch resnet50] [--batch 1 8] [--rounds 9]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import headwater as hw

Run = Callable[[Tensor], object]


def network(arch: str, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    """Random weights, realistic normalisation statistics, no gradients of parameters."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(arch, weights=None).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.to(memory_format=layout)


def gradient(model: nn.Module, layout: torch.memory_format) -> Run:
    def run(x: Tensor) -> Tensor:
        x = x.clone(memory_format=layout).requires_grad_()
        model(x).amax(1).sum().backward()
        return x.grad

    return run


def forward(model: nn.Module) -> Run:
    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x.contiguous(memory_format=torch.channels_last))

    return run


def zennit(model: nn.Module) -> Run:
    composites, attribution, torchvision_ = (
        import_module(f"zennit.{name}") for name in ("composites", "attribution", "torchvision")
    )
    composite = composites.EpsilonPlusFlat(canonizers=[torchvision_.ResNetCanonizer()])

    def run(x: Tensor) -> object:
        classes = torch.eye(1000)[torch.zeros(len(x), dtype=torch.long)]
        with attribution.Gradient(model=model, composite=composite) as attributor:
            return attributor(x, classes)

    return run


def captum(model: nn.Module) -> Run:
    attr = import_module("captum.attr")

    def run(x: Tensor) -> object:
        return attr.LRP(model).attribute(x, target=0)

    return run


def autolrp(model: nn.Module) -> Run:
    package = import_module("autolrp")
    config = package.LRPConfig(rule={**package.BASE, "ConvolutionBackward": "zplus"})

    def run(x: Tensor) -> object:
        wrapped = package.tensor(x)
        model(wrapped)[:, 0].sum().lrp(config=config)
        return wrapped.relevance

    return run


def contenders(arch: str) -> dict[str, Run]:
    model = network(arch)
    last = network(arch, torch.channels_last)
    runs: dict[str, Run] = {
        "forward + input gradient": gradient(model, torch.contiguous_format),
        "forward + input gradient, channels last": gradient(last, torch.channels_last),
        "forward alone": forward(last),
        "headwater otsuki2024": hw.LRP(model),
        "headwater otsuki2024-ii": hw.LRP(model, "otsuki2024-ii"),
        "headwater otsuki2024-published": hw.LRP(model, "otsuki2024-published"),
    }
    for name, make in (("zennit EpsilonPlusFlat", zennit), ("Captum LRP", captum), ("autoLRP z+", autolrp)):
        try:
            runs[name] = make(network(arch))
        except ImportError as error:
            print(f"  ({name}: {error})")
    return runs


def measure(runs: dict[str, Run], x: Tensor, rounds: int) -> dict[str, float]:
    """Median seconds per contender."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in list(runs.items()):
            start = time.perf_counter()
            try:
                run(x)
            except Exception as error:  # a failure of another project is reported
                print(f"  ({name} failed: {type(error).__name__}: {str(error)[:100]})")
                del runs[name], times[name]
                continue
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def memory(arch: str, batch: int, what: str) -> float:
    """Peak MiB that a fresh process takes for model and run, beyond what it had before loading the model."""
    done = subprocess.run(
        [sys.executable, __file__, "--arch", arch, "--batch", str(batch), "--memory", what],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def report_memory(arch: str, batch: int, what: str) -> None:
    toy = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten())  # imports the tracer and the kernels, in both processes
    hw.LRP(toy)(torch.rand(1, 3, 8, 8))
    before = status("VmRSS")
    last = torch.channels_last
    run = gradient(network(arch, last), last) if what == "gradient" else hw.LRP(network(arch, last))
    x = torch.rand(batch, 3, 224, 224)
    run(x[:1])
    Path("/proc/self/clear_refs").write_text("5")
    run(x)
    print(status("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", choices=["gradient", "lrp"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        report_memory(options.arch, options.batch[0], options.memory)
        return
    print(
        f"{options.arch}, 224x224, torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    )
    runs = contenders(options.arch)
    for batch in options.batch:
        x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        seconds = measure(runs, x, options.rounds)
        unit = min(value for name, value in seconds.items() if name.startswith("forward + input"))
        print(f"\nbatch {batch}{'':32}   ms   ratio")
        for name, value in seconds.items():
            print(f"  {name:<40} {value * 1e3:6.0f}  {value / unit:5.2f}")
        if Path("/proc/self/clear_refs").exists():
            base, ours = memory(options.arch, batch, "gradient"), memory(options.arch, batch, "lrp")
            print(f"  peak memory, MiB: gradient {base:.0f}, headwater {ours:.0f}, ratio {ours / base:.2f}")


if __name__ == "__main__":
    main()
