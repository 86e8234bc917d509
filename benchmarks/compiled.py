"""Time of a compiled explanation as a ratio to the plain one, and how long compiling takes, the second time too.

    python -m benchmarks.compiled [--arch resnet50] [--batch 1 8] [--rounds 9] [--out docs/results/compiled.md]

Both run in turn in one process, several rounds; medians are reported, with the largest difference of the maps. The
first call compiles for its number of images, and the first with another number for any, into a folder that begins
empty. Another process then does the same with what that folder holds.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import headwater as hw
from benchmarks.speed import ROOT, network, processor
from headwater.files import write_text
from headwater.report.tabular import Table


@dataclass(frozen=True)
class Measured:
    """Seconds for one number of images.

    Attributes:
        first: the first compiled call, with what it traces and compiles.
        plain: a plain call.
        compiled: a compiled one.
        off: largest difference of the maps, relative to the map's maximum.
    """

    first: float
    plain: float
    compiled: float
    off: float


def measure(arch: str, batches: Sequence[int], size: int, rounds: int) -> list[Measured]:
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
        found.append(Measured(times["compiled"][0], plain, compiled, off))
    return found


def in_process(arch: str, batches: Sequence[int], size: int, rounds: int, cache: str) -> list[Measured]:
    """As :func:`measure`, in a process of its own that keeps compiled code in a folder."""
    command = [sys.executable, "-m", "benchmarks.compiled", "--once", "--arch", arch, "--size", str(size)]
    command += ["--rounds", str(rounds), "--batch", *map(str, batches)]
    there = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(command, cwd=ROOT, env=there, stdout=subprocess.PIPE, text=True, check=True)
    return [Measured(**found) for found in json.loads(done.stdout.splitlines()[-1])]


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
        print(json.dumps([asdict(m) for m in measure(options.arch[0], options.batch, options.size, options.rounds)]))
        return
    rows = []
    for arch in options.arch:
        with tempfile.TemporaryDirectory() as cache:
            first = in_process(arch, options.batch, options.size, options.rounds, cache)
            second = in_process(arch, options.batch, options.size, 1, cache)
        for batch, one, other in zip(options.batch, first, second, strict=True):
            numbers = (f"{one.plain * 1e3:.0f}", f"{one.compiled * 1e3:.0f}", f"{one.compiled / one.plain:.2f}")
            rows.append((arch, batch, *numbers, f"{one.first:.0f}", f"{other.first:.0f}", f"{one.off:.1e}"))
    times = ("plain, ms", "compiled, ms", "ratio", "first call, s", "in another process, s")
    columns = ("network", "images", *times, "difference of the maps")
    about = f"{options.size} x {options.size}; {processor()}; torch {torch.__version__.split('+')[0]}; "
    table = Table(columns, rows, align="lrrrrrrr").markdown()
    what = (__doc__ or "").split("\n\n", 2)[2].strip()
    text = "\n\n".join(["# Results: compiled", what, about + time.strftime("%Y-%m-%d") + ".", table]) + "\n"
    print(text)
    if options.out:
        print(write_text(options.out, text))


if __name__ == "__main__":
    main()
