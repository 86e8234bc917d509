"""The research behind the method ``headwater``: which rules, which scales, measured for what a map is asked.

    python -m benchmarks.better_map --data ../shared/data

Every candidate is a composite (which rule at the classifier, which in the last blocks) and a way to take scales
together. ``choose`` measures all of them on training images of tiny20 and on one half of the photographs; ``report``
measures ``headwater``, ``otsuki2024`` and the baselines on the other half. --data holds ``tiny20`` and
``imagenet-sample``; EfficientNet-Lite0 takes part where its package is installed. The page is
docs/results/better-map.md; the rows that it is made of are kept in --out, and those that are there are not measured
again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

import headwater as hw
from benchmarks.results import FEWER, measured
from headwater.composites import Classifier, LastBlocks
from headwater.data.labelled import LabelledImage, load_labelled
from headwater.engine.scales import enlarge, mean_of_scales
from headwater.files import write_text
from headwater.methods import load_method
from headwater.metrics import randomisation, rank_correlation, relevance_mass
from headwater.metrics.statistics import paired_p_values, summarise
from headwater.report.tabular import Cell, Table
from headwater.rules import AlphaBeta, Epsilon, Rule

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "better-map.md"
Maps = Callable[[Tensor, Tensor], Tensor]
"""From images and classes to maps ``(N, H, W)``."""


def composites() -> dict[str, hw.Composite]:
    """The candidates for the rules, by what is said about them."""
    base = hw.load_composite("otsuki2024")

    def signed(rule: Rule, part: float | None = None, contrast: float = 0.0) -> hw.Composite:
        last = () if part is None else ((LastBlocks(part), AlphaBeta()),)
        return replace(base.prepend((Classifier(), rule), *last, name="candidate", strict=False), contrast=contrast)

    return {
        "z+": base,
        "z+; contrast 1": replace(base, contrast=1.0),
        "epsilon; alpha-beta in the last quarter": signed(Epsilon(), 0.25),
        "alpha-beta, centred; alpha-beta in the last quarter": signed(AlphaBeta(centred=True), 0.25),
        "epsilon": signed(Epsilon()),
        "alpha-beta": signed(AlphaBeta()),
        "epsilon, centred": signed(Epsilon(centred=True)),
        "alpha-beta, centred": signed(AlphaBeta(centred=True)),
        "alpha-beta, centred; alpha-beta in the last half": signed(AlphaBeta(centred=True), 0.5),
        "alpha-beta, centred; alpha-beta from the last block on": signed(AlphaBeta(centred=True), 0.0),
        "the same; contrast 0.5": signed(AlphaBeta(centred=True), 0.0, 0.5),
        "the same; contrast 1": signed(AlphaBeta(centred=True), 0.0, 1.0),
    }


def every_cut(e: hw.Explanation) -> Tensor:
    """The trial's mean: every cut and the image count the same."""
    return torch.stack(list(e.scales.values())).mean(0)


def resolutions(e: hw.Explanation, part: float = 1.0) -> Tensor:
    """Every resolution counts the same; with ``part`` below 1 only the coarsest of them."""
    sizes = list(dict.fromkeys(maps.shape[1:] for maps in e.coarse.values()))
    kept = set(sizes[: max(1, round(part * len(sizes)))])
    mean = mean_of_scales({n: maps for n, maps in e.coarse.items() if maps.shape[1:] in kept}, _size(e))
    assert mean is not None
    return mean.to(e.heatmap.dtype)


def resolutions_and_image(e: hw.Explanation, coarsened: bool = False) -> Tensor:
    """Every resolution and the image's count the same; the image's map may be summed over 2 x 2 pixels first."""
    image = e.scales["image"]
    mean = mean_of_scales({**e.coarse, "image": _coarsened(image) if coarsened else image}, _size(e))
    assert mean is not None
    return mean.to(e.heatmap.dtype)


def last_cut(e: hw.Explanation) -> Tensor:
    return enlarge(next(iter(e.coarse.values())), _size(e)).to(e.heatmap.dtype)


def _coarsened(maps: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(maps[:, None], 2, ceil_mode=True, divisor_override=1)[:, 0].double()


def _size(e: hw.Explanation) -> tuple[int, int]:
    assert e.relevance is not None
    return e.relevance.shape[2], e.relevance.shape[3]


SCALES: dict[str, Callable[[hw.Explanation], Tensor]] = {
    "image": lambda e: e.scales["image"],
    "every cut and the image": every_cut,
    "every resolution": resolutions,
    "every resolution and the image": resolutions_and_image,
    "every resolution and the image, coarsened": partial(resolutions_and_image, coarsened=True),
    "coarser half of the resolutions": partial(resolutions, part=0.5),
    "last cut": last_cut,
}


# -- what a map is asked ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A network with images, their labels, and mosaics of four images of different classes, ``(M, 3, 2H, 2W)``."""

    name: str
    model: nn.Module
    x: Tensor
    labels: Tensor
    mosaics: Tensor
    mosaic_labels: Tensor
    points: int

    @classmethod
    def of(cls, name: str, model: nn.Module, images: tuple[LabelledImage, ...], mosaics: int, points: int) -> Subject:
        x = torch.stack([model.card.preprocessing(image.open()) for image in images])
        labels = torch.tensor([image.label for image in images])
        groups = _of_different_classes(labels, mosaics)
        tiles = x[groups]
        rows = [torch.cat([tiles[:, k], tiles[:, k + 1]], 3) for k in (0, 2)]
        return cls(name, model, x, labels, torch.cat(rows, 2), labels[groups], points)

    def step(self) -> int:
        return -(-self.x.shape[2] * self.x.shape[3] // self.points)

    def classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """The first and the second class of each image, and one half of all classes away from the first."""
        with torch.no_grad():
            logits = self.model(self.x)
        first, second = logits.topk(2, 1).indices.unbind(1)
        return first, second, (first + logits.shape[1] // 2) % logits.shape[1]


def _of_different_classes(labels: Tensor, count: int) -> Tensor:
    """Places of the images of each mosaic, ``(count, 4)``: windows over the images, classes that differ."""
    found, begin = [], 0
    while len(found) < count and begin < len(labels):
        group: list[int] = []
        for k in range(begin, begin + len(labels)):
            place = k % len(labels)
            if labels[place] not in labels[group]:
                group.append(place)
            if len(group) == 4:
                break
        found.append(group)
        begin += 4
    return torch.tensor(found)


def id_of(subject: Subject, maps: Tensor, protocol: str = "budget") -> list[float]:
    p = subject.model.card.preprocessing
    measured = hw.insertion_deletion(
        subject.model, subject.x, maps, subject.labels, protocol, subject.step(), mean=p.mean, std=p.std
    )
    return measured.id.tolist()


def in_quarter(maps: Tensor, quarter: int) -> Tensor:
    """Part of the positive relevance of mosaics that lies in one quarter."""
    mask = torch.zeros_like(maps)
    rows, columns = maps.shape[1] // 2, maps.shape[2] // 2
    row, column = divmod(quarter, 2)
    mask[:, row * rows : (row + 1) * rows, column * columns : (column + 1) * columns] = 1
    return relevance_mass(maps, mask)


def correlation(first: Tensor, second: Tensor) -> float:
    return float(rank_correlation(first.flatten(1), second.flatten(1)).mean())


def _batches(x: Tensor, classes: Tensor, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(x.split(size), classes.split(size), strict=True)


# -- choosing ---------------------------------------------------------------------------------------------------------


def measure_composite(subject: Subject, composite: hw.Composite) -> dict[str, dict[str, float | list[float]]]:
    """Every way to take scales together, for one composite: ID, class correlations, mosaics."""
    lrp = hw.LRP(subject.model, composite)

    def maps(x: Tensor, classes: Tensor) -> dict[str, Tensor]:
        parts = [{n: take(lrp(a, c, start="one")) for n, take in SCALES.items()} for a, c in _batches(x, classes)]
        return {name: torch.cat([part[name] for part in parts]) for name in SCALES}

    first, second, unrelated = (maps(subject.x, classes) for classes in subject.classes())
    quarters = [maps(subject.mosaics, subject.mosaic_labels[:, k]) for k in range(4)]
    return {
        name: {
            "id": id_of(subject, first[name]),
            "second": correlation(first[name], second[name]),
            "unrelated": correlation(first[name], unrelated[name]),
            "mosaic": float(torch.stack([in_quarter(q[name], k) for k, q in enumerate(quarters)]).mean()),
        }
        for name in SCALES
    }


def choose(subject: Subject, kept: Rows) -> str:
    """All candidates as a table."""
    rows: list[tuple[Cell, ...]] = []
    for name, composite in composites().items():
        key = f"choose/{subject.name}/{name}"
        found = kept.get(key, partial(measure_composite, subject, composite))
        for scales, row in found.items():
            s = summarise(row["id"])
            cells = (f"{row['second']:.2f}", f"{row['unrelated']:.2f}", f"{row['mosaic']:.2f}")
            rows.append((name, scales, f"{s.mean:.3f} ± {s.high - s.mean:.3f}", *cells))
    return Table(
        ("rules", "scales", "ID, `budget`", "first/second", "first/unrelated", "in the target's quarter"),
        rows,
        align="llrrrr",
    ).markdown()


# -- reporting --------------------------------------------------------------------------------------------------------

METHODS = ("headwater", "otsuki2024", "gradcam", "scorecam", FEWER, "random")
SLOW = ("scorecam", FEWER)
Made = Callable[[nn.Module], Callable[..., hw.Explanation]]


def sensitivity(subject: Subject, make: Made) -> dict[str, float | list[float]]:
    """How far a method's maps depend on the class and on the weights."""
    method = make(subject.model)
    first, second, unrelated = subject.classes()

    def maps(x: Tensor, classes: Tensor) -> Tensor:
        return torch.cat([method(a, c).heatmap for a, c in _batches(x, classes)])

    heatmaps = maps(subject.x, first)
    quarters = [in_quarter(maps(subject.mosaics, subject.mosaic_labels[:, k]), k) for k in range(4)]
    few = slice(0, 20)
    result = randomisation(subject.model, make, subject.x[few], first[few], comparisons=4)
    return {
        "second": correlation(heatmaps, maps(subject.x, second)),
        "unrelated": correlation(heatmaps, maps(subject.x, unrelated)),
        "mosaic": float(torch.stack(quarters).mean()),
        "random": result.correlation.mean(0).tolist(),
    }


def times(subject: Subject, rounds: int = 5) -> dict[str, list[float]]:
    """Seconds per image of the fast methods, each in turn for several rounds."""
    x, classes = subject.x[:8], subject.classes()[0][:8]
    made = {name: load_method(name, subject.model) for name in METHODS if name not in SLOW}
    found: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds + 1):
        for name, method in made.items():
            began = time.perf_counter()
            method(x, classes)
            if number:  # the first round traces, and imports what a library needs
                found[name].append((time.perf_counter() - began) / len(x))
    return found


def report(subject: Subject, comparison: str, model: str, data: Path, kept: Rows) -> str:
    """``headwater`` and what it is compared with as a table."""
    table, _ = measured(comparison, model, data, ROOT / "runs" / "results")

    def values(method: str, column: str) -> list[float]:
        return table[table["method"] == method].sort_values("image")[column].tolist()

    others = [name for name in METHODS if name != "headwater"]
    p_values = paired_p_values(
        {
            (name, suffix): (values(f"headwater{suffix}", column), values(f"{name}{suffix}", column))
            for suffix, column in (("", "id_budget"), ("+hq", "id_published"))
            for name in others
            if (table["method"] == f"{name}{suffix}").any()
        }
    )
    seconds = kept.get(f"times/{subject.name}", partial(times, subject))
    rows = []
    for name in METHODS:
        cells: list[Cell] = []
        for suffix, column in (("", "id_budget"), ("+hq", "id_published")):
            ids = values(f"{name}{suffix}", column)
            s = summarise(ids) if ids else None
            p = p_values.get((name, suffix))
            cells += [f"{s.mean:.3f} ± {s.high - s.mean:.3f}" if s else None, f"{p:.1e}" if p is not None else None]
        found: dict[str, float | list[float]] = {}
        if name not in SLOW:
            found = kept.get(f"report/{subject.name}/{name}", partial(sensitivity, subject, partial(load_method, name)))
        numbers = [f"{found[m]:.2f}" if m in found else None for m in ("second", "unrelated", "mosaic")]
        steps = " ".join(f"{c:.2f}" for c in found["random"]) if found else None  # type: ignore[union-attr]
        ratios = [a / b for a, b in zip(seconds.get(name, ()), seconds["otsuki2024"], strict=False)]
        took = f"{statistics.median(ratios):.2f}" if ratios else None
        rows.append((f"`{name}`", *cells, *numbers, steps, took))
    columns = ("method", "ID, `budget`", "p", "quantized, `published`", "p", "first/second", "first/unrelated")
    return Table((*columns, "in the target's quarter", "random weights", "time"), rows).markdown()


@dataclass(frozen=True)
class Rows:
    """Measured rows in a file, so that what is there is not measured again."""

    path: Path

    def get(self, key: str, measure: Callable[[], Mapping[str, object]]) -> dict:  # type: ignore[type-arg]
        known = json.loads(self.path.read_text()) if self.path.exists() else {}
        if key not in known:
            began = time.monotonic()
            known = {**known, key: measure()}
            write_text(self.path, json.dumps(known, indent=1))
            print(f"{key}: {time.monotonic() - began:.0f} s", flush=True)
        return known[key]


def subjects(half: str, options: argparse.Namespace) -> Iterator[tuple[Subject, str, str]]:
    """The networks with the images of one half, to choose on or to report on; comparison and model of each."""
    split = {"choose": "train", "report": "val"}[half]
    images = load_labelled(options.data / "tiny20", split).sample(options.images, seed=13)
    yield Subject.of("tiny20", hw.load_model("tiny20"), images, options.mosaics, options.points), "tiny20", "tiny20"
    name = "efficientnet-lite0"
    photos = load_labelled(options.data / "imagenet-sample").sample(2 * options.photos, seed=13)
    chosen = photos[: options.photos] if half == "choose" else photos[options.photos :]
    mosaics = min(options.mosaics, options.photos // 4)
    yield Subject.of("EfficientNet-Lite0", hw.load_model(name), chosen, mosaics, options.points), name, name
    if half == "report" and options.resnet50:
        model = hw.load_model(options.resnet50)
        yield Subject.of("ResNet-50", model, images, options.mosaics, options.points), "resnet50", options.resnet50


def page(tables: Mapping[tuple[str, str], tuple[str, Subject]]) -> str:
    """docs/results/better-map.md."""
    parts = [HEAD]
    for half, group in groupby(tables.items(), key=lambda item: item[0][0]):
        parts.append(f"## {HEADINGS[half]}")
        for (_, name), (table, subject) in group:
            counts = f"{len(subject.x)} images, {len(subject.mosaics)} mosaics, {subject.points} steps a curve"
            parts.append(f"{name}: {counts}.\n\n{table}")
    return "\n\n".join(parts) + "\n"


HEAD = """# Results: the better map

The method [`headwater`](../methods.md) has three ideas, all exact: the sweep begins with all classes, those that are
not explained with the opposite sign; the rules at the top of the network count contributions of both signs; and the
map is a mean over scales. Here is every candidate that was measured, also the losing ones.

Rules are those at the classifier; what follows a semicolon is the rule of that part of the joins, or the
[contrast](../composites.md). `centred` takes the mean over the classes from the classifier's weights first. Scales: the
`image` alone; `every cut and the image`, each once; `every resolution` of the cuts, each once; `every resolution and
the image`, which is what `headwater` takes; the same with the image's map summed over 2 x 2 pixels, which takes the
grid of strided convolutions out; the coarser half of the resolutions; the `last cut`, which is the last feature map.

- **ID** is insertion minus deletion, mean and half of the 95 % interval: of the maps under `budget`, and in the report
  of the quantized maps under `published` too, on the images of the tables of [tiny20](tiny20.md),
  [EfficientNet-Lite0](efficientnet-lite0.md) and [ResNet-50](resnet50.md).
- **p**: of paired t-tests against `headwater`, one family in each table, corrected by Holm's procedure.
- **first/second**, **first/unrelated**: rank correlation of the map of the predicted class with that of the second
  class, and with that of the class half of all classes away in the list. Lower is more about the class.
- **in the target's quarter**: on mosaics of 2 x 2 images of different classes, the part of the *positive* relevance
  that lies in the quarter of the explained class; negative relevance is left out. A map that is blind to the class
  has 0.25.
- **random weights**: rank correlation of absolute values with a quarter, half, three quarters and all layers random,
  from the top.
- **time**: as a multiple of `otsuki2024`'s, median of five rounds, batches of 8.

```
python -m benchmarks.better_map --data ../shared/data --resnet50 runs/resnet50-tiny20-64/seed-0
```

measures what is not in `runs/better-map` and `runs/results` yet, and writes this page.

## What was found

- **Class**: z+ everywhere gives one map for all classes. A signed rule at the classifier, centred over the classes, or
  contrast changes that; together they do it on every network, and ID stays within its interval. Epsilon at the
  classifier does it on tiny20 too, but its positive relevance is in the right quarter no more than chance: it tells the
  sign, not the place.
- **Depth of the signed rules**: in the last block alone they cost nothing. In the last quarter or half of the joins
  they gain nothing in ID.
- **Scales**: the mean over resolutions is what gains most under `budget`. The image's own scale adds to it because of
  its grid: summed over 2 x 2 pixels first, it adds nothing.

What the method was to reach and does not:

- **ID under `budget` on tiny20** is level with Score-CAM and Grad-CAM, not above, and so is the part in the target's
  quarter with Grad-CAM. No candidate is far ahead there.
- **`otsuki2024`, quantized, under `published`** stays ahead on the two networks of 64 x 64; on EfficientNet-Lite0 it is
  beaten. Quantization leaves most pixels of its map at one level, and that protocol lets them enter together.
- **Random upper layers** were to leave a correlation of at most 0.3 after the last stage. Absolute values are compared:
  where in the image the lower layers respond at all still shows.
- **Time** was to be at most 1.05 of `otsuki2024`'s. The scales cost the rest: each cut is summed and enlarged.

The photographs of both halves are drawn with seed 13, the table's 100 with seed 42: 2 of the 20 that were chosen on are
among the 100."""
HEADINGS = {
    "choose": "Choosing: every candidate, on images that the report does not use",
    "report": "Reporting: the chosen one, on other images",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", nargs="?", choices=("choose", "report", "all"), default="all")
    parser.add_argument("--data", type=Path, required=True, help="holds tiny20 and imagenet-sample")
    parser.add_argument("--images", type=int, default=40, help="of tiny20, for each half")
    parser.add_argument("--photos", type=int, default=20, help="for each half")
    parser.add_argument("--mosaics", type=int, default=10)
    parser.add_argument("--points", type=int, default=20, help="steps of a curve")
    parser.add_argument("--resnet50", default="", help="the trained ResNet-50: a run of headwater train")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "better-map", help="keeps measured rows")
    arguments = parser.parse_args()
    kept = Rows(arguments.out / "rows.json")
    tables: dict[tuple[str, str], tuple[str, Subject]] = {}
    for half in ("choose", "report") if arguments.what == "all" else (arguments.what,):
        for subject, comparison, model in subjects(half, arguments):
            if half == "choose":
                table = choose(subject, kept)
            else:
                table = report(subject, comparison, model, arguments.data, kept)
            tables[half, subject.name] = (table, subject)
            print(f"{subject.name}\n{table}", flush=True)
    if arguments.what == "all":
        print(write_text(PAGE, page(tables)))


if __name__ == "__main__":
    main()
