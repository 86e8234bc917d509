"""Tables of named columns, as Markdown, CSV, LaTeX or HTML."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Cell = str | int | float | None
"""A value of a table; ``None`` and NaN are written as nothing."""
_LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "_%&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)


@dataclass(frozen=True)
class Table:
    """Rows of named columns.

    Attributes:
        columns: their headings.
        rows: one sequence of cells per row, as many as there are columns.
        align: ``l`` or ``r`` for each column; the first is left-aligned and the others right-aligned if not given.

    >>> print(Table(("method", "ID"), [("`random`", "0.018"), ("`rise`", None)]).markdown())
    | method | ID |
    |---|--:|
    | `random` | 0.018 |
    | `rise` | |
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    align: str = ""

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.rows} | ({len(self.align)} if self.align else set())
        if widths - {len(self.columns)}:
            raise ValueError(f"a table of {len(self.columns)} columns has rows of {sorted(widths)} cells")

    def markdown(self) -> str:
        """Pipes inside of cells are escaped; no newline at the end."""
        rule = "|" + "".join({"l": "---|", "r": "--:|"}[side] for side in self._align())
        head, *body = ["|" + "".join(f" {text} |" if text else " |" for text in row) for row in self._texts()]
        return "\n".join([head, rule, *body])

    def csv(self) -> str:
        r"""Numbers in full precision; lines end in a line feed.

        >>> Table(("image", "error"), [("a.png", 0.1), ("b.png", float("nan"))]).csv()
        'image,error\na.png,0.1\nb.png,\n'
        """
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([None if _is_missing(cell) else cell for cell in row] for row in self.rows)
        return stream.getvalue()

    def latex(self, note: str = "") -> str:
        """A ``tabular`` with booktabs' rules; cells are LaTeX already, see :func:`latex_text`.

        Args:
            note: stands below the rows, over all columns.
        """
        head, *body = [" & ".join(row) + r" \\" for row in self._plain()]
        below = [r"\midrule", rf"\multicolumn{{{len(self.columns)}}}{{l}}{{{note}}} \\"] if note else []
        opening = [rf"\begin{{tabular}}{{{self._align()}}}", r"\toprule", head, r"\midrule"]
        return "\n".join([*opening, *body, *below, r"\bottomrule", r"\end{tabular}"])

    def html(self, caption: str = "") -> Markup:
        """A ``table`` whose first column heads its rows; cells are escaped unless they are ``markupsafe.Markup``.

        Args:
            caption: stands above the rows.

        >>> print(Table(("method", "ID"), [("a < b", 0.5)]).html())
        <table><thead><tr><th scope="col">method</th><th scope="col" style="text-align: right">ID</th></tr></thead>
        <tbody><tr><th scope="row">a &lt; b</th><td style="text-align: right">0.5</td></tr></tbody></table>
        """
        styles = ["" if side == "l" else ' style="text-align: right"' for side in self._align()]

        def line(cells: Sequence[Cell], first: str, other: str) -> str:
            texts = ["" if _is_missing(cell) else escape(cell) for cell in cells]
            kinds = [first, *[other] * (len(texts) - 1)]
            parts = [f"<{k}{s}>{t}</{k.split()[0]}>" for k, s, t in zip(kinds, styles, texts, strict=True)]
            return f"<tr>{''.join(parts)}</tr>"

        head = line(self.columns, 'th scope="col"', 'th scope="col"')
        body = "\n".join(line(row, 'th scope="row"', "td") for row in self.rows)
        above = f"<caption>{escape(caption)}</caption>" if caption else ""
        return Markup(f"<table>{above}<thead>{head}</thead>\n<tbody>{body}</tbody></table>")

    def _align(self) -> str:
        return self.align or "l" + "r" * (len(self.columns) - 1)

    def _plain(self) -> list[list[str]]:
        """Headings and rows as text."""
        return [["" if _is_missing(cell) else str(cell) for cell in row] for row in (self.columns, *self.rows)]

    def _texts(self) -> list[list[str]]:
        return [[text.replace("|", "\\|") for text in row] for row in self._plain()]


def latex_text(text: str) -> str:
    r"""Plain text as LaTeX that prints it.

    >>> latex_text("my_method 50 %")
    'my\\_method 50 \\%'
    """
    return text.translate(_LATEX)


def _is_missing(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))
