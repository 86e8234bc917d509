"""A finished evaluation as one HTML page that needs no other file and no connection."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from headwater.files import write_text
from headwater.metrics.failures import KINDS, failure_kind
from headwater.report.accuracy import label_source
from headwater.report.charts import colour_class, interval_chart, line_chart
from headwater.report.images import overlay
from headwater.report.notebook import image_tag
from headwater.report.run_folder import RunFolder
from headwater.report.tables import MEASURES, SummaryTable
from headwater.report.tabular import Cell, Table

if TYPE_CHECKING:
    import pandas

PUBLISHED_THRESHOLD = 0.371
"""An explanation whose ID is not above it has failed (Otsuki et al., Sec. D.4)."""
_CONSERVED = 1e-5  # relative error, the limit of the tests
_FEW_METHODS = 10  # with more, fewer examples of each are shown, so that the page stays below 10 MB
_FEW_CLASSES = 40  # more are folded away


@dataclass(frozen=True)
class Example:
    """One image of the best or worst: what the network saw, the same under its map, and what is said below."""

    photo: Markup
    laid: Markup
    name: str
    caption: str


def write_report(folder: str | Path, out: str | Path | None = None, threshold: float = PUBLISHED_THRESHOLD) -> Path:
    """Make the page of a run of :func:`headwater.evaluate`, and return where it is.

    Args:
        folder: of the run.
        out: the page's file; ``report.html`` in the folder if not given.
        threshold: an explanation whose ID is not above it counts as failed.

    Raises:
        DataError: the folder holds no finished run of this version, or is damaged.
        OutputError: the page cannot be written.
    """
    folder = Path(folder)
    page = evaluation_page(RunFolder.read(folder), threshold)
    return write_text(folder / "report.html" if out is None else Path(out), page)


def evaluation_page(run: RunFolder, threshold: float = PUBLISHED_THRESHOLD) -> str:
    """The page as HTML: summary, curves, classes, best and worst images, failures, conservation, settings.

    Raises:
        DataError: a file of rows is damaged.
    """
    summary = SummaryTable.of(run.table, run.about["baselines"])
    measure = next(column for column in ("id_published", "id_budget") if column in run.table)
    template = Environment(
        loader=PackageLoader("headwater.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("evaluation.html")
    readable = run.table[run.table["error"].isna()]
    return template.render(
        run=run,
        summary=summary,
        measure=MEASURES[measure],
        images=run.table["image"].nunique(),
        labels=label_source(str(run.table["label_source"].iloc[0])),
        intervals=_intervals(summary),
        curves=_curves(run),
        legend=[(colour_class(place), name) for place, name in enumerate(run.curves)],
        randomisation=_randomisation(run),
        classes=_classes(readable, run, summary.methods, measure),
        folded=readable["label"].nunique() > _FEW_CLASSES,
        examples=_examples(readable, run, summary.methods, measure),
        failures=_failures(readable, summary.methods, measure, threshold),
        kinds=KINDS,
        threshold=threshold,
        conservation=_conservation(readable, summary.methods),
        unreadable=_unreadable(run.table),
        settings=Table(("setting", "value"), _rows({**run.settings, **_used(run)}), "ll").html(),
        versions=Table(("software", "version"), _rows(run.about["versions"]), "ll").html(),
        again=_again(run),
    )


def _intervals(summary: SummaryTable) -> list[Markup]:
    return [
        interval_chart(
            {method: summary.cells[method, measure] for method in summary.methods},
            f"{MEASURES[measure]} of each method with its 95 % interval; the numbers are in the table",
            f"{MEASURES[measure]}, mean and 95 % interval",
        )
        for measure in summary.measures
        if measure.startswith("id_")
    ]


def _curves(run: RunFolder) -> list[tuple[str, Markup]]:
    """Title and chart of insertion and deletion under each protocol."""
    columns = list(dict.fromkeys(column for of_method in run.curves.values() for column in of_method))
    charts = []
    for column in columns:
        kind, protocol, _ = column.split("_")
        lines = {method: of_method.get(column, []) for method, of_method in run.curves.items()}
        ends = ", ".join(f"{method} {np.mean(v):.2f}" for method, v in lines.items() if len(v))
        told = f"Mean {kind} curves, {protocol} protocol; mean height: {ends}"
        axis = "points, from first to last" if protocol == "published" else f"part of the pixels {_DONE[kind]}"
        charts.append((f"{kind.capitalize()}, {protocol} protocol", line_chart(lines, told, axis, "probability")))
    return charts


_DONE = {"insertion": "inserted", "deletion": "deleted"}


def _randomisation(run: RunFolder) -> Markup | None:
    rows = run.randomisation
    if rows is None:
        return None
    means = rows.groupby(["method", "layers"], sort=True)["correlation"].mean()
    lines = {method: [1.0, *means[method]] for method in dict.fromkeys(rows["method"])}
    told = "Rank correlation with the map before; at the end: " + ", ".join(
        f"{m} {v[-1]:.2f}" for m, v in lines.items()
    )
    return line_chart(lines, told, "part of the layers that are random, from the output", "rank correlation")


def _classes(rows: pandas.DataFrame, run: RunFolder, methods: Sequence[str], measure: str) -> Markup:
    first = rows[rows["method"] == methods[0]]
    right = (first["predicted"] == first["label"]).groupby(first["label"])
    means = rows.groupby(["label", "method"])[measure].mean()
    body: list[tuple[Cell, ...]] = [
        (
            _class_name(run, int(label)),
            int(right.size()[label]),
            f"{share:.0%}",
            *(f"{means[label, m]:.3f}" for m in methods),
        )
        for label, share in right.mean().items()
    ]
    return Table(("class", "images", "network right", *methods), body).html()


def _class_name(run: RunFolder, label: int) -> str:
    names = run.about.get("classes") or ()
    return f"{names[label]} ({label})" if 0 <= label < len(names) else f"class {label}"


def _examples(
    rows: pandas.DataFrame, run: RunFolder, methods: Sequence[str], measure: str
) -> list[tuple[str, str, list[Example]]]:
    """Method, "best" or "worst", and the images; of few images none is shown twice."""
    most = 6 if len(methods) <= _FEW_METHODS else 3
    chosen = []
    for method in methods:
        ordered = rows[rows["method"] == method].sort_values([measure, "image"], ascending=[False, True])
        count = min(most, (len(ordered) + 1) // 2)
        chosen.append((method, "best", ordered.head(count)))
        if len(ordered) > count:
            chosen.append((method, "worst", ordered.tail(min(count, len(ordered) - count)).iloc[::-1]))
    wanted = {(image, method) for method, _, part in chosen for image in part["image"]}
    pictures = run.pictures(wanted)
    return [
        (
            method,
            which,
            [_example(row, method, run, measure, *pictures[row["image"], method]) for row in part.to_dict("records")],
        )
        for method, which, part in chosen
    ]


def _example(row: dict[str, Any], method: str, run: RunFolder, measure: str, photo: bytes, heatmap: bytes) -> Example:
    name, predicted = str(row["image"]), _class_name(run, int(row["predicted"]))
    with Image.open(io.BytesIO(photo)) as opened, Image.open(io.BytesIO(heatmap)) as grey:
        seen, small = opened.convert("RGB"), Image.fromarray((np.asarray(grey) - np.float32(128)) / np.float32(127))
    laid, stream = overlay(seen, np.asarray(small.resize(seen.size, Image.Resampling.BILINEAR))), io.BytesIO()
    laid.save(stream, format="jpeg", quality=85)
    said = f"{MEASURES[measure]} {row[measure]:.3f}; predicted {predicted} {row['probability']:.1%}"
    if row["predicted"] != row["label"]:
        said += f", label {_class_name(run, int(row['label']))}"
    return Example(
        image_tag(photo, f"{name}, as the network saw it", "jpeg"),
        image_tag(stream.getvalue(), f"{name} under its map by {method}", "jpeg"),
        name,
        said,
    )


def _failures(rows: pandas.DataFrame, methods: Sequence[str], measure: str, threshold: float) -> Markup:
    body: list[tuple[Cell, ...]] = []
    for method in methods:
        mine = rows[rows["method"] == method]
        failed = mine[~(mine[measure] > threshold)]
        wrong = int((failed["predicted"] != failed["label"]).sum())
        boxed = failed[failed["mass"].notna()]
        numbers = zip(boxed["box_covered"], boxed["inside_box"], strict=True)
        kinds = Counter(failure_kind(*two) for two in numbers)
        counts = [kinds[kind] for kind in KINDS] if len(boxed) else [None] * len(KINDS)
        body.append((method, len(mine), len(failed), wrong, *counts, len(failed) - len(boxed)))
    columns = ("method", "images", "failed", "of these misclassified", *KINDS.values(), "without a box")
    return Table(columns, body).html()


def _conservation(rows: pandas.DataFrame, methods: Sequence[str]) -> Markup:
    body: list[tuple[Cell, ...]] = []
    for method in methods:
        mine = rows[rows["method"] == method]
        errors = mine["conservation_error"].dropna()
        if errors.empty:
            body.append((method, "keeps no account", None, None, None))
            continue
        cuts = mine["cut_error"].dropna()
        above = int((errors > _CONSERVED).sum())
        worst_cut = f"{cuts.max():.1e}" if len(cuts) else None
        body.append((method, f"{errors.median():.1e}", f"{errors.max():.1e}", worst_cut, f"{above} of {len(errors)}"))
    columns = ("method", "median error", "worst error", "worst at a cut", f"images above {_CONSERVED:g}")
    return Table(columns, body).html()


def _unreadable(table: pandas.DataFrame) -> list[tuple[str, str]]:
    failed = table[table["error"].notna()].drop_duplicates("image")
    return list(zip(failed["image"], failed["error"], strict=True))


def _rows(values: Any) -> list[tuple[Cell, ...]]:
    return [(key, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for key, v in values.items()]


def _used(run: RunFolder) -> dict[str, Any]:
    """What was used where the settings leave it open; runs of older versions do not say."""
    return {"step": run.about["step"]} if "step" in run.about else {}


def _again(run: RunFolder) -> str:
    """The command, or the Python call, that makes the same run."""
    if run.about["command"]:
        return str(run.about["command"])
    names = ("methods", "samples", "protocols", "split", "seed", "step", "batch_size", "labels")
    given = {name: run.settings.get(name) for name in names}
    settings = ", ".join(f"{k}={tuple(v) if isinstance(v, list) else v!r}" for k, v in given.items())
    data = run.about["data"]
    return f"headwater.evaluate(model, {data!r}, headwater.Settings({settings}), {str(run.folder)!r})"
