"""How every printed number was computed, and whether ours is computed the same way.

The page is written by::

    python -c "from headwater.experiments.like_for_like import *; print(like_for_like(), end='')" > PAGE

where PAGE is ``docs/like-for-like.md``. ``O24:198`` and ``D24:129`` are lines of the papers' texts; ``visualize.py:93``
is a line of the authors' code of Otsuki et al. (github.com/keio-smilab24/LRP-for-ResNet, commit cadd126). Doublet et
al. have published no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headwater.experiments.published import CUB, IMAGENET, PUBLISHED_FAILURES, TABLES, Row, TableExperiment
from headwater.methods import QUANTIZED
from headwater.report.tabular import Cell, Table


@dataclass(frozen=True)
class Provenance:
    """How a printed row came about, beside the method that stands for it.

    Attributes:
        there: how it was computed.
        source: where that is written.
        differs: what the method does otherwise, or what is not known; empty where it computes the same.
    """

    there: str
    source: str
    differs: str = ""


@dataclass(frozen=True)
class Condition:
    """Something that all rows depend on: how it is there, where that is written, and how it is here."""

    what: str
    there: str
    source: str
    ours: str
    alike: str


_RED = "visualize.py:93-98; the map (3, H, W) does not fit the image's (H, W), so its first channel is taken, "
_RED += "patch_insdel.py:51-56"
_TEXT_ALONE = "the published code has no such method; here it follows the text"
_CAM = Provenance("pytorch-grad-cam, last block of `layer4`, predicted class", "visualize.py:69-77", "")
_SCORECAM = "`layer4`, every channel's mask scaled to [0, 1]; the unscaled channels are summed with the softmax "
_SCORECAM += "probability of the masked image as weight"
_CAPTUM_LRP = "Captum's LRP (epsilon rule), predicted class; the red channel of its map alone is ranked"
_CAPTUM_IG = "Captum's integrated gradients, 50 steps from 0, predicted class; the red channel alone is ranked"
_CAPTUM_GBP = "Captum's guided backpropagation, predicted class; the red channel alone is ranked"


def _splitting(way: str, flag: str, lines: str, quantized: bool = True) -> Provenance:
    hq = "quantized: `linspace` of 8 levels" if quantized else "not quantized"
    return Provenance(
        f"z+ sweep from the softmax probability of the predicted class, image replaced by ones; {way}; {hq}",
        f"`--skip-connection-prop-type {flag}`, src/utils.py:{lines}; src/lrp.py:111-160; visualize.py:204-215",
    )


_IV = _splitting("ratio splitting at every join", "flows_skip", "67-83; lrp_layers.py:229-244")
_III = _splitting("ratio splitting, nothing to identity skips", "latest", "29-45; lrp_layers.py:158-168")

_OTSUKI: Mapping[str, Provenance] = {
    "lrp-epsilon-published": Provenance(_CAPTUM_LRP, f"{_RED}; O24:405"),
    "integrated-gradients-published": Provenance(_CAPTUM_IG, "visualize.py:111-116; patch_insdel.py:51-56"),
    "guided-backprop-published": Provenance(_CAPTUM_GBP, "visualize.py:123-128; patch_insdel.py:51-56"),
    "deeplift-published": Provenance(
        "DeepLIFT; by what code is not published",
        "O24:350-353; no branch of visualize.py:36-155",
        "not known: Captum's, from 0, its red channel alone as of the other three",
    ),
    "gradcam": _CAM,
    "scorecam-published": Provenance(_SCORECAM, "visualize.py:78-83; scorecam.py:669-729"),
    "otsuki2024-published": _IV,
    "otsuki2024-i-published": _splitting("halves, nothing to identity skips", "simple", "48-64; lrp_layers.py:216-226"),
    "otsuki2024-ii-published": _splitting("halves at every join", "flows_skip_simple", "86-102; lrp_layers.py:247-257"),
    "otsuki2024-iii-published": _III,
    "lrp-mixture-published": Provenance(
        "epsilon rule after the eighth block, alpha1-beta0 before; by what code is not published",
        "O24:405; Table C, O24:397",
        f"not known: {_TEXT_ALONE}, the red channel alone as for the epsilon rule",
    ),
    "otsuki2024-mixture-published": Provenance(
        "the method with the mixture of rules; by what code is not published",
        "O24:407; Table C, O24:398",
        f"not known: {_TEXT_ALONE}, with the published sweep",
    ),
}
_RISE = "5,000 masks of 9 x 9 cells where `randn < 0.3`, that is 62 % shown; the map of the *label*, not of the "
_RISE += "predicted class. The text gives no numbers; these are the later code's"
_RISE_SOURCE = "D24:129; models/rise.py:31-62; visualize.py:52-65, 536-540"
_ABN = "the network's attention map; branch before `layer2` (the later code's default), features times M. That code "
_ABN += "can add a branch to a ResNet-18 alone (`layer_index` is set there only)"
_ABN_SOURCE = "D24:129; visualize.py:46-51, 485-489; attention_branch.py:251-258; models/__init__.py:124-128, 166-173"
_NO_CODE = "not known: no code is published"
_DOUBLET: Mapping[str, Provenance] = {
    "rise-published": Provenance(_RISE, _RISE_SOURCE, "the map of the predicted class, as of every other method"),
    "gradcam": Provenance(f"Grad-CAM; {_NO_CODE}, the later code's is pytorch-grad-cam", "D24:129; visualize.py:69-77"),
    "lrp-epsilon-published": Provenance(
        "LRP; the ID is that of O24's Table 1", "D24:129; D24:93; visualize.py:93-98; patch_insdel.py:51-56"
    ),
    "abn-published": Provenance(
        f"{_ABN}. The text prints an ID of 0.140, the table 0.207", f"{_ABN_SOURCE}; D24:151", "on ResNet-50"
    ),
    "doublet2024": Provenance(
        "Eq. (1) a block at a time, Eq. (2) for the linear layer", "D24:66-80", f"{_NO_CODE}; the text is followed"
    ),
    "c1c-lrp": Provenance(
        "the same inside one component of the map at 28 x 28",
        "D24:84-101; visualize.py:176-201, 337-339 for C1C",
        "Eq. (1) as above; C1C as in the code of Otsuki et al.",
    ),
    "c3-lrp": Provenance(
        "the same inside the largest contour and the largest component at 28 x 28; the threshold is not printed",
        "D24:84-109",
        f"{_NO_CODE}; threshold at the map's mean, as C1C has it",
    ),
}

CONDITIONS = (
    Condition(
        "network, ImageNet",
        "torchvision's ResNet-50, `pretrained=True`, that is `IMAGENET1K_V1`",
        "O24:325; models/__init__.py:137-140",
        "the same: V1 is what a table is measured on unless `--weights` says otherwise",
        "yes",
    ),
    Condition(
        "network, CUB",
        "ResNet-50 trained from V1, five trainings (seeds 40 to 44)",
        "O24:198, 325; D24:129; checkpoints/README.md:4-27",
        "`headwater train otsuki2024` or `doublet2024`, five seeds, given as `--model` five times",
        "yes, with five trainings",
    ),
    Condition(
        "preprocessing",
        "code: short side to 256, centre 224 x 224; texts: resized to 224 x 224",
        "data/__init__.py:144-153; O24:325; D24:121",
        "the network's own, which for V1 is the code's; `--preprocessing stretch` is the texts'",
        "yes with `crop`, as the code",
    ),
    Condition(
        "sample",
        "1,000 images, as many of each class, in a shuffled order (seed 42)",
        "O24:200; visualize.py:318-323, 381-383; README.md:33",
        "the same number, balanced, seed 42; another generator, so other images",
        "other images of the same distribution",
    ),
    Condition(
        "class",
        "the map explains the predicted class, the curves follow the label",
        "visualize.py:69-129, 349-353; patch_insdel.py:49, 134-135",
        "the same",
        "yes (RISE: see its row)",
    ),
    Condition(
        "points of the curves",
        "every 500 pixels; all pixels at or above the threshold enter; no point without a pixel",
        "patch_insdel.py:99-115; visualize.py:525-526; O24:342-349 (k pixels at point k)",
        "`published` the same; `budget` as the text: exactly k pixels",
        "`published`: yes; `budget`: as the text, not the code",
    ),
    Condition("missing pixels", "0 before normalisation", "patch_insdel.py:104, 119-120; O24:345", "the same", "yes"),
    Condition("area", "trapezoid over the points, from 0 to 1", "patch_insdel.py:226-228", "the same", "yes"),
    Condition(
        "deviations",
        "CUB: over five trainings; ImageNet: one run, none printed",
        "O24:198; D24:129",
        "over the networks given; none for one network",
        "yes, with five trainings",
    ),
    Condition(
        "significance",
        "D24 claims p < 0.05 for ID and insertion; which test is not said. O24 claims none",
        "D24:151",
        "paired t-tests of insertion, deletion and ID, one family a report, Holm; ablations against the full method",
        "not known",
    ),
    Condition(
        "accuracy (D24, Table 1)",
        "of each network on its test set",
        "D24:90-95; train.py:395-412",
        "on every image of the split; the sampled images stand in the note",
        "yes",
    ),
)
_ERRORS = (
    (
        "failed",
        "ID not above 0.371, Grad-CAM's mean; 1,000 maps, quantized",
        "O24:412",
        "the same, `--threshold`",
        "yes",
    ),
    (
        "sorted",
        "the 100 lowest ID",
        "O24:414",
        "the same, `--worst`; images without a box in the crop are counted apart",
        "yes",
    ),
    *(
        (kind, f"by eye: {what}", source, rule, "no: a rule, not an eye; 70 % agreement, see Failures")
        for kind, what, source, rule in (
            ("IA", "area too small", "O24:416, 426", "less than half of the box is attended to, mostly inside"),
            ("OA", "area too large", "O24:417, 426", "at least half of the box is attended to"),
            ("WA", "elsewhere", "O24:428, 426", "less than half of the box, mostly outside"),
        )
    ),
)


def provenance(table: str, method: str) -> Provenance:
    """How the row of a table that a method stands for was computed.

    Args:
        table: name of the experiment.
        method: of the row.

    Raises:
        KeyError: nothing is known; every printed row must be.

    >>> provenance("doublet2024-table1", "abn-published").differs
    'on ResNet-50'
    """
    known = _DOUBLET if table.startswith("doublet2024") else _OTSUKI
    found = known[method.removesuffix(QUANTIZED)]
    if table == "otsuki2024-table3" and not method.endswith(QUANTIZED):
        return Provenance(found.there.replace("quantized: `linspace` of 8 levels", "not quantized"), found.source)
    return found


def like_for_like() -> str:
    """The page of the documentation, as Markdown."""
    conditions = [(c.what, c.there, c.source, c.ours, c.alike) for c in CONDITIONS]
    parts = [
        "# Like for like",
        "What stands beside a printed number must have been computed the same way, or it must be said what differs. "
        "For every printed row of both papers: how it was computed there, what our command computes, and whether that "
        "is the same. `headwater reproduce` prints the differences below each table.",
        "`O24:198` and `D24:129` are lines of the texts of Otsuki et al. 2024 and Doublet et al.; the rest are lines "
        "of the [code of Otsuki et al.](https://github.com/keio-smilab24/LRP-for-ResNet), commit cadd126 "
        "(`patch_insdel.py` is in `metrics/`, `scorecam.py`, `lrp.py` and `lrp_layers.py` in `src/`, "
        "`attention_branch.py` in `models/`). Doublet et al. have published no code; where their text is silent, the "
        "later code is named.",
        "This page is written by `headwater.experiments.like_for_like`.",
        "## What all rows depend on",
        Table(("", "there", "source", "here", "like for like"), conditions, align="lllll").markdown(),
    ]
    for name in ("otsuki2024-table1", "otsuki2024-table2", "otsuki2024-table3", "otsuki2024-tableB"):
        parts += _section(TABLES[name])
    parts += [*_section(TABLES["otsuki2024-tableC"]), *_errors()]
    for name in ("doublet2024-table1", "doublet2024-table2"):
        parts += _section(TABLES[name])
    return "\n\n".join([*parts, _COST]) + "\n"


def _section(table: TableExperiment) -> list[str]:
    """A heading, and one line per printed row: percent, insertion / deletion / **ID**."""
    rows = [row for row in table.rows if row.published]
    data = [d for d in (CUB, IMAGENET) if any(d in row.published for row in rows)]
    accuracy = ["accuracy"] * any(row.accuracy for row in rows)
    lines = [_line(table, row, data, bool(accuracy)) for row in rows]
    beside = "; ".join(f"{row.label}, `{row.method}`" for row in table.rows if not row.published)
    columns = ("", *(f"printed, {d}" for d in data), *accuracy, "computed there", "source", "here", "like for like")
    align = "l" + "r" * (len(data) + len(accuracy)) + "llll"
    return [
        f"## {table.title}",
        f"`headwater reproduce {table.name}`; percent: insertion / deletion / **ID**. {table.note}".strip(),
        Table(columns, lines, align).markdown(),
        *([f"Measured beside them: {beside}."] if beside else []),
    ]


def _line(table: TableExperiment, row: Row, data: list[str], accuracy: bool) -> list[Cell]:
    found = provenance(table.name, row.method)
    printed = [row.published[d].markdown() if d in row.published else "" for d in data]
    test = ["{:.1f} ± {:.1f}".format(*row.accuracy) if row.accuracy else ""] * accuracy
    unknown = found.differs.startswith("not known")
    alike = found.differs if unknown else f"no: {found.differs}" if found.differs else "yes"
    return [row.label, *printed, *test, found.there, found.source, f"`{row.method}`", alike]


def _errors() -> list[str]:
    printed: dict[str, int | str] = {
        **PUBLISHED_FAILURES,
        "failed": f"{PUBLISHED_FAILURES['failed']} of {PUBLISHED_FAILURES['of']}",
    }
    rows: list[Sequence[Cell]] = [(what, printed.get(what, 100), *rest) for what, *rest in _ERRORS]
    return [
        "## Otsuki et al. 2024, Table D: failed explanations",
        "`headwater reproduce otsuki2024-tableD`; ImageNet. Agreement of the rule with the eye: "
        "[Failures](results/failures.md).",
        Table(("", "printed", "there", "source", "here", "like for like"), rows, align="lrllll").markdown(),
    ]


_COST = """## Cost

`headwater reproduce otsuki2024-timing` and `doublet2024-cost`. Times are of other machines, so only ratios are
compared. The 65.4 G multiply-accumulates "for the proposed method" (D24:125) are those of 16 forward passes of a
ResNet-50 with 200 classes (4.09 G each): the authors' later code prints them for a batch of 16 (`visualize.py:427-430`,
511), and a map costs 3.0 forward passes. Measured: [Experiments](experiments.md)."""
