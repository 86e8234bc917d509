"""Summary tables of an evaluation, as CSV, Markdown and LaTeX, and its curves as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from headwater.errors import InputError
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
_TESTED = ("insertion", "deletion", "id")


@dataclass(frozen=True)
class Comparison:
    """A method's values of one measure against another method's, paired by image (or by network).

    Attributes:
        against: the other method.
        difference: mean of the method's values minus mean of the other's.
        p: two-sided paired t-test; one family with every other comparison of the table, corrected by Holm's procedure.
    """

    against: str
    difference: float
    p: float


@dataclass(frozen=True)
class SummaryTable:
    """Every method's summary of every measure, and the significance of differences in insertion, deletion and ID.

    Attributes:
        methods: rows, in the order of the evaluation.
        measures: columns of the evaluation that have values.
        cells: summary by method and measure.
        comparisons: by method and measure, those of insertion, deletion and ID.
        failed: images that could not be read.
        accuracy: how often the network was right; ``None`` over several networks.
        weights: the networks and their weights.
    """

    methods: tuple[str, ...]
    measures: tuple[str, ...]
    cells: Mapping[tuple[str, str], Summary]
    comparisons: Mapping[tuple[str, str], Comparison]
    failed: int
    accuracy: Accuracy | None = None
    weights: str = ""

    @classmethod
    def of(
        cls, table: pandas.DataFrame, baselines: Sequence[str], against: Mapping[str, str] | None = None
    ) -> SummaryTable:
        """Summarise the rows of :func:`headwater.evaluate`.

        Args:
            table: the rows.
            baselines: methods; in each measure, the others are tested against the best of them.
            against: tests these methods against those instead, in every measure; for ablations.

        Raises:
            InputError: ``against`` names a method that has no rows.
        """
        methods = tuple(dict.fromkeys(table["method"]))
        by_method = {m: table[table["method"] == m].sort_values("image", kind="stable") for m in methods}
        measures = tuple(m for m in MEASURES if m in table and table[m].notna().any())
        cells = {(m, c): summarise(rows[c].tolist()) for m, rows in by_method.items() for c in measures}
        others: dict[tuple[str, str], str] = {}
        for measure in (c for c in measures if c.split("_")[0] in _TESTED):
            best = _best(baselines, measure, cells)
            pairs = dict.fromkeys(methods, best) if against is None else against
            others |= {(m, measure): other for m, other in pairs.items() if other and m != other}
        missing = {m for (mine, _), other in others.items() for m in (mine, other)} - set(methods)
        if missing:
            raise InputError(f"no rows of {', '.join(sorted(missing))} to compare; there are {', '.join(methods)}")
        p_values = paired_p_values(
            {(m, c): (by_method[m][c].tolist(), by_method[other][c].tolist()) for (m, c), other in others.items()}
        )
        comparisons = {
            (m, c): Comparison(other, cells[m, c].mean - cells[other, c].mean, p_values[m, c])
            for (m, c), other in others.items()
        }
        failed = int(table[table["error"].notna()]["image"].nunique())
        weights = "; ".join(dict.fromkeys(table["weights"])) if "weights" in table else ""
        return cls(methods, measures, cells, comparisons, failed, Accuracy.of(table), weights)

    def csv(self) -> str:
        """One line per method and measure, with the accuracy, the source of the labels and the weights in each."""
        columns = ("method", "measure", "count", "mean", "deviation", "low", "high", "p_value", "against")
        known, rows = self.accuracy, list[list[Cell]]()
        share = None if known is None or known.is_predicted else known.share
        for method in self.methods:
            for measure in self.measures:
                s = self.cells[method, measure]
                test = self.comparisons.get((method, measure))
                p, against = (None, None) if test is None or math.isnan(test.p) else (test.p, test.against)
                numbers = (s.count, s.mean, s.deviation, s.low, s.high, p)
                rows.append([method, measure, *numbers, against, share, known.source if known else None, self.weights])
        return Table((*columns, "accuracy", "label_source", "weights"), rows).csv()

    def markdown(self) -> str:
        """Means with half the 95 % interval; the best of a column bold, * where p < 0.05, see :meth:`note`."""

        def cell(method: str, measure: str) -> str:
            text = self._text(method, measure, " ± ").replace("*", r"\*")
            return f"**{text}**" if self._is_best(method, measure) else text

        rows = [[f"`{method}`", *(cell(method, measure) for measure in self.measures)] for method in self.methods]
        note = self.note().replace("*", r"\*")
        return f"{Table(self._columns, rows).markdown()}\n\n{note}"

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
        if self.has_tests:
            parts.append(f"* p < 0.05 {self.tested()}.")
        if self.failed:
            parts.append(f"{self.failed} images could not be read and are left out.")
        if self.weights:
            parts.append(f"Weights: {self.weights}.")
        return " ".join(parts)

    @property
    def has_tests(self) -> bool:
        """Whether any comparison has a p-value; one image or network gives none."""
        return any(not math.isnan(c.p) for c in self.comparisons.values())

    def tested(self) -> str:
        """What is compared with what, and how, to follow "p < 0.05"."""
        known = sum(not math.isnan(c.p) for c in self.comparisons.values())
        how = f"paired t-tests, {known} of one family, Holm"
        by_measure = {m: {c.against for (_, own), c in self.comparisons.items() if own == m} for m in self.measures}
        if all(len(others) <= 1 for others in by_measure.values()):
            best = [f"{other} in {MEASURES[m]}" for m, others in by_measure.items() for other in others]
            return f"against {', '.join(best)} ({how})"
        return f"against the method beside it in the table of tests ({how})"

    def tests(self) -> str:
        """Every comparison as Markdown: the difference of the means, and the corrected p-value below 0.05 bold."""
        measures = [m for m in self.measures if any(own == m for _, own in self.comparisons)]
        rows = list[list[Cell]]()
        for method in self.methods:
            for against in dict.fromkeys(c.against for (m, _), c in self.comparisons.items() if m == method):
                found = [self.comparisons.get((method, m)) for m in measures]
                texts = [_test(c) if c is not None and c.against == against else "" for c in found]
                rows.append([f"`{method}`", f"`{against}`", *texts])
        table = Table(("method", "against", *(MEASURES[m] for m in measures)), rows, align="ll" + "r" * len(measures))
        return f"{table.markdown()}\n\nDifference of the means, and p {self.tested()}."

    def _text(self, method: str, measure: str, between: str) -> str:
        s = self.cells[method, measure]
        if math.isnan(s.mean):
            return "-"
        if measure in ("conservation_error", "cut_error"):
            return f"{s.mean:.1e}"
        star = "*" if self.is_significant(method, measure) else ""
        half = "" if math.isnan(s.high) else f"{between}{s.high - s.mean:.3f}"
        return f"{s.mean:.3f}{star}{half}"

    def is_significant(self, method: str, measure: str) -> bool:
        """Whether the corrected p-value is below 0.05; false where nothing is compared."""
        test = self.comparisons.get((method, measure))
        return test is not None and test.p < 0.05

    def _is_best(self, method: str, measure: str) -> bool:
        if measure in _NO_BEST or len(self.methods) < 2:
            return False
        best = _best(self.methods, measure, self.cells)
        return best is not None and self.cells[method, measure].mean == self.cells[best, measure].mean


def _best(methods: Sequence[str], measure: str, cells: Mapping[tuple[str, str], Summary]) -> str | None:
    """The method with the best mean; ``None`` where none is known."""
    means = {m: cells[m, measure].mean for m in methods if (m, measure) in cells}
    known = [m for m, mean in means.items() if not math.isnan(mean)]
    choose = min if measure in _LOWER_IS_BETTER else max
    return choose(known, key=means.__getitem__) if known else None


def _test(comparison: Comparison) -> str:
    if math.isnan(comparison.p):
        return "-"
    p = f"p = {comparison.p:.2g}"
    return f"{comparison.difference:+.3f}, " + (f"**{p}**" if comparison.p < 0.05 else p)


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
