"""Accuracy of the network, which shows whether the labels are those of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scipy.stats import binomtest

if TYPE_CHECKING:
    import pandas

PREDICTED_LABELS = "Labels are the network's own predictions."
_FEW = 5  # images; with fewer the test has no power
_SOURCES = {"names": "labels matched by name", "positions": "labels by position", "given": "labels as given"}


def label_source(source: str) -> str:
    """Where labels come from, in words: of column ``label_source`` of an evaluation."""
    return PREDICTED_LABELS.rstrip(".") if source == "predicted" else _SOURCES.get(source, f"labels from {source}")


@dataclass(frozen=True)
class Accuracy:
    """Images whose predicted class is the label.

    Attributes:
        right: how many.
        count: images that could be read.
        classes: of the network.
        source: of the labels, column ``label_source`` of an evaluation.
    """

    right: int
    count: int
    classes: int
    source: str

    @classmethod
    def of(cls, table: pandas.DataFrame) -> Accuracy | None:
        """From the rows of :func:`headwater.evaluate` of one network; ``None`` where columns are missing."""
        if not {"predicted", "label", "label_source", "classes"} <= set(table):
            return None
        rows = table[table["error"].isna()].drop_duplicates("image")
        if rows.empty:
            return None
        right = int((rows["predicted"] == rows["label"]).sum())
        return cls(right, len(rows), int(rows["classes"].iloc[0]), str(rows["label_source"].iloc[0]))

    @property
    def is_predicted(self) -> bool:
        """Whether the labels are the predictions, so that the share says nothing."""
        return self.source == "predicted"

    @property
    def share(self) -> float:
        """Part of the images, in [0, 1]."""
        return self.right / self.count

    @property
    def is_near_chance(self) -> bool:
        """Whether a guess among the network's classes is right as often (binomial test, one-sided, p > 0.05)."""
        if self.is_predicted or self.count < _FEW or self.classes < 2:
            return False
        test = binomtest(self.right, self.count, 1 / self.classes, alternative="greater")
        return bool(test.pvalue > 0.05)

    def __str__(self) -> str:
        if self.is_predicted:
            return PREDICTED_LABELS
        source = label_source(self.source)
        said = f"The network is right on {self.right} of {self.count} images ({self.share:.1%}; {source})."
        if self.is_near_chance:
            said += f" WARNING: no better than guessing among {self.classes} classes; are the labels this network's?"
        return said
