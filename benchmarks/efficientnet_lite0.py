"""EfficientNet-Lite0 with ImageNet weights: a real classifier on which plain z+ loses relevance.

    python -m benchmarks.efficientnet_lite0 fallbacks --data ../shared/data
    python -m benchmarks.efficientnet_lite0 boxes --data ../shared/data

EfficientNet-Lite0 is the network of the extra ``headwater[imagenet]``. ``fallbacks`` compares
ways to redistribute the relevance that z+ cannot pass on, and a sweep that drops it; ``boxes`` compares methods on
images that have boxes; the name of an experiment runs that experiment. (All methods on photographs:
``benchmarks.results``.) --data holds ``imagenet-sample`` and ``tiny20``. Tables and
contact sheets are written to --out; the sheets show research images, which must not be committed.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import headwater as hw
from headwater.composites import Type
from headwater.data.labelled import LabelledImages, load_labelled
from headwater.engine.linear_layers import Linear
from headwater.engine.linear_rules import Part, ZPlus, redistribute
from headwater.evaluation import Settings, evaluate
from headwater.experiments import list_experiments, reproduce
from headwater.experiments.grid import explanation_grid
from headwater.files import write_bytes, write_text
from headwater.methods import is_baseline
from headwater.models import network_input
from headwater.report.tables import SummaryTable

ROOT = Path(__file__).resolve().parents[1]
BOXED = ("headwater", "otsuki2024", "otsuki2024-i", "c3-lrp", "gradcam", "scorecam", "integrated-gradients", "random")


@dataclass(frozen=True)
class OtherFallback(ZPlus):
    """z+ with another fallback than spreading the remainder in place, for comparison.

    ``"window"``: in equal parts to all inputs of the unit. ``"contributions"``: in proportion to |w||h|, and the
    rest of it in place.
    """

    way: str = "window"

    def for_nonnegative(self) -> OtherFallback:
        return self

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, ...]:
        other = None if weight is None else torch.ones_like(weight) if self.way == "window" else weight.abs()
        return (*super().prepare(weight, bias), other)

    def __call__(
        self, layer: Linear, prepared: tuple[Tensor | None, ...], inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        (h,), (*signed, other) = inputs, prepared
        terms = self.terms(h, tuple(signed))
        z = sum((layer.apply(a, w) for a, w in terms[1:]), layer.apply(*terms[0]))
        s = (relevance / z).nan_to_num_(0.0, 0.0, 0.0)
        back = sum((a * layer.transpose(s, w, h) for a, w in terms), torch.zeros_like(h))
        size = torch.ones_like(h) if self.way == "window" else h.abs()
        return [back + redistribute(layer, [Part([(size, other)])], relevance - s * z, h)]


def register_fallbacks() -> tuple[str, ...]:
    """Register the exact composite with other fallbacks, and one that drops what z+ cannot pass on; their names."""
    base = hw.load_composite("otsuki2024")
    rules = {
        "equal-parts-over-the-window": OtherFallback(way="window"),
        "in-proportion-to-|w||h|": OtherFallback(way="contributions"),
        "plain-z+-that-loses-it": ZPlus(fallback=False),
    }
    for name, rule in rules.items():
        hw.register_composite(base.prepend((Type("linear"), rule), (Type("average"), rule), name=name))
    return ("otsuki2024", *rules)


def boxed(folder: Path, wnids: Sequence[str]) -> LabelledImages:
    """tiny20's validation images, which have boxes, labelled with ImageNet's class indices."""
    with (folder / "classes.csv").open(newline="") as file:
        imagenet = {int(row["index"]): wnids.index(row["wnid"]) for row in csv.DictReader(file)}
    found = load_labelled(folder, "val")
    images = tuple(replace(image, label=imagenet[image.label]) for image in found.images)
    return LabelledImages("tiny20, labels of ImageNet", images)


def correctly_predicted(model: nn.Module, data: LabelledImages, count: int) -> LabelledImages:
    """``count`` images of different classes that the network predicts correctly."""
    chosen = []
    for image in data.sample(len({p.label for p in data.images})):
        with torch.no_grad():
            if model(network_input(model, [image.open()])).argmax(1).item() == image.label:
                chosen.append(image)
        if len(chosen) == count:
            break
    return LabelledImages(f"{data.layout}, predicted right", tuple(chosen))


def progress(done: int, total: int, seconds: float) -> None:
    print(f"{done} of {total} images, {seconds:.0f} s", flush=True)


def measure(model: nn.Module, data: LabelledImages, settings: Settings, out: Path, devices: Sequence[str] = ()) -> str:
    table = evaluate(model, data, settings, out, devices=devices, progress=progress)
    text = SummaryTable.of(table, [m for m in settings.methods if is_baseline(m)]).markdown()
    write_text(out / "summary.md", text + "\n")
    print(text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=("fallbacks", "boxes", *list_experiments()))
    parser.add_argument("--data", type=Path, required=True, help="holds imagenet-sample and tiny20")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--boxes", type=int, default=40)
    parser.add_argument("--step", type=int, default=1000)
    parser.add_argument("--devices", default="", help="such as cpu,cpu; chunks are distributed over them")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "efficientnet-lite0")
    arguments = parser.parse_args()
    model, out = hw.load_model("efficientnet-lite0"), arguments.out / arguments.what
    photos = load_labelled(arguments.data / "imagenet-sample")
    if arguments.what in list_experiments():
        settings = Settings(BOXED, arguments.samples, step=arguments.step, batch_size=4)
        print(reproduce(arguments.what, photos, [model], out, settings, progress=progress).report)
        return
    assert photos.classes is not None
    small = boxed(arguments.data / "tiny20", photos.classes)
    names = BOXED
    if arguments.what == "fallbacks":
        names = register_fallbacks()
        photos = correctly_predicted(model, photos, arguments.samples)
        settings = Settings(
            tuple(name + ending for name in names for ending in ("", "+hq")),
            arguments.samples,
            step=arguments.step,
            batch_size=4,
        )
        measure(model, photos, settings, out / "photos", arguments.devices.split(",") if arguments.devices else ())
    measure(model, small, Settings(names, arguments.boxes, ("budget",), step=10000, batch_size=8), out / "boxes")
    sheet = explanation_grid([model], photos.sample(min(10, arguments.samples)), {name: name for name in names})
    write_bytes(out / "sheet.png", sheet)


if __name__ == "__main__":
    main()
