"""What the papers print, and which of Headwater's methods stands for each of their rows.

Numbers are percentages, as in Table B of Otsuki et al.; those of Doublet et al. are printed as fractions there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

WEIGHTS = "ResNet50_Weights.IMAGENET1K_V1"
"""What the papers' networks have, or what their training began with. The authors' code loads
``resnet50(pretrained=True)`` (``models/__init__.py``, line 138), which is V1 in torchvision."""
IMAGENET = "ImageNet"
CUB = "CUB-200-2011"


@dataclass(frozen=True)
class Numbers:
    """Insertion, deletion and ID score in percent, as printed, with the printed deviations in the same order."""

    insertion: float
    deletion: float
    id: float
    deviations: tuple[float, float, float] | None = None

    def markdown(self) -> str:
        """As a cell of a table.

        >>> Numbers(59.5, 1.4, 58.2, (1.0, 0.0, 1.0)).markdown()
        '59.5 ± 1.0 / 1.4 ± 0.0 / **58.2 ± 1.0**'
        """
        texts = [f"{mean:.1f}" for mean in (self.insertion, self.deletion, self.id)]
        if self.deviations:
            texts = [f"{text} ± {deviation:.1f}" for text, deviation in zip(texts, self.deviations, strict=True)]
        return f"{texts[0]} / {texts[1]} / **{texts[2]}**"


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        label: as the paper calls it.
        method: the method that stands for it, see :func:`headwater.list_methods`.
        published: numbers by data set; empty for rows that the paper does not have.
        against: in ablations, the full method that the row is tested against; else it is the best baseline.
        accuracy: of the network on its test set with its deviation, in percent, as printed.
    """

    label: str
    method: str
    published: Mapping[str, Numbers] = field(default_factory=dict)
    against: str = ""
    accuracy: tuple[float, float] | None = None


@dataclass(frozen=True)
class TableExperiment:
    """A table of a paper: its rows, and a note on how to compare them."""

    name: str
    title: str
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class GridExperiment:
    """A figure that shows images with the maps of several methods.

    Attributes:
        name: of the experiment.
        title: what the figure shows.
        methods: as the authors' code computes them, with the paper's heading for each.
        ours: the same as this project computes them.
        classes: names of the classes of the paper's images by data set; without any in the data, images are drawn at
            random.
        images_in_rows: images are rows and methods columns, or the other way round.
    """

    name: str
    title: str
    methods: Mapping[str, str]
    ours: Mapping[str, str]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    images_in_rows: bool = True


_Three = tuple[float, float, float]


def _both(label: str, method: str, cub: _Three, deviations: _Three, imagenet: _Three) -> Row:
    return Row(label, method, {CUB: Numbers(*cub, deviations), IMAGENET: Numbers(*imagenet)})


def _imagenet(label: str, method: str, insertion: float, deletion: float, id_: float, against: str = "") -> Row:
    return Row(label, method, {IMAGENET: Numbers(insertion, deletion, id_)}, against)


def _cub(
    label: str,
    method: str,
    numbers: _Three,
    deviations: _Three,
    against: str = "",
    accuracy: tuple[float, float] | None = None,
) -> Row:
    return Row(label, method, {CUB: Numbers(*numbers, deviations)}, against, accuracy)


_RESNET50, _ABN = (81.5, 0.1), (64.2, 0.9)
"""Printed accuracies of the networks of Doublet et al., with their deviations."""
_OURS = "LRP for ResNet"
_LRP = _both("LRP (epsilon)", "lrp-epsilon-published", (5.8, 4.7, 1.1), (0.2, 0.1, 0.0), (9.5, 8.3, 1.1))
_BASELINES = (
    _both("integrated gradients", "integrated-gradients-published", (2.0, 1.5, 0.6), (0.1, 0.1, 0.0), (5.2, 6.2, -1.1)),
    _both("guided backprop", "guided-backprop-published", (4.2, 1.4, 2.8), (0.2, 0.1, 0.2), (11.5, 5.7, 5.7)),
    _both("Grad-CAM", "gradcam", (50.8, 5.5, 45.3), (1.5, 0.4, 1.1), (49.7, 12.6, 37.1)),
    _both("Score-CAM", "scorecam-published", (51.1, 5.4, 45.7), (1.7, 0.4, 1.4), (48.8, 13.3, 35.5)),
)
_DEEPLIFT = _both("DeepLIFT", "deeplift-published", (2.4, 1.8, 0.6), (0.2, 0.1, 0.1), (5.6, 6.3, -0.7))
_METHOD = _both(f"{_OURS}, quantized", "otsuki2024-published+hq", (59.5, 1.4, 58.2), (1.0, 0.0, 1.0), (56.3, 1.8, 54.5))
_LRP_SUMMED = Row("LRP (epsilon), channels summed", "lrp-epsilon")
_DEEPLIFT_SUMMED = Row("DeepLIFT, channels summed", "deeplift")
_BESIDE = (
    Row(f"{_OURS}, exact, quantized", "otsuki2024+hq"),
    Row(f"{_OURS}, exact, not quantized", "otsuki2024"),
    _LRP_SUMMED,
    Row("integrated gradients, channels summed", "integrated-gradients"),
    Row("guided backprop, channels summed", "guided-backprop"),
    Row("Score-CAM as in pytorch-grad-cam", "scorecam"),
    Row("random, quantized", "random+hq"),
)
_HQ = "The paper's maps are quantized (8 levels); under the published protocol that alone raises ID, see -table3."
_FULL, _FULL_EXACT, _FULL_PLAIN = "otsuki2024-published+hq", "otsuki2024+hq", "otsuki2024"
_MIXTURE = "otsuki2024-mixture"

_TABLES = (
    TableExperiment(
        "otsuki2024-table1",
        "Otsuki et al. 2024, Table 1: baselines",
        (_LRP, *_BASELINES, _METHOD, *_BESIDE),
        _HQ,
    ),
    TableExperiment(
        "otsuki2024-tableB",
        "Otsuki et al. 2024, Table B: all baselines",
        (_LRP, *_BASELINES[:2], _DEEPLIFT, *_BASELINES[2:], _METHOD, *_BESIDE, _DEEPLIFT_SUMMED),
        _HQ,
    ),
    TableExperiment(
        "otsuki2024-table2",
        "Otsuki et al. 2024, Table 2: splitting at joins",
        (
            _imagenet("(i) symmetric, identity out", "otsuki2024-i-published+hq", 54.3, 3.3, 51.0, against=_FULL),
            _imagenet("(ii) symmetric, in", "otsuki2024-ii-published+hq", 55.3, 3.6, 51.7, against=_FULL),
            _imagenet("(iii) ratio, identity out", "otsuki2024-iii-published+hq", 54.3, 3.3, 51.0, against=_FULL),
            _imagenet("(iv) ratio, in: the method", _FULL, 56.3, 1.8, 54.5),
            Row("(i), exact", "otsuki2024-i+hq", against=_FULL_EXACT),
            Row("(ii), exact", "otsuki2024-ii+hq", against=_FULL_EXACT),
            Row("(iii), exact", "otsuki2024-iii+hq", against=_FULL_EXACT),
            Row("(iv), exact", _FULL_EXACT, against=_FULL),
            Row("(i), exact, not quantized", "otsuki2024-i", against=_FULL_PLAIN),
            Row("(ii), exact, not quantized", "otsuki2024-ii", against=_FULL_PLAIN),
            Row("(iii), exact, not quantized", "otsuki2024-iii", against=_FULL_PLAIN),
            Row("(iv), exact, not quantized", _FULL_PLAIN, against=_FULL_EXACT),
        ),
    ),
    TableExperiment(
        "otsuki2024-table3",
        "Otsuki et al. 2024, Table 3: heat quantization",
        (
            _imagenet("without", "otsuki2024-iii-published", 44.2, 6.6, 37.6, against="otsuki2024-iii-published+hq"),
            _imagenet("with", "otsuki2024-iii-published+hq", 54.3, 3.3, 51.0),
            Row("the method, without", _FULL_PLAIN, against=_FULL_EXACT),
            Row("the method, with", _FULL_EXACT),
            Row("Grad-CAM, without", "gradcam", against="gradcam+hq"),
            Row("Grad-CAM, with", "gradcam+hq"),
            Row("random, without", "random", against="random+hq"),
            Row("random, with", "random+hq"),
        ),
        "The printed row with quantization equals rows (i) and (iii) of Table 2; (iii) is measured.",
    ),
    TableExperiment(
        "otsuki2024-tableC",
        "Otsuki et al. 2024, Table C: rules",
        (
            _imagenet("LRP (epsilon)", "lrp-epsilon-published", 9.5, 8.3, 1.1, against=_FULL),
            _imagenet("LRP (mixture)", "lrp-mixture-published", 8.6, 7.5, 1.1, against=_FULL),
            _imagenet(f"{_OURS} (mixture), quantized", f"{_MIXTURE}-published+hq", 64.6, 0.2, 64.4, against=_FULL),
            _imagenet(f"{_OURS} (z+), quantized", _FULL, 56.3, 1.8, 54.5),
            replace(_LRP_SUMMED, against=_FULL_EXACT),
            Row("LRP (mixture), channels summed", "lrp-mixture", against=_FULL_EXACT),
            Row(f"{_OURS} (mixture), exact, quantized", f"{_MIXTURE}+hq", against=_FULL_EXACT),
            Row(f"{_OURS} (z+), exact, quantized", _FULL_EXACT, against=_FULL),
            Row(f"{_OURS} (mixture), exact, not quantized", _MIXTURE, against=_FULL_EXACT),
        ),
    ),
    TableExperiment(
        "doublet2024-table1",
        "Doublet et al., Table 1: baselines",
        (
            _cub("RISE", "rise-published", (37.1, 4.3, 32.8), (1.5, 0.4, 0.4), accuracy=_RESNET50),
            _cub("Grad-CAM", "gradcam", (46.6, 15.6, 31.0), (1.9, 0.8, 2.0), accuracy=_RESNET50),
            _cub("LRP", "lrp-epsilon-published", (6.3, 5.1, 1.1), (0.7, 0.6, 0.1), accuracy=_RESNET50),
            _cub("ABN", "abn-published", (28.2, 7.5, 20.7), (5.2, 1.1, 5.4), accuracy=_ABN),
            _cub("C3-LRP", "c3-lrp", (68.5, 1.7, 66.8), (1.5, 0.1, 1.5), accuracy=_RESNET50),
            Row("RISE, 0.3 of the cells shown", "rise"),
            _LRP_SUMMED,
            Row("ABN, branch after `layer3`", "abn"),
            Row("random", "random"),
        ),
    ),
    TableExperiment(
        "doublet2024-table2",
        "Doublet et al., Table 2: what the choice of a region does",
        (
            _cub("(i) none", "doublet2024", (25.0, 1.8, 23.2), (1.7, 0.1, 1.7), "c3-lrp"),
            _cub("(ii) C1C", "c1c-lrp", (64.2, 4.2, 60.0), (0.9, 0.4, 0.6), "c3-lrp"),
            _cub("(iii) C3", "c3-lrp", (68.5, 1.7, 66.8), (1.5, 0.1, 1.5)),
        ),
    ),
)
_FIG5 = {
    "lrp-epsilon": "LRP (epsilon)",
    "integrated-gradients": "integrated gradients",
    "guided-backprop": "guided backprop",
    "gradcam": "Grad-CAM",
    "scorecam": "Score-CAM",
}
_FIG_E = {name: _FIG5[name] for name in ("lrp-epsilon", "gradcam", "scorecam")}
_FIG4 = {"rise": "RISE", "gradcam": "Grad-CAM", "lrp-epsilon": "LRP", "abn": "ABN", "c3-lrp": "C3-LRP"}
_PRINTED, _EXACT = {_FULL: _OURS}, {_FULL_PLAIN: _OURS}


def _as_published(headings: Mapping[str, str]) -> dict[str, str]:
    """The same methods as the papers computed them."""
    computed_alike = ("gradcam", "c3-lrp")
    return {name if name in computed_alike else f"{name}-published": text for name, text in headings.items()}


def _variants(headings: Mapping[str, str]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Composites with their headings, as published and quantized; and the same, exact."""
    return {f"{name}-published+hq": text for name, text in headings.items()}, headings


_GRIDS = (
    GridExperiment(
        "otsuki2024-fig5",
        "Otsuki et al. 2024, Fig. 5: maps of each method",
        _as_published(_FIG5) | _PRINTED,
        _FIG5 | _EXACT,
        {"cub": ("Brandt Cormorant", "Savannah Sparrow"), "imagenet": ("Sock", "Bustard", "Bee")},
    ),
    GridExperiment(
        "otsuki2024-fig6",
        "Otsuki et al. 2024, Fig. 6: ablation of the splitting",
        *_variants({"otsuki2024-i": "(i) symmetric, identity out", "otsuki2024": "(iv) ratio, in"}),
    ),
    GridExperiment(
        "otsuki2024-figA",
        "Otsuki et al. 2024, Fig. A: heat quantization",
        {"otsuki2024-published": "without", "otsuki2024-published+hq": "with heat quantization"},
        {"otsuki2024": "without", "otsuki2024+hq": "with heat quantization"},
        {"imagenet": ("Ping Pong Ball",)},
    ),
    GridExperiment(
        "otsuki2024-figB",
        "Otsuki et al. 2024, Fig. B: symmetric and ratio splitting",
        *_variants({"otsuki2024-ii": "symmetric", "otsuki2024": "ratio"}),
        {"imagenet": ("Beacon",)},
    ),
    GridExperiment(
        "otsuki2024-figC",
        "Otsuki et al. 2024, Fig. C: identity skips out and in, symmetric splitting",
        *_variants({"otsuki2024-i": "(i)", "otsuki2024-ii": "(ii)"}),
        {"imagenet": ("African Elephant",)},
    ),
    GridExperiment(
        "otsuki2024-figE",
        "Otsuki et al. 2024, Fig. E: further maps",
        _as_published(_FIG_E) | _PRINTED,
        _FIG_E | _EXACT,
        {"imagenet": ("Water Ouzel", "Arabian Camel", "Ram")},
        images_in_rows=False,
    ),
    GridExperiment(
        "otsuki2024-figF",
        "Otsuki et al. 2024, Fig. F: further maps",
        _as_published(_FIG_E) | _PRINTED,
        _FIG_E | _EXACT,
        {"imagenet": ("Wombat",), "cub": ("Rock Wren", "Geococcyx")},
        images_in_rows=False,
    ),
    GridExperiment(
        "doublet2024-fig4",
        "Doublet et al., Fig. 4: maps of each method",
        _as_published(_FIG4),
        _FIG4,
    ),
)
TABLES: Mapping[str, TableExperiment] = {e.name: e for e in _TABLES}
GRIDS: Mapping[str, GridExperiment] = {e.name: e for e in _GRIDS}

FAILURE_THRESHOLD = 0.371
"""An explanation fails when its ID is not above this: Grad-CAM's mean in the paper (Sec. D.4)."""
PUBLISHED_FAILURES = {"failed": 311, "of": 1000, "IA": 40, "OA": 25, "WA": 35}
