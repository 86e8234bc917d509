"""What an explanation shows of itself in a notebook, by the kind of its input."""

from __future__ import annotations

from headwater.engine.explanation import Explanation
from headwater.pictures.picture import picture
from headwater.pictures.tokens import tokens_html
from headwater.report import notebook
from headwater.report.tabular import Table

_MOST = 8  # examples that are shown


def explanation_png(e: Explanation) -> bytes | None:
    """Of images the maps of the batch on one sheet, of other inputs the first example's picture.

    None where several inputs have relevance, or the map has more than three axes.
    """
    if not 0 < len(e.axes) <= 3:
        return None
    return notebook.explanation_png(e) if e.axes == ("row", "column") else picture(e)


def explanation_html(e: Explanation) -> str:
    """A picture of each example, and a table of class, probability and conservation; of a large batch the first 8."""
    if e.axes == ("row", "column"):
        return notebook.explanation_html(e)
    count, total = min(len(e.target), _MOST), len(e.target)
    rows = [
        (k, f"class {int(e.target[k])}", f"{e.probability[k].item():.1%}", *notebook.account_cells(e.conservation, k))
        for k in range(count)
    ]
    table = Table(("example", "explained", "probability", *notebook.ACCOUNT), rows, "rlrrrr").html(
        "" if count == total else f"The first {count} of {total} examples."
    )
    shown = []
    for k in range(count if 0 < len(e.axes) <= 3 else 0):
        title = f"class {int(e.target[k])}: {e.probability[k].item():.1%}"
        if e.axes == ("token",):
            relevance = e.heatmap[k].detach().float().cpu().numpy()
            shown.append(tokens_html([f" {place}" for place in range(len(relevance))], relevance, title=title))
        else:
            shown.append(notebook.image_tag(picture(e, index=k), f"Relevance of example {k}; explained: {title}"))
    return "".join((*shown, table))  # plain text, which notebooks may cut and join as they like
