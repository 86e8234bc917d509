"""The report of a fuzzing run, as a page of the documentation."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Sequence

import matplotlib
import numpy as np
import PIL
import torch
import torchvision

import headwater as hw
from fuzz.case import KINDS, Outcome
from fuzz.runner import Case
from headwater.report.tabular import Table

Result = tuple[Case, Outcome]


def command(case: Case, seed: int) -> str:
    """The command that replays a case."""
    return f"python -m fuzz --area {case.area} --case {case.number} --seed {seed}"


def line(case: Case, outcome: Outcome, seed: int) -> str:
    """A failure and the command that replays it."""
    return f"{outcome.kind}: {outcome.detail} [{outcome.what}]\n    {command(case, seed)}"


def markdown(results: Sequence[Result], seed: int, seconds: float, workers: int) -> str:
    """The page: outcomes per area, what was compared, every failure, versions and machine."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    maps: Counter[str] = Counter()
    for case, outcome in results:
        counts[case.area][outcome.kind] += 1
        maps[case.area] += outcome.maps
    failures = sorted((r for r in results if r[1].failed), key=lambda r: (r[0].area, r[0].number))
    total: Counter[str] = sum(counts.values(), Counter())
    rows = [(area, sum(of.values()), *(of[kind] for kind in KINDS), maps[area]) for area, of in counts.items()]
    rows.append(("**all**", len(results), *(total[kind] for kind in KINDS), sum(maps.values())))
    versions = {
        "headwater": hw.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "Pillow": PIL.__version__,
        "matplotlib": matplotlib.__version__,
        "Python": platform.python_version(),
    }
    return "\n".join(
        [
            "# Fuzzing",
            "",
            "Written by `make fuzz`. Random and broken inputs, each of which must give a correct map or table (`ok`)",
            "or one clear error message (`refused`). `wrong` is a result that differs from a fresh explanation or from",
            "the fuzzer's own computation, a file that was lost, or a message of several lines.",
            "",
            f"{len(results):,} inputs, seed {seed}; {sum(maps.values()):,} maps, measures and rows compared; "
            f"{len(failures)} failures; {seconds / 60:.1f} minutes with {workers} processes.",
            "",
            Table(("inputs", "number", *KINDS, "compared"), rows).markdown(),
            "",
            Table(("inputs", "what is made, and what is compared"), list(_WHAT.items()), align="ll").markdown(),
            "",
            "## Failures",
            "",
            *(
                [f"- `{command(c, seed)}`: {o.kind}, {_escaped(o.detail)} ({_escaped(o.what)})" for c, o in failures]
                or ["None."]
            ),
            "",
            "## Versions and machine",
            "",
            f"{', '.join(f'{name} {version}' for name, version in versions.items())}; {platform.system()} "
            f"{platform.machine()}, torch's kernels for {torch.backends.cpu.get_cpu_capability()}.",
            "",
        ]
    )


_WHAT = {
    "images": (
        "every mode and format, 1 x 1 to 1 x 1200, orientations, transparency, frames, floating point, damage; pixels "
        "with the fuzzer's own conversion, maps and saved files with a fresh explanation"
    ),
    "checkpoints": (
        "state dicts with other keys, shapes, dtypes and layouts, pickles with code, damaged files, cards of runs; the "
        "network's tensors with the file's"
    ),
    "tables": (
        "five layouts of data sets, tables of labels, run folders damaged before they are resumed; labels with what "
        "was written, tables with those of a fresh run"
    ),
    "options": (
        "every option of every command, read off the commands, with values of all kinds; status, streams, files, and "
        "maps with a fresh explanation"
    ),
    "networks": (
        "random networks and composites, then changes between calls; maps with a fresh explanation bit for bit, logits "
        "with the network's, conservation, images alone and in a batch, the network before and after"
    ),
    "measures": "quantization, regions, curves, localisation; values with plain loops",
}


def _escaped(text: str) -> str:
    plain = "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode())
    return plain[:300].replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
