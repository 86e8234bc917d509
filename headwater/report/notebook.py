"""What an explanation shows of itself in a notebook: maps, probabilities, and whether relevance was conserved."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
from markupsafe import Markup, escape
from torch import Tensor

from headwater.engine.explanation import Conservation, Explanation
from headwater.report.images import shown
from headwater.report.sheet import contact_sheet
from headwater.report.tabular import Cell, Table

_MOST_MAPS = 16
_MOST_CLASSES = 5


def explanation_png(e: Explanation) -> bytes:
    """The maps of a batch on one sheet, each with its class and probability; of a large batch the first 16."""
    count = min(len(e.heatmap), _MOST_MAPS)
    titles = [f"class {int(e.target[k])}: {e.probability[k].item():.1%}" for k in range(count)]
    return contact_sheet(_coloured(e.heatmap[:count]), titles, columns=min(count, 4))


def explanation_html(e: Explanation) -> str:
    """The sheet of maps, and a table of class, probability and conservation for each."""
    count, total = min(len(e.heatmap), _MOST_MAPS), len(e.heatmap)
    rows = [
        (k, f"class {int(e.target[k])}", f"{e.probability[k].item():.1%}", *account_cells(e.conservation, k))
        for k in range(count)
    ]
    table = Table(("image", "explained", "probability", *ACCOUNT), rows, "rlrrrr").html(
        "" if count == total else f"The first {count} of {total} images."
    )
    explained = ", ".join(f"class {int(target)}" for target in e.target[:count])
    image = image_tag(explanation_png(e), f"Relevance maps of {count} images; explained: {explained}")
    return "".join((image, table))  # plain text, which notebooks may cut and join as they like


ACCOUNT = ("relevance at the output", "sum of the map", "relative error")
"""Headings of :func:`account_cells`."""


def account_cells(account: Conservation | None, image: int = 0) -> tuple[Cell, Cell, Cell]:
    """Seed, sum and error of one image; empty for methods that keep no account."""
    if account is None:
        return None, None, None
    seed, arrived, error = account.seed[image].item(), account.input[image].item(), account.error[image].item()
    return f"{seed:.4g}", f"{arrived:.4g}", f"{error:.1e}"


def class_table(probabilities: Tensor, target: int, name_of: Callable[[int], str]) -> str:
    """The most probable classes of one image or text, with the explained one marked, as an HTML table.

    Args:
        probabilities: ``(K,)``.
        target: the explained class.
        name_of: from a class's index to its name.
    """
    best = probabilities.topk(min(_MOST_CLASSES, len(probabilities))).indices.tolist()
    chosen = best if target in best else [*best, target]
    rows = [(name_of(k), f"{probabilities[k].item():.1%}", "explained" if k == target else None) for k in chosen]
    return Table(("class", "probability", ""), rows, "lrl").html()


def image_tag(image: bytes, description: str, kind: str = "png") -> Markup:
    """An ``img`` element that holds the image itself; ``description`` is its alternative text."""
    data = base64.b64encode(image).decode()
    return Markup('<img src="data:image/{};base64,{}" alt="{}" style="max-width: 100%">').format(
        kind, Markup(data), escape(description)
    )


def _coloured(heatmaps: Tensor) -> list[np.ndarray]:
    return [shown(heatmap).colours() for heatmap in heatmaps.detach().float().cpu().numpy()]
