"""Conservation, time and memory of an explanation in float32, bfloat16 and float16, on the CPU.

    python -m benchmarks.half_precision --archs resnet18,tiny20 --rounds 3 --out docs/results/half-precision.md

Each precision is measured in a process of its own: the error at the worst cut, the median time of a call beside that of
a forward pass, and the most memory that the call takes beyond the loaded model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import headwater as hw
from benchmarks.speed import network
from headwater.files import write_text
from headwater.report.tabular import Table

PRECISIONS = ("float32", "bfloat16", "float16")


def memory_of(run: Callable[[], object]) -> float:
    """The most MiB that a run takes beyond what the process has before it."""
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, of tracing, is forgotten
    before = re.findall(r"VmRSS:\s+(\d+) kB", status.read_text())[0]
    run()
    return (int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) - int(before)) / 1024


def median(run: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(arch: str, precision: str, batch: int, rounds: int) -> dict[str, float]:
    """One precision of one network in this process."""
    dtype = getattr(torch, precision)
    model: nn.Module = hw.load_model("tiny20") if arch == "tiny20" else network(arch)
    model = model.to(dtype).eval().requires_grad_(False)
    side = 64 if arch == "tiny20" else 224
    x = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(dtype)
    lrp = hw.LRP(model)
    lrp.plan(x)
    memory = memory_of(lambda: lrp(x))
    e = lrp(x, checkpoints="cuts")
    assert e.conservation is not None
    errors = [e.conservation.error, *e.conservation.checkpoint_errors.values()]
    image = x.contiguous(memory_format=torch.channels_last)  # as the explanation runs it
    with torch.no_grad():
        forward = median(lambda: model(image), rounds)
    return {
        "error": max(error.max().item() for error in errors),
        "explanation": median(lambda: lrp(x), rounds),
        "forward": forward,
        "memory": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--archs", default="resnet18,tiny20")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Markdown file")
    parser.add_argument("--only", default="", help="precision to measure in this process, printed as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.archs, arguments.only, arguments.batch, arguments.rounds)))
        return
    options = ["--batch", str(arguments.batch), "--rounds", str(arguments.rounds)]
    rows = []
    for arch in arguments.archs.split(","):
        for precision in PRECISIONS:
            command = [sys.executable, "-m", "benchmarks.half_precision", "--archs", arch, "--only", precision]
            done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            forward, whole = found["forward"], found["explanation"]
            times = [f"{forward * 1e3:.0f} ms", f"{whole * 1e3:.0f} ms", f"{whole / forward:.1f}"]
            rows.append([f"`{arch}`", precision, f"{found['error']:.1e}", *times, f"{found['memory']:.0f} MiB"])
            print(rows[-1], flush=True)
    columns = ("network", "precision", "worst error at a cut", "forward", "explanation", "ratio", "peak memory")
    run = f"--archs {arguments.archs} --batch {arguments.batch} --rounds {arguments.rounds}"
    lines = (
        "# Results: half precision",
        "",
        f"`otsuki2024`, batch {arguments.batch}, {torch.get_num_threads()} CPU thread(s), "
        f"torch {torch.__version__.split('+')[0]}, medians of {arguments.rounds}; load of the machine: "
        f"{os.getloadavg()[0]:.0f} on {os.cpu_count()} cores.",
        "The network runs in the precision given and its values are kept in it; relevance and all that it is divided",
        "by are float32. Memory is what a call takes beyond the loaded model and its plan. ResNet-18 has random",
        "weights and images of 224 x 224. Made by",
        "",
        "```",
        f"python -m benchmarks.half_precision {run} --out docs/results/half-precision.md",
        "```",
        "",
        Table(columns, rows, align="ll" + "r" * 5).markdown(),
        "",
    )
    text = "\n".join(lines)
    if arguments.out is not None:
        write_text(arguments.out, text)
    print(text)


if __name__ == "__main__":
    main()
