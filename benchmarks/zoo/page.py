"""The rows as a page of the documentation."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from headwater.report.tabular import Cell, Table

from .configurations import BATCH, TASKS, Entry
from .measuring import LIMIT, METHODS, Row

IMAGES = ("image classification", "semantic segmentation")


@dataclass(frozen=True)
class Count:
    """How many networks there are and how many of them conserve, by each of ``METHODS``."""

    networks: int
    conserved: Mapping[str, int]

    def cells(self) -> list[Cell]:
        shares = (f"{self.conserved[method]} ({self.conserved[method] / self.networks:.1%})" for method in METHODS)
        return [self.networks, *shares]


def total(counts: Iterable[Count]) -> Count:
    counts = list(counts)
    conserved = {method: sum(count.conserved[method] for count in counts) for method in METHODS}
    return Count(sum(count.networks for count in counts), conserved)


def count(rows: Iterable[Row]) -> Count:
    rows = list(rows)
    return Count(len(rows), {method: sum(row.conserved(method) for row in rows) for method in METHODS})


def count_of_architectures(text: str) -> Count:
    """The counts that docs/architectures.md gives of torchvision's and timm's networks.

    Raises:
        ValueError: they are not where they were.
    """
    first = re.search(r"(\d+) of (\d+) networks conserve", text)
    same = re.search(r"composite `headwater` does so on (\d+) of (\d+)", text)
    further = re.search(r"(\d+) of (\d+), and with\s+`headwater` (\d+)", text)
    if first is None or same is None or further is None:
        raise ValueError("docs/architectures.md no longer says how many networks conserve in the words looked for")
    otsuki = int(first[1]) + int(further[1])
    return Count(int(first[2]) + int(further[2]), {"otsuki2024": otsuki, "headwater": int(same[1]) + int(further[3])})


def summary(rows: Mapping[Entry, Row], others: Count) -> str:
    """How many of each task, and in total, as Markdown."""
    counts = {task: count(row for entry, row in rows.items() if entry.task == task) for task in TASKS}
    elsewhere = "[torchvision and timm](architectures.md)"
    cells = [
        *([f"{task}, transformers", *found.cells()] for task, found in counts.items()),
        [f"images, {elsewhere}", *others.cells()],
        ["**all of images**", *total([others, *(counts[task] for task in IMAGES)]).cells()],
        ["**all of transformers**", *total(counts.values()).cells()],
        ["**all**", *total([others, *counts.values()]).cells()],
    ]
    return Table(("task", "architectures", *(f"`{method}`" for method in METHODS)), cells).markdown()


def table(rows: Mapping[Entry, Row], columns: int = 3) -> str:
    """The worst errors of the networks that could be explained, several to a line, as Markdown."""
    cells: list[list[Cell]] = [
        [_name(entry), row.operations, *(_error(row.errors[method]) for method in METHODS)]
        for entry, row in rows.items()
        if not row.problem
    ]
    cells += [[""] * (2 + len(METHODS))] * (-len(cells) % columns)
    lines = [list(chain(*cells[start : start + columns])) for start in range(0, len(cells), columns)]
    heads = ("network", "operations", *(f"`{method}`" for method in METHODS)) * columns
    return Table(heads, lines, align="lrrr" * columns).markdown()


def _name(entry: Entry) -> str:
    """The model's class without its task, which heads the section."""
    return f"`{re.sub('For(Image|Video|Audio|Sequence)Classification|ForSemanticSegmentation', '', entry.model)}`"


def _error(error: float) -> str:
    return f"{error:.1e}" if error <= LIMIT else f"**{error:.1e}**"


def problems(rows: Mapping[Entry, Row]) -> str:
    """The networks that could not be explained, by their reasons, as a list in Markdown."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for entry, row in rows.items():
        if row.problem:
            found[row.problem].append(_name(entry))
    lines = [f"- {', '.join(names)}: {problem}." for problem, names in found.items()]
    return "\n".join(["Not explained:\n", *lines]) if lines else ""


def page(rows: Mapping[Entry, Row], architectures: str, versions: Mapping[str, str]) -> str:
    """The documentation page; ``architectures`` is the text of the page with torchvision's and timm's networks."""
    by_task = {task: {entry: row for entry, row in rows.items() if entry.task == task} for task in TASKS}
    sections = [_section(task, part) for task, part in by_task.items()]
    return f"""# Architectures of transformers

How many architectures conserve relevance to {LIMIT:g} (relative, float32): from the output to the input, and at every
cut, a value that all paths from the input to the output cross.

{summary(rows, count_of_architectures(architectures))}

The networks are all that `transformers` maps to these tasks (`MODEL_FOR_..._MAPPING_NAMES`), each in a small
configuration (two layers, 32 channels, images of 64 x 64 pixels, 16 tokens; `benchmarks/zoo/small.toml`) with random
weights. Batches of {BATCH}; the second text ends with padding. The numbers are the worst of the batch: by the composite
`otsuki2024`, and by the method `headwater`, the sum of its map included. Bold: not conserved. Weights are random, so
nothing here says whether a map is about the evidence.

{", ".join(f"{name} {version}" for name, version in versions.items())}. Written by `python -m benchmarks.zoo`.

{_joined(sections)}
"""


def _section(task: str, rows: Mapping[Entry, Row]) -> str:
    return _joined([f"## {task.capitalize()}", table(rows), problems(rows)])


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part)
