"""Fuzz Headwater, or replay one input.

python -m fuzz --count 10000 --seed 0 --workers 2 --out docs/results/fuzz.md
python -m fuzz --area images --case 123 --seed 0
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def main() -> int:
    """Run; status 1 if any case failed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MPLBACKEND", "agg")
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, help="file of the report; none is written if not given")
    parser.add_argument("--area", help="only inputs of this area")
    parser.add_argument("--case", type=int, help="one case of an area, with its traceback")
    options = parser.parse_args()

    from fuzz import report, runner

    if options.area is not None and options.area not in runner.areas():
        parser.error(f"no area is called {options.area!r}; there are {', '.join(runner.areas())}")
    if options.case is not None:
        if options.area is None:
            parser.error("--case needs --area: case numbers are counted per area")
        return _replay(runner.Case(options.area, options.case), options.seed)
    cases = (
        runner.plan(options.count)
        if options.area is None
        else [runner.Case(options.area, k) for k in range(options.count)]
    )
    began, results, kinds = time.monotonic(), list[report.Result](), Counter[str]()
    for case, outcome in runner.run(cases, options.seed, options.workers):
        results.append((case, outcome))
        kinds[outcome.kind] += 1
        if outcome.failed:
            _say(report.line(case, outcome, options.seed))
        if len(results) % max(1, len(cases) // 20) == 0:
            counts = ", ".join(f"{kind} {number}" for kind, number in kinds.items())
            _say(f"{len(results)} of {len(cases)}, {time.monotonic() - began:.0f} s: {counts}")
    seconds = time.monotonic() - began
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(report.markdown(results, options.seed, seconds, options.workers))
        _say(f"-> {options.out}")
    failed = sum(outcome.failed for _, outcome in results)
    _say(f"{failed} of {len(results)} failed")
    return min(failed, 1)


def _replay(case: object, seed: int) -> int:
    """Replay one case in this process, with its traceback and its notes."""
    import traceback

    from fuzz import runner
    from fuzz.case import draw_for
    from fuzz.options import prepare

    assert isinstance(case, runner.Case)
    runner.quiet()
    prepare()
    with tempfile.TemporaryDirectory(prefix="headwater-fuzz-") as folder:
        place = Path(folder, "case")
        place.mkdir()
        draw = draw_for(seed, case.area, case.number, place)
        try:
            runner.areas()[case.area](draw)
        except BaseException:
            _say(traceback.format_exc())
        _say("; ".join(draw.notes))
        outcome = runner.run_case(case, seed, Path(folder, "again"))
        _say(f"{outcome.kind}: {outcome.detail} ({outcome.maps} compared, {outcome.seconds:.2f} s)")
    return int(outcome.failed)


def _say(text: str) -> None:
    sys.stdout.buffer.write(f"{text}\n".encode("utf-8", "backslashreplace"))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
