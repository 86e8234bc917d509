"""Share of an explanation's time that is spent on checking whether the network has changed.

The checks of an unchanged network (fingerprint; weights, with the checksum of all bytes) and a whole explanation are
run in turn, for several rounds, in one process; medians are reported.

    python -m benchmarks.noticing [--arch resnet50] [--batch 1] [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import headwater as hw
from benchmarks.speed import network
from headwater.engine.guards.fingerprint import Fingerprint
from headwater.engine.trace import trace
from headwater.engine.weights import WeightStore


def shares(arch: str, batch: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each check and of an explanation, which includes the checks."""
    model = network(arch)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    graph = trace(model, x)
    store = WeightStore(model, [name for operation in graph.operations for name in operation.weights])
    fingerprint, lrp = Fingerprint(model), hw.LRP(model)
    times: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, run in (
            ("fingerprint", lambda: fingerprint.holds(model)),
            ("weights", store.refresh),
            ("explanation", lambda: lrp(x)),
        ):
            start = time.perf_counter()
            run()
            if number:  # the first round warms up
                times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    result = shares(options.arch, options.batch, options.rounds)
    threads = torch.get_num_threads()
    print(f"{options.arch}, batch {options.batch}, 224x224, torch {torch.__version__}, {threads} threads")
    for name, value in result.items():
        print(f"  {name:<12} {value:7.1f} ms   {100 * value / result['explanation']:6.2f} %")
    print(f"  checks alone {100 * (result['fingerprint'] + result['weights']) / result['explanation']:.2f} %")


if __name__ == "__main__":
    main()
