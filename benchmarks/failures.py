"""Failed explanations sorted by eye and by the rule from boxes: agreement and confusion.

    python -m benchmarks.failures --data ../shared/data/tiny20

``failures_by_eye.csv`` holds 90 failures of the bundled network on the validation images of tiny20 (``otsuki2024+hq``,
ID not above 0.371 under the published protocol), drawn at random (seed 42) from the 286 of 289 that have a box in the
crop. They were sorted by eye, from the photograph, the map and the box, before any rule had seen them. The rule was
chosen by the 30 of part "development"; the 60 of part "test" measure it.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import headwater as hw
from headwater.data.labelled import load_labelled
from headwater.evaluation import object_mask
from headwater.experiments.failures import KINDS
from headwater.experiments.registry import OURS
from headwater.files import write_text
from headwater.metrics.failures import failure_kinds
from headwater.models import card_of, network_input
from headwater.report.tabular import Table

LABELS = Path(__file__).with_name("failures_by_eye.csv")


@dataclass(frozen=True)
class Sorted:
    """Verdicts on the same images: by eye and by the rule.

    Attributes:
        part: of the labels, ``"test"`` or ``"development"``.
        by_eye: verdicts in the order of the images.
        by_rule: likewise.
    """

    part: str
    by_eye: Sequence[str]
    by_rule: Sequence[str]

    @property
    def agreement(self) -> int:
        """How many verdicts are the same."""
        return sum(eye == rule for eye, rule in zip(self.by_eye, self.by_rule, strict=True))

    @property
    def kappa(self) -> float:
        """Agreement beyond chance (Cohen 1960): 0 is chance, 1 is perfect."""
        count, eye, rule = len(self.by_eye), Counter(self.by_eye), Counter(self.by_rule)
        chance = sum(eye[kind] * rule[kind] for kind in KINDS) / count**2
        return (self.agreement / count - chance) / (1 - chance)

    def markdown(self) -> str:
        """The confusion table and a line on the agreement."""
        pairs = Counter(zip(self.by_eye, self.by_rule, strict=True))
        rows = [(eye, *(pairs[eye, rule] for rule in KINDS)) for eye in KINDS]
        table = Table(("by eye", *(f"rule: {kind}" for kind in KINDS)), rows).markdown()
        count, (commonest, most) = len(self.by_eye), Counter(self.by_eye).most_common(1)[0]
        return (
            f"{table}\n\nAgreement on {count} images ({self.part}): {self.agreement} ({self.agreement / count:.0%}), "
            f"Cohen's kappa {self.kappa:.2f}; always {commonest} would agree on {most}."
        )


def sort_by_rule(data: Path) -> dict[str, Sorted]:
    """Verdicts of the rule beside those by eye, by part."""
    model = hw.load_model("tiny20")
    preprocessing, method = card_of(model).preprocessing, hw.load_method(OURS, model)
    images = {image.name: image for image in load_labelled(data, "val").images}
    with LABELS.open(encoding="utf-8") as file:
        labels = list(csv.DictReader(file))
    verdicts: dict[str, str] = {}
    for start in range(0, len(labels), 10):
        chosen = [images[row["image"]] for row in labels[start : start + 10]]
        opened = [image.open() for image in chosen]
        masks = [object_mask(image, preprocessing, photo.size) for image, photo in zip(chosen, opened, strict=True)]
        heatmaps = method(network_input(model, opened)).heatmap
        kinds = failure_kinds(heatmaps, torch.stack([mask for mask in masks if mask is not None]))
        verdicts |= dict(zip((image.name for image in chosen), kinds, strict=True))
    found = {}
    for part in ("test", "development"):
        rows = [row for row in labels if row["part"] == part]
        found[part] = Sorted(part, [row["by_eye"] for row in rows], [verdicts[row["image"]] for row in rows])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder tiny20")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    text = "\n\n".join(found.markdown() for found in sort_by_rule(options.data).values())
    print(text)
    if options.out:
        write_text(options.out, text + "\n")


if __name__ == "__main__":
    main()
