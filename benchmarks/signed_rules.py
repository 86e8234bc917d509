"""Rules by contributions of both signs: which threshold keeps relevance bounded, and what it does to a trained map.

    python -m benchmarks.signed_rules conservation --data ../shared/data
    python -m benchmarks.signed_rules maps --data ../shared/data

``conservation``: a dozen diverse networks with random weights, the bundled one and, where its package is installed
(see benchmarks/efficientnet_lite0.py), EfficientNet-Lite0 with ImageNet weights, the rule on every linear operation.
``maps``: insertion and deletion of the bundled network's maps, and their rank correlation with the textbook rule's.
--data holds ``tiny20`` and ``imagenet-sample``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import headwater as hw
from benchmarks.architectures import ARCHITECTURES, build, everywhere, explain
from headwater.composites import Last
from headwater.data.labelled import load_labelled
from headwater.metrics import rank_correlation
from headwater.models import network_input
from headwater.report.tabular import Table
from headwater.rules import AlphaBeta, Epsilon, Gamma, LinearRule, SignedRule, ZPlus

DOZEN = (
    *("resnet18", "resnet50", "efficientnet_b0", "mobilenet_v3_small", "convnext_tiny", "densenet121", "vit_b_16"),
    *("swin_t", "regnet_x_400mf", "googlenet", "vgg16_bn", "timm:efficientnet_lite0"),
)
THRESHOLDS = (0.0, 0.01, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Subject:
    """A network and images for it."""

    name: str
    model: nn.Module
    images: Tensor


def rules() -> list[LinearRule]:
    """Every rule that is compared, without a stabiliser that could do the threshold's work."""
    signed: tuple[SignedRule, ...] = (Gamma(0.25, eps=0.0), Epsilon(eps=0.0))
    return [AlphaBeta(), *(replace(rule, threshold=t) for rule in signed for t in THRESHOLDS)]


def subjects(data: Path) -> Iterator[Subject]:
    """Networks with random weights on noise, then trained ones on images."""
    known = {architecture.name: architecture for architecture in ARCHITECTURES}
    for name in DOZEN:
        size = known[name].sizes[0]
        noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        yield Subject(name, build(known[name], size), noise)
    yield bundled(data, 16)[0]
    model = hw.load_model("efficientnet-lite0")
    photos = [image.open() for image in load_labelled(data / "imagenet-sample").sample(2)]
    yield Subject("EfficientNet-Lite0, trained", model, network_input(model, photos))


def bundled(data: Path, count: int) -> tuple[Subject, Tensor]:
    """The bundled network, validation images of tiny20, and their labels."""
    model = hw.load_model("tiny20")
    images = load_labelled(data / "tiny20", "val").sample(count)
    x = torch.stack([model.card.preprocessing(image.open()) for image in images])
    return Subject("tiny20, trained", model, x), torch.tensor([image.label for image in images])


def growth(e: hw.Explanation) -> float:
    """How many times the seed the image's absolute relevance is, for the worst image."""
    assert e.relevance is not None and e.conservation is not None
    return float((e.relevance.double().abs().flatten(1).sum(1) / e.conservation.seed.abs()).max())


def conservation(data: Path) -> str:
    """The worst of all networks for each rule as Markdown; each network's numbers are printed on the way."""
    worst: dict[LinearRule, list[tuple[float, float, float, str]]] = {rule: [] for rule in rules()}
    for subject in subjects(data):
        for rule, found in worst.items():
            try:
                e, *errors = explain(hw.LRP(subject.model, everywhere(rule)), subject.images)
                found.append((max(errors), errors[0], growth(e), subject.name))
            except AssertionError:  # the map overflows
                found.append((float("inf"), float("inf"), float("inf"), subject.name))
            print(f"{subject.name:28} {rule!s:64} {found[-1][0]:8.1e} {found[-1][2]:8.1e}", flush=True)
    rows = []
    for rule, found in worst.items():
        cut, image, most = (max(values) for values in list(zip(*found, strict=True))[:3])
        kept = sum(error <= 1e-5 for error, *_ in found)
        threshold = f"{rule.threshold:g}" if isinstance(rule, SignedRule) else ""
        errors = (f"{kept} of {len(found)}", f"{image:.0e}", f"{cut:.0e}", f"{most:.1e}")
        rows.append((type(rule).__name__, threshold, *errors))
    columns = ("conserve to 1e-5", "worst error at the image", "worst error at a cut", "most growth")
    return Table(("rule", "threshold", *columns), rows).markdown()


def maps(data: Path) -> str:
    """What thresholds do to the bundled network's maps, with the rule at the classifier alone and everywhere."""
    (subject, labels), base = bundled(data, 40), hw.load_composite("otsuki2024")
    rows = []
    for where in ("classifier", "everywhere"):
        plain: dict[str, Tensor] = {}
        for rule in (ZPlus(), *rules()):
            composite = everywhere(rule) if where == "everywhere" else base.prepend((Last(), rule), name="mine")
            e = hw.LRP(subject.model, composite)(subject.images)
            assert e.conservation is not None
            error = float(e.conservation.error.max())
            kind, threshold = type(rule).__name__, f"{rule.threshold:g}" if isinstance(rule, SignedRule) else ""
            if threshold == "0" and error <= 1e-5:
                plain[kind] = e.heatmap
            correlation = ""
            if kind in plain:
                correlation = f"{rank_correlation(e.heatmap.flatten(1), plain[kind].flatten(1)).mean():.3f}"
            measured = hw.insertion_deletion(subject.model, subject.images, e.heatmap, labels, "budget", step=82)
            rows.append((where, kind, threshold, f"{error:.0e}", correlation, f"{measured.id.mean():.3f}"))
            print(*rows[-1], flush=True)
    columns = ("where", "rule", "threshold", "error", "rank correlation with threshold 0", "ID, `budget`")
    return Table(columns, rows, align="llrrrr").markdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("conservation", "maps"))
    parser.add_argument("--data", type=Path, required=True, help="holds tiny20 and imagenet-sample")
    arguments = parser.parse_args()
    print({"conservation": conservation, "maps": maps}[arguments.what](arguments.data))


if __name__ == "__main__":
    main()
