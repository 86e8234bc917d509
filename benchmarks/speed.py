"""Time and memory of one explanation, as ratios to a forward pass plus the gradient with respect to the image.

    python -m benchmarks.speed --arch resnet50 --batch 1 8
    python -m benchmarks.speed --arch resnet18 resnet50 resnet101 convnext_tiny efficientnet_b0 vit_b_16
        --dtype float32 bfloat16 --runs 3 --out docs/results/speed.md

Every contender runs in turn, for several rounds, in one process, so that a noisy machine affects all alike; several
runs are as many processes. The reference is the fastest of three: both memory formats and the compiled network, without
gradients of parameters. A ratio is that of the times of one round; its median and quartiles are those of all rounds of
all runs, and its range is that of the runs' medians. The commit is the version of this package that was measured. With
--device cuda the clock stops when the GPU is done.

What is measured is kept in runs/speed.json, and a case that is there is not measured again on the same machine with the
same versions, so that a long command can be interrupted; with --again it is. --before COMMIT measures an earlier
version beside this one; --without leaves contenders out; --profile says where the time goes.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import gc
import io
import json
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import headwater as hw
from headwater.composites import First
from headwater.engine.lrp import Recompute
from headwater.files import write_text
from headwater.report.tabular import Cell, Table
from headwater.rules import Epsilon, Flat

Run = Callable[[Tensor], object]
REFERENCE = "forward + input gradient"
OURS = "headwater otsuki2024"
ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "runs" / "speed.json"
RECOMPUTED: dict[str, Recompute] = {"lrp": False, "weights": "weights", "recompute": True}
"""``LRP(recompute=...)`` of each peak of memory."""
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


def epsilon_plus_flat() -> hw.Composite:
    """The rules of zennit's composite of this name, so that both do the same: no z+ at dense layers."""
    dense = (lambda place: place.kind == "linear", Epsilon(threshold=0, fallback=False))
    return hw.load_composite("otsuki2024").prepend((First(), Flat()), dense, name="epsilon plus flat", strict=False)


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


def earlier(commit: str) -> Callable[[nn.Module], Run]:
    """``LRP`` with its default composite as it was at a commit.

    In a package of another name, since Python has one module and torch one operation of a name.
    """
    archive = subprocess.run(["git", "archive", commit, "headwater"], cwd=ROOT, capture_output=True, check=True).stdout
    folder, name = Path(tempfile.mkdtemp()), f"headwater_{re.sub(r'[^0-9A-Za-z]', '_', commit)}"
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    for source in (folder / "headwater").rename(folder / name).rglob("*.py"):
        source.write_text(re.sub(r"\bheadwater\b", name, source.read_text()))
    atexit.register(shutil.rmtree, folder)
    sys.path.insert(0, str(folder))
    made: Callable[[nn.Module], Run] = import_module(name).LRP
    return made


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

    def contenders(self, before: str, without: Sequence[str]) -> dict[str, Callable[[], Run]]:
        """What makes each of them; those whose name contains a word of ``without`` are left out."""
        last, contiguous = torch.channels_last, torch.contiguous_format
        made: dict[str, Callable[[], Run]] = {
            REFERENCE: lambda: gradient(self.network(), contiguous),
            f"{REFERENCE}, channels last": lambda: gradient(self.network(last), last),
            f"{REFERENCE}, compiled": lambda: gradient(torch.compile(self.network(last)), last),
            "forward alone": lambda: forward(self.network(last)),
            OURS: lambda: hw.LRP(self.network()),
            f"{OURS}, compiled": lambda: hw.LRP(self.network(), compile=True),
            f"{OURS}, recompute weights": lambda: hw.LRP(self.network(), recompute="weights"),
            f"{OURS}, recompute": lambda: hw.LRP(self.network(), recompute=True),
            "headwater headwater": lambda: hw.LRP(self.network(), "headwater"),
            "headwater otsuki2024-published": lambda: hw.LRP(self.network(), "otsuki2024-published"),
            "headwater, zennit's rules": lambda: hw.LRP(self.network(), epsilon_plus_flat()),
        }
        if before:
            made[f"{OURS} at {before}"] = lambda: earlier(before)(self.network())
        for name, make in peers().items():
            made[name] = lambda make=make: make(self.network())  # type: ignore[misc]
        return {name: make for name, make in made.items() if not any(word in name for word in without)}


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


def measure(case: Case, rounds: int, before: str, without: Sequence[str]) -> dict[str, list[float] | str]:
    """Seconds of each round by contender, or why it failed."""
    torch._dynamo.config.cache_size_limit = 64
    x = case.images()
    runs = {name: make() for name, make in case.contenders(before, without).items()}
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


def profile(case: Case, calls: int) -> list[list[Cell]]:
    """Milliseconds of each operation of torch in a gradient and in an explanation, those of at least 1 % of either."""
    found: list[dict[str, tuple[float, int]]] = []
    for name in (f"{REFERENCE}, channels last", OURS):
        run, x = case.contenders("", ())[name](), case.images()
        for _ in range(2):
            run(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as told:
            for _ in range(calls):
                run(x)
        found.append({e.key: (e.self_cpu_time_total / 1e3 / calls, e.count // calls) for e in told.key_averages()})
    totals = [sum(ms for ms, _ in ours.values()) for ours in found]
    names = dict.fromkeys(name for ours in found for name in ours)
    shown = {name: [ours.get(name, (0.0, 0)) for ours in found] for name in names}
    large = {n: s for n, s in shown.items() if any(ms > total / 100 for (ms, _), total in zip(s, totals, strict=True))}
    rest = [sum(ms for name, (ms, _) in ours.items() if name not in large) for ours in found]
    about: list[Cell] = [case.arch, case.batch]
    rows = [
        [*about, f"`{name}`", *(cell for ms, count in s for cell in (f"{ms:.1f}", count))]
        for name, s in sorted(large.items(), key=lambda item: -item[1][1][0])
    ]
    rows.append([*about, "all others", f"{rest[0]:.1f}", None, f"{rest[1]:.1f}", None])
    rows.append([*about, "sum", f"{totals[0]:.1f}", None, f"{totals[1]:.1f}", None])
    return rows


def memory(case: Case, what: str) -> float:
    """Peak MiB of a fresh process for model and run, beyond what it had before loading the model."""
    return float(in_process(case, "--memory", what))


def in_process(case: Case, *more: str) -> str:
    """What a fresh process says of one case."""
    options = ("--arch", case.arch, "--batch", str(case.batch), "--dtype", case.dtype, "--device", case.device)
    command = [sys.executable, "-m", "benchmarks.speed", *options, "--size", str(case.size), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode} (-9: killed, for memory perhaps):\n{done.stderr}"
        )
    return done.stdout.splitlines()[-1]


def peak_memory(case: Case, what: str) -> float:
    """As :func:`memory`, in this process."""
    toy = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Flatten())  # imports the tracer and the kernels, in both processes
    hw.LRP(toy)(torch.rand(1, 3, 8, 8))
    on_cpu = case.device == "cpu"
    before = status("VmRSS") if on_cpu else 0.0
    last = torch.channels_last
    model = case.network(last)
    run: Run = gradient(model, last) if what == "gradient" else hw.LRP(model, recompute=RECOMPUTED[what])
    x = case.images()
    run(x)
    if on_cpu:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the first call has left behind
        Path("/proc/self/clear_refs").write_text("5")
        run(x)
        return status("VmHWM") - before
    torch.cuda.reset_peak_memory_stats()
    run(x)
    return torch.cuda.max_memory_allocated() / 2**20


def status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def rows_of(case: Case, runs: Sequence[dict[str, list[float] | str]], commit: str) -> list[Sequence[Cell]]:
    """Each contender's row: time, images per second, ratio with its quartiles and the range of the runs, commit."""
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
            rows.append((*about, name, f"failed: {reason}", None, None, None, None, None, commit))
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
                f"{len(runs)} x {len(by_run[0])}",
                commit,
            )
        )
    return rows


def page(kept: Mapping[str, Any]) -> str:
    """The tables of all cases that were measured."""
    rows: list[Sequence[Cell]] = []
    peaks: list[Sequence[Cell]] = []
    profiles: list[Sequence[Cell]] = []
    for key, found in kept["cases"].items():
        case = Case(**json.loads(key))
        rows += rows_of(case, found["runs"], found.get("commit", ""))
        profiles += found.get("profile", [])
        if base := found["peaks"].get("gradient"):
            others = [cell for p in RECOMPUTED for cell in of_base(found["peaks"].get(p), base)]
            peaks.append((case.arch, case.batch, case.dtype, f"{base:.0f}", *others))
    columns = ("network", "batch", "dtype", "", "ms", "images/s", "ratio", "quartiles", "medians of runs", "rounds")
    times = Table((*columns, "commit"), rows, align="lrllrrrrrrl").markdown()
    what = (__doc__ or "").split("\n\n", 2)[2].split("\n\n")[0].strip()
    parts = ["# Results: speed and memory", what, f"{kept['machine']}; {kept['date']}.", times]
    if peaks:
        sized = ("network", "batch", "dtype", "gradient, MiB", "LRP, MiB", "ratio")
        sized = (*sized, *(cell for value in ('"weights"', "True") for cell in (f"recompute={value}, MiB", "ratio")))
        parts += ["## Memory", "Peak, weights included, each in a fresh process."]
        parts += [Table(sized, peaks, align="lrlrrrrrrr").markdown()]
    if profiles:
        timed = ("network", "batch", "operation", "gradient, ms", "calls", "LRP, ms", "calls")
        parts += ["## Where the time goes"]
        parts += ["By torch's profiler, which adds to each call; operations of at least 1 % of either side."]
        parts += [Table(timed, profiles, align="lrlrrrr").markdown()]
    return "\n\n".join(parts) + "\n"


def of_base(mine: float | None, base: float) -> tuple[str, str]:
    if mine is None:  # measured before there was this option
        return "", ""
    return f"{mine:.0f}", f"{mine / base:.2f}"


def found_before(machine: str) -> dict[str, Any]:
    """What was measured on the same machine with the same versions."""
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    begun = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "cases": {}}
    return kept if kept.get("machine") == machine else begun


def processor() -> str:
    """Threads, the processor's name, as far as the system tells, and the instructions that torch uses."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    name = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
    return f"{torch.get_num_threads()} threads, {name}, {torch.backends.cpu.get_cpu_capability()}"


def commit() -> str:
    """What is measured, "-dirty" where files differ from it; empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="measure cases that are kept, too")
    parser.add_argument("--before", default="", help="commit whose LRP is measured too")
    parser.add_argument("--without", nargs="+", default=[], help="words; what has one in its name is left out")
    parser.add_argument("--profile", action="store_true", help="measure each operation, too")
    parser.add_argument("--out", type=Path, help="page to write, with all cases that are kept")
    parser.add_argument("--memory", choices=("gradient", *RECOMPUTED), help=argparse.SUPPRESS)
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
        timed = profile if options.profile else measure
        arguments = (options.rounds,) if options.profile else (options.rounds, options.before, options.without)
        print(json.dumps(timed(cases[0], *arguments)))
        return
    versions = ", ".join(f"{name} {installed(name) or 'absent'}" for name in ("torch", "torchvision", *PEERS.values()))
    machine = processor() if options.device == "cpu" else torch.cuda.get_device_name()
    kept = found_before(f"{options.size} x {options.size}; {machine}; {versions}")
    for case in cases:
        key = json.dumps(vars(case))
        if key in kept["cases"] and not options.again:
            print(f"{case.arch}, batch {case.batch}, {case.dtype}: kept from before; --again measures it again")
            continue
        once = ["--once", "--rounds", str(options.rounds), "--before", options.before]
        once += ["--without", *options.without] if options.without else []
        runs = [json.loads(in_process(case, *once)) for _ in range(options.runs)]
        found: dict[str, Any] = {"runs": runs, "peaks": {}, "commit": commit()}
        if Path("/proc/self/clear_refs").exists():
            found["peaks"] = {what: memory(case, what) for what in ("gradient", *RECOMPUTED)}
        if options.profile:
            found["profile"] = json.loads(in_process(case, "--once", "--profile", "--rounds", str(options.rounds)))
        kept["cases"][key] = found
        kept["date"] = time.strftime("%Y-%m-%d")
        write_text(KEPT, json.dumps(kept))
        print(page({**kept, "cases": {key: found}}), flush=True)
    if options.out:
        print(write_text(options.out, page(kept)))


if __name__ == "__main__":
    main()
