"""Every printed row says how it was computed, and the page is the one that the code writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater.experiments.like_for_like import like_for_like, provenance
from headwater.experiments.published import CUB, IMAGENET, TABLES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "like-for-like.md"
PRINTED = [(table, row) for table in TABLES.values() for row in table.rows if row.published]


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == like_for_like(), (
        "write it again with the command in headwater/experiments/like_for_like.py"
    )


@pytest.mark.parametrize(("table", "row"), PRINTED, ids=lambda value: getattr(value, "method", None))
def test_every_printed_row_is_on_the_page(table, row):
    section = like_for_like().split(f"## {table.title}\n")[1].split("\n## ")[0]
    line = next(line for line in section.splitlines() if line.startswith(f"| {row.label} |"))
    for data in (CUB, IMAGENET):
        assert data not in row.published or row.published[data].markdown() in line
    found = provenance(table.name, row.method)
    assert found.there in line and found.source in line and f"`{row.method}`" in line
    assert line.rstrip(" |").split("| ")[-1].startswith(("yes", "no: ", "not known"))


def test_every_table_of_both_papers_is_on_the_page():
    headings = [line for line in like_for_like().splitlines() if line.startswith("## ")]
    for name in ("1", "2", "3", "B", "C", "D"):
        assert any(f"Otsuki et al. 2024, Table {name}:" in heading for heading in headings), name
    for name in ("1", "2"):
        assert any(f"Doublet et al., Table {name}:" in heading for heading in headings), name
    for number in ("311 of 1000", "| IA | 40 |", "| OA | 25 |", "| WA | 35 |"):
        assert number in like_for_like()


def test_sources_are_lines():
    for table, row in PRINTED:
        assert any(part.split(":")[-1][:1].isdigit() for part in provenance(table.name, row.method).source.split(";"))
