"""Time of a compiled explanation as a ratio to the plain one, and how long compiling takes, the second time too.

    python -m benchmarks.compiled [--arch resnet50] [--batch 1 8] [--rounds 9] [--out docs/results/compiled.md]

Both run in turn in one process, several rounds; medians are reported, with the largest difference of the maps. The
first call of a number of images compiles, into a folder that begins empty. Another process then does the same with what
that folder holds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import headwater as hw
from benchmarks.speed import network, processor
from headwater.files import write_text
from headwater.report.tabular import Table


def measure(arch: str, batches: Sequence[int], size: int, rounds: int) -> list[tuple[float, float, float, float]]:
    """For each number of images: seconds of the first compiled call, of a plain and a compiled one, and how far off."""
    model = hw.load_model("tiny20") if arch == "tiny20" else network(arch)
    runs = {"plain": hw.LRP(model), "compiled": hw.LRP(model, compile=True)}
    found = []
    for batch in batches:
        x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {name: [] for name in runs}
        maps = {}
        for _ in range(rounds + 1):
            for name, run in runs.items():
                began = time.perf_counter()
                maps[name] = run(x).heatmap
                times[name].append(time.perf_counter() - began)
        plain, compiled = (statistics.median(times[name][1:]) for name in runs)
        off = ((maps["compiled"] - maps["plain"]).abs().max() / maps["plain"].abs().max()).item()
        found.append((times["compiled"][0], plain, compiled, off))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="page to write")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(measure(options.arch[0], options.batch, options.size, options.rounds)))
        return
    rows = []
    for arch in options.arch:
        command = [sys.executable, "-m", "benchmarks.compiled", "--once", "--arch", arch, "--size", str(options.size)]
        command += ["--rounds", str(options.rounds), "--batch", *map(str, options.batch)]
        with tempfile.TemporaryDirectory() as cache:
            there = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
            told = [subprocess.run(command, env=there, capture_output=True, text=True, check=True) for _ in range(2)]
        first, second = (json.loads(done.stdout.splitlines()[-1]) for done in told)
        for batch, (compiling, plain, compiled, off), (again, *_) in zip(options.batch, first, second, strict=True):
            numbers = (f"{plain * 1e3:.0f}", f"{compiled * 1e3:.0f}", f"{compiled / plain:.2f}")
            rows.append((arch, batch, *numbers, f"{compiling:.0f}", f"{again:.0f}", f"{off:.1e}"))
    columns = (
        "network",
        "images",
        "plain, ms",
        "compiled, ms",
        "ratio",
        "first call, s",
        "in another process, s",
        "map",
    )
    about = f"{options.size} x {options.size}; {processor()}; torch {torch.__version__.split('+')[0]}; "
    table = Table((*columns, "difference of the maps"), rows, align="lrrrrrrr").markdown()
    what = (__doc__ or "").split("\n\n", 2)[2].strip()
    text = "\n\n".join(["# Results: compiled", what, about + time.strftime("%Y-%m-%d") + ".", table]) + "\n"
    print(text)
    if options.out:
        print(write_text(options.out, text))


if __name__ == "__main__":
    main()
