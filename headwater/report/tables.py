"""Summary tables of an evaluation, as CSV, Markdown and LaTeX, and its curves as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from headwater.metrics.statistics import Summary, paired_p_values, summarise
from headwater.report.accuracy import PREDICTED_LABELS, Accuracy
from headwater.report.images import as_png
from headwater.report.tabular import Cell, Table, latex_text

if TYPE_CHECKING:
    import pandas

MEASURES = {
    "insertion_published": "ins (published)",
    "deletion_published": "del (published)",
    "id_published": "ID (published)",
    "insertion_budget": "ins (budget)",
    "deletion_budget": "del (budget)",
    "id_budget": "ID (budget)",
    "pointing": "pointing game",
    "mass": "mass in box",
    "rank": "rank accuracy",
    "gini": "Gini",
    "conservation_error": "conservation error",
    "cut_error": "worst at a cut",
}
_LOWER_IS_BETTER = ("deletion_published", "deletion_budget", "conservation_error", "cut_error")
_NO_BEST = ("gini",)


@dataclass(frozen=True)
class SummaryTable:
    """Every method's summary of every measure, and the significance of differences in ID.

    Attributes:
        methods: rows, in the order of the evaluation.
        measures: columns of the evaluation that have values.
        cells: summary by method and measure.
        p_values: for each ID measure, corrected p-value of each method against ``against``.
        against: for each ID measure, the baseline with the highest mean; missing where there is none.
        failed: images that could not be read.
        accuracy: how often the network was right; ``None`` over several networks.
    """

    methods: tuple[str, ...]
    measures: tuple[str, ...]
    cells: Mapping[tuple[str, str], Summary]
    p_values: Mapping[str, Mapping[str, float]]
    against: Mapping[str, str]
    failed: int
    accuracy: Accuracy | None = None

    @classmethod
    def of(cls, table: pandas.DataFrame, baselines: Sequence[str]) -> SummaryTable:
        """Summarise the rows of :func:`headwater.evaluate`.

        Args:
            table: the rows.
            baselines: methods; the others are tested against the best of them.
        """
        methods = tuple(dict.fromkeys(table["method"]))
        by_method = {m: table[table["method"] == m].sort_values("image", kind="stable") for m in methods}
        measures = tuple(m for m in MEASURES if m in table and table[m].notna().any())
        cells = {(m, c): summarise(rows[c].tolist()) for m, rows in by_method.items() for c in measures}
        p_values, against = {}, {}
        for measure in (c for c in measures if c.startswith("id_")):
            candidates = [m for m in methods if m in baselines]
            if candidates and len(methods) > 1:
                best = max(candidates, key=lambda m: cells[m, measure].mean)
                against[measure] = best
                p_values[measure] = paired_p_values({m: by_method[m][measure].tolist() for m in methods}, best)
        failed = int(table[table["error"].notna()]["image"].nunique())
        return cls(methods, measures, cells, p_values, against, failed, Accuracy.of(table))

    def csv(self) -> str:
        """One line per method and measure, with the accuracy and the source of the labels in each."""
        columns = ("method", "measure", "count", "mean", "deviation", "low", "high", "p_value", "against")
        known, rows = self.accuracy, list[list[Cell]]()
        share = None if known is None or known.is_predicted else known.share
        for method in self.methods:
            for measure in self.measures:
                s = self.cells[method, measure]
                p = self.p_values.get(measure, {}).get(method, math.nan)
                against = self.against.get(measure) if not math.isnan(p) else None
                numbers = (s.count, s.mean, s.deviation, s.low, s.high, p)
                rows.append([method, measure, *numbers, against, share, known.source if known else None])
        return Table((*columns, "accuracy", "label_source"), rows).csv()

    def markdown(self) -> str:
        """Means with half the 95 % interval; the best of a column bold, * where p < 0.05 against the best baseline."""

        def cell(method: str, measure: str) -> str:
            text = self._text(method, measure, " ± ")
            return f"**{text}**" if self._is_best(method, measure) else text

        rows = [[f"`{method}`", *(cell(method, measure) for measure in self.measures)] for method in self.methods]
        return f"{Table(self._columns, rows).markdown()}\n\n{self.note()}"

    def html(self) -> Markup:
        """The same for a page, without the note."""

        def cell(method: str, measure: str) -> Markup:
            text = escape(self._text(method, measure, " ± "))
            return Markup(f"<strong>{text}</strong>") if self._is_best(method, measure) else text

        rows = [[method, *(cell(method, measure) for measure in self.measures)] for method in self.methods]
        return Table(self._columns, rows).html()

    def latex(self) -> str:
        """The same for a paper, with booktabs."""

        def cell(method: str, measure: str) -> str:
            text = self._text(method, measure, r" $\pm$ ").replace("*", "$^*$")
            return rf"\textbf{{{text}}}" if self._is_best(method, measure) else text

        rows = [[latex_text(method), *(cell(method, measure) for measure in self.measures)] for method in self.methods]
        predicted = self.accuracy is not None and self.accuracy.is_predicted
        table = Table(self._columns, rows).latex(note=PREDICTED_LABELS if predicted else "")
        return f"{table}\n% {self.note()}\n"

    @property
    def _columns(self) -> list[str]:
        return ["method", *(MEASURES[measure] for measure in self.measures)]

    def note(self) -> str:
        """What the numbers are, in one or two sentences."""
        parts = ["Mean ± half the 95 % interval.", *([str(self.accuracy)] if self.accuracy else [])]
        for measure, best in self.against.items():
            parts.append(f"* p < 0.05 against {best} in {MEASURES[measure]} (paired t-test, Holm).")
        if self.failed:
            parts.append(f"{self.failed} images could not be read and are left out.")
        return " ".join(parts)

    def _text(self, method: str, measure: str, between: str) -> str:
        s = self.cells[method, measure]
        if math.isnan(s.mean):
            return "-"
        if measure in ("conservation_error", "cut_error"):
            return f"{s.mean:.1e}"
        p = self.p_values.get(measure, {}).get(method, math.nan)
        star = "*" if p < 0.05 else ""
        half = "" if math.isnan(s.high) else f"{between}{s.high - s.mean:.3f}"
        return f"{s.mean:.3f}{star}{half}"

    def _is_best(self, method: str, measure: str) -> bool:
        if measure in _NO_BEST or len(self.methods) < 2:
            return False
        means = {m: self.cells[m, measure].mean for m in self.methods}
        known = [v for v in means.values() if not math.isnan(v)]
        best = min(known) if measure in _LOWER_IS_BETTER else max(known)
        return means[method] == best


def curves_figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Mean insertion and deletion curves of each method, one row per protocol, as PNG.

    Args:
        curves: ``{method: {"insertion_P_curve": [...], "deletion_P_curve": [...]}}``, as ``curves.json`` has them.
    """
    columns: list[str] = list(dict.fromkeys(c for of_method in curves.values() for c in of_method))
    protocols = list(dict.fromkeys(c.split("_")[1] for c in columns))
    height = max(3.4 * max(1, len(protocols)), 0.17 * len(curves))
    canvas = Figure(figsize=(11, height), dpi=130, layout="constrained")
    FigureCanvasAgg(canvas)
    axes: Any = canvas.subplots(max(1, len(protocols)), 2, squeeze=False, sharey=True)
    for row, protocol in zip(axes, protocols, strict=False):
        for axis, kind in zip(row, ("insertion", "deletion"), strict=True):
            for place, (method, of_method) in enumerate(curves.items()):
                values = of_method.get(f"{kind}_{protocol}_curve", [])
                x = [k / max(1, len(values) - 1) for k in range(len(values))]
                axis.plot(x, values, _line(place), label=method, lw=1.3)
            axis.set_title(f"{kind}, {protocol} protocol", fontsize=9, loc="left")
            axis.set_xlabel("points, from first to last", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.25)
        row[0].set_ylabel("probability of the label", fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False)
    return as_png(canvas)


def _line(place: int) -> str:
    """Ten colours, then the same dashed, dash-dotted and dotted."""
    return f"C{place % 10}" + ("-", "--", "-.", ":")[place // 10 % 4]


def randomisation_figure(table: pandas.DataFrame) -> bytes:
    """Mean rank correlation with the trained network's maps against the number of random layers, as PNG.

    Args:
        table: rows of :func:`headwater.evaluation.measure_randomisation`.
    """
    canvas = Figure(figsize=(7.5, max(3.8, 0.17 * table["method"].nunique())), dpi=130, layout="constrained")
    FigureCanvasAgg(canvas)
    axis = canvas.subplots()
    for place, method in enumerate(dict.fromkeys(table["method"])):
        means = table[table["method"] == method].groupby("layers")["correlation"].mean()
        axis.plot([0, *means.index], [1.0, *means], _line(place), label=method, lw=1.3)
    axis.axhline(0, color="0.7", lw=0.8, zorder=0)
    axis.set_xlabel("random layers, from the output down", fontsize=8)
    axis.set_ylabel("rank correlation with the map before", fontsize=8)
    axis.tick_params(labelsize=7)
    canvas.legend(loc="outside right upper", fontsize=7, frameon=False)
    return as_png(canvas)
