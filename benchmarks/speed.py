"""Time and memory of one explanation, as ratios to a forward pass plus the gradient with respect to the image.

    python -m benchmarks.speed --arch resnet50 --batch 1 8
    python -m benchmarks.speed --arch resnet18 resnet50 resnet101 convnext_tiny efficientnet_b0 vit_b_16
        --batch 1 8 --dtype float32 bfloat16 --runs 3 --out docs/results/speed.md

Every contender runs in turn, for several rounds, in one process, so that a noisy machine affects all alike; several
runs are as many processes. The reference is the fastest of three: both memory formats and the compiled network, without
gradients of parameters. A ratio is that of the times of one round; its median and quartiles are those of all rounds of
all runs, and its range is that of the runs' medians. With --device cuda the clock stops when the GPU is done.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import headwater as hw
from headwater.files import write_text
from headwater.report.tabular import Cell, Table

Run = Callable[[Tensor], object]
REFERENCE = "forward + input gradient"
OURS = "headwater otsuki2024"
PEERS = {"zennit EpsilonPlusFlat": "zennit", "Captum LRP": "captum", "autoLRP z+": "autolrp"}
"""Contenders of other projects, and the packages that they need."""


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
        classes = torch.eye(1000).to(x)[torch.zeros(len(x), dtype=torch.long)]
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


@dataclass(frozen=True)
class Case:
    """What is measured at once: a network, images and a precision."""

    arch: str
    batch: int
    dtype: str
    device: str
    size: int = 224

    def network(self, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
        return network(self.arch, layout).to(self.device, getattr(torch, self.dtype))

    def images(self) -> Tensor:
        x = torch.randn(self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        return x.to(self.device, getattr(torch, self.dtype))

    def contenders(self) -> dict[str, Run]:
        model, last = self.network(), self.network(torch.channels_last)
        compiled = torch.compile(self.network(torch.channels_last))
        return {
            REFERENCE: gradient(model, torch.contiguous_format),
            f"{REFERENCE}, channels last": gradient(last, torch.channels_last),
            f"{REFERENCE}, compiled": gradient(compiled, torch.channels_last),
            "forward alone": forward(last),
            OURS: hw.LRP(model),
            f"{OURS}, compiled": hw.LRP(model, compile=True),
            "headwater headwater": hw.LRP(model, "headwater"),
            "headwater otsuki2024-published": hw.LRP(model, "otsuki2024-published"),
            **{name: make(self.network()) for name, make in peers().items()},
        }


def peers() -> dict[str, Callable[[nn.Module], Run]]:
    """Those of the other projects that are installed."""
    made = dict(zip(PEERS, (zennit, captum, autolrp), strict=True))
    return {name: make for name, make in made.items() if installed(PEERS[name])}


def installed(package: str) -> str:
    """Its version; empty if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def measure(case: Case, rounds: int) -> dict[str, list[float] | str]:
    """Seconds of each round by contender, or why it failed."""
    torch._dynamo.config.cache_size_limit = 64
    runs, x = case.contenders(), case.images()
    times: dict[str, list[float] | str] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            kept = times[name]
            if isinstance(kept, str):
                continue
            began = time.perf_counter()
            try:
                run(x)
                if case.device != "cpu":
                    torch.cuda.synchronize()
            except Exception as error:  # a failure is a row of the table
                times[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
                continue
            if number:  # the first round warms up, traces and compiles
                kept.append(time.perf_counter() - began)
    return times


def memory(case: Case, what: str) -> float:
    """Peak MiB of a fresh process for model and run, beyond what it had before loading the model."""
    return float(in_process(case, "--memory", what))


def in_process(case: Case, *more: str) -> str:
    """What a fresh process says of one case."""
    options = ("--arch", case.arch, "--batch", str(case.batch), "--dtype", case.dtype, "--device", case.device)
    command = [sys.executable, "-m", "benchmarks.speed", *options, "--size", str(case.size), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def peak_memory(case: Case, what: str) -> float:
    """As :func:`memory`, in this process."""
    toy = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten())  # imports the tracer and the kernels, in both processes
    hw.LRP(toy)(torch.rand(1, 3, 8, 8))
    on_cpu = case.device == "cpu"
    before = status("VmRSS") if on_cpu else 0.0
    last = torch.channels_last
    run = gradient(case.network(last), last) if what == "gradient" else hw.LRP(case.network(last))
    x = case.images()
    run(x[:1])
    if on_cpu:
        Path("/proc/self/clear_refs").write_text("5")
        run(x)
        return status("VmHWM") - before
    torch.cuda.reset_peak_memory_stats()
    run(x)
    return torch.cuda.max_memory_allocated() / 2**20


def status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def rows_of(case: Case, runs: Sequence[dict[str, list[float] | str]]) -> list[Sequence[Cell]]:
    """Each contender's row: milliseconds, images per second, ratio with its quartiles and the range of the runs."""
    first = runs[0]
    known = {name: [run[name] for run in runs] for name in first}
    medians = {
        name: statistics.median([t for times in found for t in times if isinstance(times, list)])
        for name, found in known.items()
        if all(isinstance(times, list) for times in found)
    }
    reference = min((name for name in medians if name.startswith(REFERENCE)), key=medians.__getitem__)
    about = (case.arch, case.batch, case.dtype)
    rows: list[Sequence[Cell]] = []
    for name, found in known.items():
        if name not in medians:
            reason = next(times for times in found if isinstance(times, str))
            rows.append((*about, name, f"failed: {reason}", None, None, None, None))
            continue
        by_run = [[a / b for a, b in zip(run[name], run[reference], strict=True)] for run in runs]
        ratios = [ratio for mine in by_run for ratio in mine]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        between = [statistics.median(mine) for mine in by_run]
        rows.append(
            (
                *about,
                name + " (reference)" * (name == reference),
                f"{1e3 * medians[name]:.0f}",
                f"{case.batch / medians[name]:.1f}",
                f"{middle:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{min(between):.2f} to {max(between):.2f}",
            )
        )
    return rows


def page(rows: Sequence[Sequence[Cell]], peaks: Sequence[Sequence[Cell]], about: str) -> str:
    columns = ("network", "batch", "dtype", "", "ms", "images/s", "ratio", "quartiles", "medians of runs")
    times = Table(columns, rows, align="lrllrrrrr").markdown()
    parts = ["# Results: speed and memory", (__doc__ or "").split("\n\n", 2)[2].strip(), about, times]
    if peaks:
        memory_columns = ("network", "batch", "dtype", "gradient, MiB", "headwater, MiB", "ratio")
        parts += ["Peak memory, weights included, each in a fresh process:"]
        parts += [Table(memory_columns, peaks, align="lrlrrr").markdown()]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="page to write")
    parser.add_argument("--memory", choices=("gradient", "lrp"), help=argparse.SUPPRESS)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    cases = [
        Case(arch, batch, dtype, options.device, options.size)
        for arch in options.arch
        for dtype in options.dtype
        for batch in options.batch
    ]
    if options.memory:
        print(peak_memory(cases[0], options.memory))
        return
    if options.once:
        print(json.dumps(measure(cases[0], options.rounds)))
        return
    versions = ", ".join(f"{name} {installed(name) or 'absent'}" for name in ("torch", "torchvision", *PEERS.values()))
    machine = torch.cuda.get_device_name() if options.device != "cpu" else f"{torch.get_num_threads()} threads"
    about = (
        f"{options.size} x {options.size}; {machine}, {platform.machine()}; {versions}; {time.strftime('%Y-%m-%d')}."
    )
    rows: list[Sequence[Cell]] = []
    peaks: list[Sequence[Cell]] = []
    for case in cases:
        runs = [json.loads(in_process(case, "--once", "--rounds", str(options.rounds))) for _ in range(options.runs)]
        rows += rows_of(case, runs)
        if Path("/proc/self/clear_refs").exists():
            base, ours = memory(case, "gradient"), memory(case, "lrp")
            peaks.append((case.arch, case.batch, case.dtype, f"{base:.0f}", f"{ours:.0f}", f"{ours / base:.2f}"))
        print(page(rows_of(case, runs), peaks[-1:], about), flush=True)
    if options.out:
        print(write_text(options.out, page(rows, peaks, about)))


if __name__ == "__main__":
    main()
