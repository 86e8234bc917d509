"""Tables of the papers, measured: the printed numbers beside ours, under both protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from headwater.data.labelled import LabelledImages
from headwater.evaluation import Expected, Progress, Settings, evaluate, split_accuracy
from headwater.experiments.like_for_like import provenance
from headwater.experiments.networks import networks_for
from headwater.experiments.published import CUB, IMAGENET, Row, TableExperiment
from headwater.methods import is_baseline
from headwater.metrics.statistics import Summary, summarise
from headwater.report.accuracy import Accuracy
from headwater.report.tables import SummaryTable
from headwater.report.tabular import Table

if TYPE_CHECKING:
    import pandas

_MEASURES = ("insertion", "deletion", "id")


@dataclass(frozen=True)
class MeasuredTable:
    """A table of a paper with the numbers of the networks at hand.

    Attributes:
        experiment: what it is.
        summary: over images for one network, over networks for several.
        accuracy: part of all images of the split that each method's networks predict right, over networks; empty where
            the paper prints no accuracy, or labels are predictions.
        networks: number of networks that each method was measured on; methods without a network are missing.
        labels: how often the networks are right on the sampled images, or that labels are predictions.
    """

    experiment: TableExperiment
    summary: SummaryTable
    accuracy: dict[str, Summary]
    networks: dict[str, int]
    labels: str = ""

    def markdown(self) -> str:
        """Printed numbers and measured ones side by side, in percent: insertion / deletion / **ID**; then the tests."""
        printed = [d for d in (IMAGENET, CUB) if any(d in row.published for row in self.experiment.rows)]
        protocols = [m.removeprefix("id_") for m in self.summary.measures if m.startswith("id_")]
        accuracies = ["accuracy, printed", "accuracy, whole split"] * _prints_accuracy(self.experiment)
        numbers = [*(f"printed, {d}" for d in printed), *(f"measured, `{p}`" for p in protocols), *accuracies]
        rows = []
        for row in self.experiment.rows:
            cells = [row.label, f"`{row.method}`", *(_printed(row, d) for d in printed)]
            if row.method in self.networks:
                cells += [self._measured(row, p) for p in protocols]
            else:
                cells += ["no network given"] * len(protocols)
            if accuracies:
                cells += ["{:.1f} ± {:.1f}".format(*row.accuracy) if row.accuracy else "", self._accuracy(row)]
            rows.append(cells)
        table = Table(("", "method", *numbers), rows, align="ll" + "r" * len(numbers)).markdown()
        parts = [table, self._note(), *self._differences()]
        if self.summary.has_tests:
            parts += ["## Tests", self.summary.tests()]
        return "\n\n".join(parts)

    def _differences(self) -> list[str]:
        """What is computed otherwise than printed, as a list."""
        lines = [
            f"- {row.label}, `{row.method}`: {text}."
            for row in self.experiment.rows
            if row.published and (text := provenance(self.experiment.name, row.method).differs)
        ]
        return ["\n".join(["Not computed as printed:", "", *lines])] if lines else []

    def _measured(self, row: Row, protocol: str) -> str:
        several, texts = self.networks[row.method] > 1, []
        for measure in _MEASURES:
            cell = self.summary.cells[row.method, f"{measure}_{protocol}"]
            text = f"{100 * cell.mean:.1f}" + (f" ± {100 * cell.deviation:.1f}" if several else "")
            text = f"**{text}**" if measure == "id" else text
            star = self.summary.is_significant(row.method, f"{measure}_{protocol}")
            texts.append(text + "\\*" * star)
        return " / ".join(texts)

    def _accuracy(self, row: Row) -> str:
        if row.method not in self.accuracy:
            return ""
        share = self.accuracy[row.method]
        return f"{100 * share.mean:.1f}" + (f" ± {100 * share.deviation:.1f}" if share.count > 1 else "")

    def _note(self) -> str:
        count = max(self.networks.values(), default=0)
        parts = ["Percent: insertion / deletion / **ID**."]
        if count > 1:
            parts.append(f"Mean ± standard deviation over {count} networks, which the tests pair.")
        if any(n.deviations for row in self.experiment.rows for n in row.published.values()):
            parts.append("Printed deviations: over five trainings.")
        if self.summary.has_tests:
            parts.append(f"\\* p < 0.05 {self.summary.tested()}.")
        if self.summary.failed:
            parts.append(f"{self.summary.failed} images could not be read and are left out.")
        return " ".join(part for part in (*parts, self.labels, self.experiment.note) if part)


def measure_table(
    experiment: TableExperiment,
    models: Sequence[nn.Module],
    data: str | Path | LabelledImages,
    settings: Settings,
    out: Path,
    devices: Sequence[str] = (),
    progress: Progress | None = None,
    expected: Expected | None = None,
) -> MeasuredTable:
    """Measure a table's methods, each network in a folder of its own below ``out``.

    Args:
        experiment: which table.
        models: trained networks; several are what the paper's several trainings are.
        data: a folder or the data set itself.
        settings: of the evaluation; its methods are the table's.
        out: run folder; what is there is reused.
        devices: see :func:`headwater.evaluate`.
        progress: see :func:`headwater.evaluate`.
        expected: likewise, for each network.
    """
    import pandas as pd

    networks = {row.method: networks_for(row.method, models) for row in experiment.rows}
    tables: list[pandas.DataFrame] = []
    for model in models:
        mine = tuple(method for method, found in networks.items() if any(m is model for m in found))
        if mine:
            place = out / f"network-{len(tables)}"
            asked = replace(settings, methods=mine)
            tables.append(evaluate(model, data, asked, place, devices=devices, progress=progress, expected=expected))
    methods = tuple(method for method, found in networks.items() if found)
    counts = {method: len(networks[method]) for method in methods}
    known = [a for a in map(Accuracy.of, tables) if a is not None]
    accuracy = dict[str, Summary]()
    if _prints_accuracy(experiment) and not any(a.is_predicted for a in known):
        shares = {id(model): split_accuracy(model, data, settings).share for model in models}
        accuracy = {method: summarise([shares[id(m)] for m in networks[method]]) for method in methods}
    combined = _over_networks(tables, methods) if max(counts.values()) > 1 else pd.concat(tables, ignore_index=True)
    full = {row.method: row.against for row in experiment.rows if {row.method, row.against} <= set(methods)}
    ablation = any(row.against for row in experiment.rows)
    summary = SummaryTable.of(combined, [m for m in methods if is_baseline(m)], full if ablation else None)
    summary = summary if len(tables) == 1 else replace(summary, accuracy=None)
    return MeasuredTable(experiment, summary, accuracy, counts, _sampled(known))


def _prints_accuracy(experiment: TableExperiment) -> bool:
    return any(row.accuracy for row in experiment.rows)


def _sampled(known: Sequence[Accuracy]) -> str:
    """How often the networks are right on the sampled images; each by itself if something is to be said of one."""
    if len(known) < 2 or any(a.is_predicted or a.is_near_chance for a in known):
        return " ".join(dict.fromkeys(map(str, known)))
    right = [a.right for a in known]
    return f"The networks are right on {min(right)} to {max(right)} of {known[0].count} sampled images."


def _over_networks(tables: Sequence[pandas.DataFrame], methods: Sequence[str]) -> pandas.DataFrame:
    """One row per network and method, its means over the images in the columns, for :class:`SummaryTable`."""
    import pandas as pd

    rows = []
    for method in methods:
        having = [table for table in tables if (table["method"] == method).any()]
        for number, table in enumerate(having):
            mine = table[table["method"] == method]
            means = mine.select_dtypes("number").mean()
            known = {"image": f"network {number}", "method": method, "error": None, "weights": mine["weights"].iloc[0]}
            rows.append({**known, **means.to_dict()})
    return pd.DataFrame(rows)


def _printed(row: Row, data: str) -> str:
    return row.published[data].markdown() if data in row.published else ""
