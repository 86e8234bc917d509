"""Tables of the papers, measured: the printed numbers beside ours, under both protocols."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from headwater.data.labelled import LabelledImages
from headwater.evaluation import Progress, Settings, evaluate
from headwater.experiments.networks import networks_for
from headwater.experiments.published import CUB, IMAGENET, Numbers, Row, TableExperiment
from headwater.methods import is_baseline
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
        accuracy: part of the images that each method's networks predict right; empty where labels are predictions.
        networks: number of networks that each method was measured on; methods without a network are missing.
        labels: note on the labels: that they are predictions, or that accuracy is near chance.
    """

    experiment: TableExperiment
    summary: SummaryTable
    accuracy: dict[str, float]
    networks: dict[str, int]
    labels: str = ""

    def markdown(self) -> str:
        """Printed numbers and measured ones side by side, in percent: insertion / deletion / **ID**."""
        printed = [d for d in (IMAGENET, CUB) if any(d in row.published for row in self.experiment.rows)]
        protocols = [m.removeprefix("id_") for m in self.summary.measures if m.startswith("id_")]
        numbers = [*(f"printed, {d}" for d in printed), *(f"measured, `{p}`" for p in protocols), "accuracy"]
        rows = []
        for row in self.experiment.rows:
            cells = [row.label, f"`{row.method}`", *(_printed(row.published.get(d)) for d in printed)]
            if row.method in self.networks:
                cells += [self._measured(row, p) for p in protocols]
                cells.append(f"{self.accuracy[row.method]:.1%}" if row.method in self.accuracy else "")
            else:
                cells += ["no network given"] * len(protocols) + [""]
            rows.append(cells)
        table = Table(("", "method", *numbers), rows, align="ll" + "r" * len(numbers))
        return f"{table.markdown()}\n\n{self._note()}"

    def _measured(self, row: Row, protocol: str) -> str:
        cells = [self.summary.cells[row.method, f"{measure}_{protocol}"] for measure in _MEASURES]
        several = self.networks[row.method] > 1
        texts = [f"{c.mean:.1%}" + (f" ± {c.deviation:.1%}" if several else "") for c in cells]
        p = self.summary.p_values.get(f"id_{protocol}", {}).get(row.method, 1.0)
        texts[-1] = f"**{texts[-1]}**" + ("\\*" if p < 0.05 else "")
        return " / ".join(text.replace("%", "") for text in texts)

    def _note(self) -> str:
        count = max(self.networks.values(), default=0)
        unit = "networks" if count > 1 else "images"
        parts = ["Percent: insertion / deletion / **ID**."]
        if count > 1:
            parts.append(f"Mean ± standard deviation over {count} networks.")
        for measure, best in self.summary.against.items():
            protocol = measure.removeprefix("id_")
            parts.append(f"`{protocol}`: \\* p < 0.05 against `{best}`, paired over {unit} (t-test, Holm).")
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
    """
    import pandas as pd

    networks = {row.method: networks_for(row.method, models) for row in experiment.rows}
    tables: list[pandas.DataFrame] = []
    for model in models:
        mine = tuple(method for method, found in networks.items() if any(m is model for m in found))
        if mine:
            place = out / f"network-{len(tables)}"
            asked = replace(settings, methods=mine)
            tables.append(evaluate(model, data, asked, place, devices=devices, progress=progress))
    right = pd.concat(map(_right, tables)).groupby("method")["right"].mean()
    methods = tuple(method for method, found in networks.items() if found)
    counts = {method: len(networks[method]) for method in methods}
    known = [a for a in map(Accuracy.of, tables) if a is not None]
    predicted = any(a.is_predicted for a in known)
    accuracy = {} if predicted else {method: float(right.get(method, float("nan"))) for method in methods}
    said = dict.fromkeys(str(a) for a in known if a.is_predicted or a.is_near_chance)
    combined = _over_networks(tables, methods) if max(counts.values()) > 1 else pd.concat(tables, ignore_index=True)
    summary = SummaryTable.of(combined, [m for m in methods if is_baseline(m)])
    summary = summary if len(tables) == 1 else replace(summary, accuracy=None)
    return MeasuredTable(experiment, summary, accuracy, counts, " ".join(said))


def _right(table: pandas.DataFrame) -> pandas.DataFrame:
    readable = table[table["error"].isna()]
    return readable.assign(right=readable["predicted"] == readable["label"])


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


def _printed(numbers: Numbers | None) -> str:
    if numbers is None:
        return ""
    return f"{numbers.insertion:.1f} / {numbers.deletion:.1f} / **{numbers.id:.1f}**"
