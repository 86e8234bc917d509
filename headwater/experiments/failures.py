"""Error analysis: images whose explanation failed, the worst of them sorted and shown (Otsuki et al., Sec. D.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from headwater.data.labelled import LabelledImage
from headwater.data.preprocessing import seen
from headwater.errors import InputError
from headwater.evaluation import object_mask
from headwater.experiments.grid import overlaid
from headwater.experiments.published import PUBLISHED_FAILURES
from headwater.methods import load_method
from headwater.metrics.failures import KINDS, Failure, attended_region, overlap
from headwater.models import card_of, network_input
from headwater.report.images import Style
from headwater.report.sheet import contact_sheet
from headwater.report.tabular import Cell, Table

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class FailedImage:
    """One of the worst explanations.

    Attributes:
        image: which.
        id: its ID score.
        photo: what the network saw; ``shown``: the same with the map laid over it; both RGB ``(H, W, 3)``, uint8.
        attended: area of the attended region, part of the image.
        covered: part of the box that is attended to; ``None`` without a box.
        inside: part of the attended region that is in the box; ``None`` without a box.
        box: area of the box, part of the image; ``None`` without a box.
        kind: IA, OA or WA; ``None`` without a box.
    """

    image: LabelledImage
    id: float
    photo: np.ndarray
    shown: np.ndarray
    attended: float
    covered: float | None
    inside: float | None
    box: float | None
    kind: Failure | None


@dataclass(frozen=True)
class ErrorAnalysis:
    """How many explanations failed, and the worst of them, the worst first."""

    failed: int
    of: int
    threshold: float
    worst: tuple[FailedImage, ...]

    def markdown(self) -> str:
        """Counts beside the printed ones."""
        counts = Counter(w.kind for w in self.worst)
        p = PUBLISHED_FAILURES
        rows: list[tuple[Cell, ...]] = [
            (f"failed: ID not above {self.threshold}", f"{p['failed']} of {p['of']}", f"{self.failed} of {self.of}"),
            ("looked at", 100, len(self.worst)),
        ]
        if counts[None] < len(self.worst):
            rows += [(f"{kind}: {text}", p[kind], counts[kind]) for kind, text in KINDS.items()]
        if counts[None]:
            rows.append(("not sorted: no box in the crop; yours to sort, see `failures.csv`", None, counts[None]))
        table = Table(("", "printed, ImageNet", "measured"), rows).markdown()
        return f"{table}\n\nPrinted: sorted by eye. Measured: sorted by the boxes, see `headwater.metrics.failures`."

    def csv(self) -> str:
        """One line per image; ``kind`` is empty for the reader to fill in where there is no box."""
        rows: list[tuple[Cell, ...]] = []
        for w in self.worst:
            numbers = (
                None if value is None else f"{value:.6f}" for value in (w.id, w.attended, w.covered, w.inside, w.box)
            )
            rows.append((w.image.name, w.image.label, *numbers, w.kind))
        columns = ("image", "label", "id", "attended_area", "box_covered", "inside_box", "box_area", "kind")
        return Table(columns, rows).csv()

    def sheet(self, columns: int = 5, caption: str = "") -> bytes:
        """Photo and map of each, as PNG; with a box to tick where there is no kind."""
        images, titles = [], []
        for w in self.worst:
            images += [w.photo, w.shown]
            titles += [w.image.name.rsplit("/", 1)[-1][:18], f"{w.kind or '[ ]IA [ ]OA [ ]WA'}  ID {w.id:.2f}"]
        return contact_sheet(images, titles, columns=2 * columns, side=1.5, caption=caption)

    def examples(self, caption: str = "") -> bytes:
        """The worst of each kind, photo and map, as PNG (Fig. D).

        Raises:
            InputError: no image has a kind.
        """
        images, titles = [], []
        for kind, text in KINDS.items():
            of_kind = next((w for w in self.worst if w.kind == kind), None)
            if of_kind is not None:
                images += [of_kind.photo, of_kind.shown]
                titles += [f"{kind}: {text}", f"ID {of_kind.id:.2f}"]
        if not images:
            raise InputError("no failed explanation has a box to sort it by")
        return contact_sheet(images, titles, columns=2, caption=caption)


def analyse_errors(
    model: nn.Module,
    method: str,
    table: pandas.DataFrame,
    images: Sequence[LabelledImage],
    threshold: float,
    count: int = 100,
    measure: str = "id_published",
    batch_size: int = 8,
    style: Style | None = None,
) -> ErrorAnalysis:
    """Sort the ``count`` lowest ID scores among those not above ``threshold``.

    Args:
        model: the network.
        method: whose maps they are.
        table: rows of :func:`headwater.evaluate`.
        images: the data set that the rows are of; their labels are the rows'.
        threshold: an explanation fails when its ID is not above it.
        count: failed images to sort.
        measure: column of the table.
        batch_size: images at a time.
        style: colours of the maps shown.
    """
    rows = table[(table["method"] == method) & table["error"].isna()]
    failed = rows[~(rows[measure] > threshold)].sort_values([measure, "image"]).head(count)
    by_name = {image.name: image for image in images}
    preprocessing = card_of(model).preprocessing
    explain, worst = load_method(method, model), list[FailedImage]()
    for start in range(0, len(failed), batch_size):
        part = failed.iloc[start : start + batch_size]
        chosen = [replace(by_name[name], label=label) for name, label in zip(part["image"], part["label"], strict=True)]
        opened = [image.open() for image in chosen]
        x = network_input(model, opened)
        heatmaps = explain(x).heatmap
        for image, photo, given, heatmap, score in zip(
            chosen, opened, x, heatmaps.split(1), part[measure].tolist(), strict=True
        ):
            mask = object_mask(image, preprocessing, photo.size)
            shown = seen(given, preprocessing)
            found = None if mask is None else overlap(heatmap, mask[None].to(heatmap.device))
            worst.append(
                FailedImage(
                    image,
                    score,
                    np.asarray(shown),
                    np.asarray(overlaid(shown, heatmap[0], style)),
                    attended=attended_region(heatmap).float().mean().item(),
                    covered=None if found is None else found.covered.item(),
                    inside=None if found is None else found.inside.item(),
                    box=None if mask is None else mask.mean().item(),
                    kind=None if found is None else found.kinds()[0],
                )
            )
    return ErrorAnalysis(int((~(rows[measure] > threshold)).sum()), len(rows), threshold, tuple(worst))
