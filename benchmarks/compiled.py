"""Time of a compiled explanation as a ratio to the plain one, and how long compiling takes.

    python -m benchmarks.compiled [--arch resnet50] [--batch 1 8] [--rounds 9]

Both run in turn in one process, several rounds; medians are reported, with the largest difference of the maps.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import headwater as hw
from benchmarks.speed import network
from headwater.report.tabular import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    model = hw.load_model("tiny20") if arguments.arch == "tiny20" else network(arguments.arch)
    runs = {"plain": hw.LRP(model), "compiled": hw.LRP(model, compile=True)}
    rows = []
    for batch in arguments.batch:
        x = torch.randn(batch, 3, arguments.size, arguments.size, generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {name: [] for name in runs}
        maps = {}
        for _ in range(arguments.rounds + 1):
            for name, run in runs.items():
                began = time.perf_counter()
                maps[name] = run(x).heatmap
                times[name].append(time.perf_counter() - began)
        plain, compiled = (statistics.median(times[name][1:]) for name in runs)
        off = ((maps["compiled"] - maps["plain"]).abs().max() / maps["plain"].abs().max()).item()
        numbers = (f"{plain * 1e3:.0f}", f"{compiled * 1e3:.0f}", f"{compiled / plain:.2f}")
        rows.append((batch, *numbers, f"{times['compiled'][0]:.0f}", f"{off:.1e}"))
    print(f"{arguments.arch}, {arguments.size} x {arguments.size}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads")
    columns = ("batch", "plain, ms", "compiled, ms", "ratio", "first call, s", "difference of the maps")
    print(Table(columns, rows).markdown())


if __name__ == "__main__":
    main()
