"""``headwater report``: an evaluation as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.terminal import console


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of a headwater evaluate run.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="RESULTS/report.html if not given.")] = None,
    threshold: Annotated[
        float, typer.Option(help="An ID not above it is a failure; the papers' is for the published protocol.")
    ] = 0.371,
) -> None:
    """Make one HTML page of an evaluation: summary, curves, classes, best and worst images, failures, settings."""
    from headwater.report.page import write_report

    console.print(f"report -> {write_report(results, out, threshold)}", markup=False)
