"""One writer of tables: what Markdown, CSV and LaTeX make of the same rows."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.report.tabular import Table, latex_text

CELLS = st.one_of(
    st.none(), st.integers(), st.floats(allow_nan=False), st.text(st.characters(exclude_categories=["C"]))
)


def test_the_same_rows_in_three_formats():
    table = Table(("method", "ID"), [("rise", 0.25), ("random", None)])
    assert table.markdown() == "| method | ID |\n|---|--:|\n| rise | 0.25 |\n| random | |"
    assert table.csv() == "method,ID\nrise,0.25\nrandom,\n"
    body = ["method & ID \\\\", "\\midrule", "rise & 0.25 \\\\", "random &  \\\\"]
    ends = ["\\begin{tabular}{lr}", "\\toprule"], ["\\bottomrule", "\\end{tabular}"]
    assert table.latex().splitlines() == [*ends[0], *body, *ends[1]]
    note = ["\\midrule", "\\multicolumn{2}{l}{a note} \\\\"]
    assert table.latex("a note").splitlines() == [*ends[0], *body, *note, *ends[1]]


def test_columns_are_aligned_as_asked():
    table = Table(("a", "b", "c"), [], align="lrl")
    assert table.markdown().splitlines()[1] == "|---|--:|---|"
    assert "{lrl}" in table.latex()


def test_pipes_stay_inside_of_their_cells():
    assert (
        Table(("a",), [("in-proportion-to-|w||h|",)]).markdown().splitlines()[-1]
        == "| in-proportion-to-\\|w\\|\\|h\\| |"
    )


def test_latex_text_is_printed_as_it_stands():
    assert latex_text("a_b & 50 % of $3 #1 {x} \\ ~^") == (
        "a\\_b \\& 50 \\% of \\$3 \\#1 \\{x\\} \\textbackslash{} \\textasciitilde{}\\textasciicircum{}"
    )


@given(st.lists(st.tuples(CELLS, CELLS), max_size=5))
def test_csv_reads_back_what_was_written(rows):
    read = list(csv.reader(io.StringIO(Table(("a", "b"), rows).csv())))
    assert read == [["a", "b"], *(["" if cell is None else str(cell) for cell in row] for row in rows)]


@pytest.mark.parametrize("rows", [[("one",)], [("one", "two", "three")]])
def test_rows_that_do_not_fit_their_columns(rows):
    with pytest.raises(ValueError, match="2 columns"):
        Table(("a", "b"), rows)
    with pytest.raises(ValueError, match="2 columns"):
        Table(("a", "b"), [], align="l")
