"""Every family of residual network (and some that are not), explained: is relevance conserved at every cut?

    python -m benchmarks.architectures            # writes docs/architectures.md
    python -m benchmarks.architectures --gallery  # writes docs/images/architectures.png

Every network is explained by ``otsuki2024`` and by ``headwater``; those of ``ARCHITECTURES`` also by each rule of
``SIGNED`` on all of their linear operations.

Weights are random and normalisation statistics are those of a batch of noise, so that activations have the sizes that
they have in practice. What cannot be explained is a row that says why. Rows that are in --out are not measured again.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import headwater as hw
from headwater.composites import Type
from headwater.engine.seed import Start
from headwater.files import write_bytes, write_text
from headwater.report.tabular import Cell, Table
from headwater.rules import AlphaBeta, Epsilon, Gamma, Rule

ROOT = Path(__file__).resolve().parents[1]
FREE = ((96, 96), (97, 121))
PATCHES = ((96, 96), (128, 128))
EVEN = ((96, 96), (128, 160))
LIMIT = 1e-5
SIGNED: dict[str, Rule] = {"gamma": Gamma(0.25), "alpha-beta": AlphaBeta(2.0, 1.0), "epsilon": Epsilon()}


@dataclass(frozen=True)
class Architecture:
    """A network to try: its name for torchvision or timm, its family, and the image sizes; none: its own."""

    name: str
    family: str
    sizes: tuple[tuple[int, int], ...] = FREE
    built_for_size: bool = False

    @property
    def output(self) -> str | None:
        """The output to explain, where there are several."""
        return "out" if self.name.startswith("fcn") else None


def _family(family: str, *names: str) -> list[Architecture]:
    return [Architecture(name, family) for name in names]


ARCHITECTURES: tuple[Architecture, ...] = (
    *_family("ResNet", "resnet18", "resnet50"),
    *_family("ResNeXt", "resnext50_32x4d"),
    *_family("Wide ResNet", "wide_resnet50_2"),
    *_family("RegNet", "regnet_x_400mf", "regnet_y_400mf"),
    *_family("MobileNetV2", "mobilenet_v2"),
    *_family("MobileNetV3", "mobilenet_v3_small", "mobilenet_v3_large"),
    *_family("EfficientNet", "efficientnet_b0", "efficientnet_b1"),
    *_family("EfficientNetV2", "efficientnet_v2_s"),
    *_family("ConvNeXt", "convnext_tiny"),
    *_family("DenseNet", "densenet121"),
    *_family("GoogLeNet", "googlenet"),
    *_family("Inception v3", "inception_v3"),
    *_family("ShuffleNetV2", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"),
    *_family("MNASNet", "mnasnet0_5"),
    *_family("VGG", "vgg11", "vgg16_bn"),
    *_family("AlexNet", "alexnet"),
    *_family("SqueezeNet", "squeezenet1_1"),
    Architecture("vit_b_16", "Vision transformer", PATCHES, built_for_size=True),
    *_family("Swin", "swin_t", "swin_v2_t"),
    *_family("FCN (a class, where it is predicted)", "fcn_resnet50"),
    *_family("ResNet, regression head", "resnet18:regression"),
    *_family("timm, D stem", "timm:resnet26d"),
    *_family("timm, squeeze and excitation", "timm:seresnet50", "timm:seresnext26d_32x4d"),
    *_family("timm, ECA", "timm:ecaresnet26t"),
    *_family("timm, anti-aliasing", "timm:resnetblur50"),
    Architecture("timm:resnetaa50", "timm, anti-aliasing", EVEN),  # adds maps of other sizes for odd images
    *_family("timm, pre-activation", "timm:resnetv2_50", "timm:resnetv2_50x1_bit"),
    *_family("timm, selective kernels", "timm:skresnet18"),
    *_family("ResNeSt", "timm:resnest14d", "timm:resnest26d"),
    *_family("SelecSLS", "timm:selecsls42b"),
    *_family("RepVGG", "timm:repvgg_a2"),
    Architecture("timm:hrnet_w18_small", "HRNet", EVEN),  # likewise
    *_family("NFNet", "timm:dm_nfnet_f0"),
    *_family("ConvNeXtV2", "timm:convnextv2_atto"),
    *_family("Res2Net", "timm:res2net50_26w_4s"),
    *_family("CSPNet", "timm:cspresnet50"),
    *_family("Dual path", "timm:dpn68"),
    *_family("GhostNet", "timm:ghostnet_100"),
    *_family("EfficientNet-Lite", "timm:efficientnet_lite0"),
    Architecture("timm:deit_tiny_patch16_224", "DeiT", PATCHES, built_for_size=True),
    *_family("XCiT", "timm:xcit_nano_12_p16_224"),
    Architecture("timm:coatnet_nano_rw_224", "CoAtNet", PATCHES, built_for_size=True),
    Architecture("maxvit_t", "MaxViT", ((224, 224), (224, 224))),
    Architecture("timm:hgnet_tiny", "PP-HGNet", FREE),
)

OTHERS = tuple(
    Architecture(f"timm:{name}", "timm", sizes=())
    for name in (
        *("beit_base_patch16_224", "halonet26t", "repvgg_a0", "cait_xxs24_224", "coat_tiny", "convit_tiny"),
        *("tresnet_m", "convmixer_768_32", "convnext_atto", "cpubone_nano", "crossvit_tiny_240", "csatv2"),
        *("cs3darknet_focus_s", "cspnext_tiny", "davit_tiny", "dla46x_c", "dpn48b", "edgenext_xx_small"),
        *("efficientformer_l1", "volo_d1_224", "efficientformerv2_s0", "efficientvim_m1", "efficientvit_b0"),
        *("efficientvit_m0", "fasternet_t0", "fastvit_t8", "vit_tiny_patch16_dinov3_qkvb", "focalnet_tiny_srf"),
        *("gcvit_xxtiny", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224", "iformer_t"),
        *("inception_next_atto", "inception_resnet_v2", "inception_v4", "lcnetv2_small", "levit_128s"),
        *("lowformer_b0", "mambaout_femto", "caformer_s18", "poolformerv2_s12", "vgg11", "gmlp_ti16_224"),
        *("mobilenetv3_small_050", "mobilenetv4_conv_small", "mobilevit_xxs", "mvitv2_tiny", "xception41"),
        *("naflexvit_base_patch16_gap", "nasnetalarge", "nest_tiny", "nextvit_small", "nf_resnet26"),
        *("pit_ti_224", "pnasnet5large", "pvt_v2_b0", "rdnet_tiny", "repghostnet_050", "repvit_m1"),
        *("res2next50", "rexnet_100", "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "starnet_s050"),
        *("swiftformer_xs", "swin_s3_tiny_224", "swinv2_cr_tiny_224", "tiny_vit_5m_224"),
        *("tnt_s_legacy_patch16_224", "twins_svt_small", "visformer_tiny", "vit_tiny_r_s16_p8_224"),
        *("vit_relpos_small_patch16_224", "vitamin_small_224", "ese_vovnet19b_slim_dw", "legacy_xception"),
        *("haloregnetz_b", "lamhalobotnet50ts_256", "bat_resnext26ts", "gcresnet33ts", "regnetz_b16"),
    )
)
"""One network of each other module of timm, the smallest that is not made for tests, up to 448 x 448 pixels and 100
million parameters, and some with attention in a ResNet."""

GALLERY = (
    *("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "regnet_y_400mf", "mobilenet_v2"),
    *("mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "densenet121", "inception_v3"),
    *("shufflenet_v2_x1_0", "vgg16_bn", "vit_b_16", "swin_t", "timm:seresnet50", "timm:resnest26d"),
    *("timm:hrnet_w18_small", "timm:dm_nfnet_f0"),
)


def build(architecture: Architecture, size: tuple[int, int], seed: int = 0, classes: int = 10) -> nn.Module:
    """The network with random weights, its normalisation statistics taken from noise, in eval mode."""
    name, options = architecture.name, {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        if name.startswith("timm:"):
            import timm

            options = {"img_size": size} if architecture.built_for_size else {}
            model = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=classes, **options)
        elif name == "fcn_resnet50":
            model = torchvision.models.segmentation.fcn_resnet50(
                weights=None, weights_backbone=None, num_classes=classes, aux_loss=True
            )
        elif name == "resnet18:regression":
            model = nn.Sequential(torchvision.models.resnet18(num_classes=1), nn.Flatten(0))
        else:
            if name in ("googlenet", "inception_v3"):
                options = {"aux_logits": False, "init_weights": True}
            elif architecture.built_for_size:
                options = {"image_size": size[0]}
            model = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
        return settle(model, size)


def own_size(architecture: Architecture) -> tuple[int, int]:
    """The image size that timm has for a network."""
    import timm

    _, height, width = timm.get_pretrained_cfg(architecture.name.removeprefix("timm:")).input_size
    return height, width


@torch.no_grad()
def settle(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Realistic normalisation: statistics of noise, gains in [0.5, 1.5], offsets in [-0.3, 0.3]."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    model(torch.randn(4, 3, *size))
    for norm in norms:
        if norm.affine:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.3, 0.3)
    return model.eval()


def everywhere(rule: Rule) -> hw.Composite:
    """``otsuki2024`` with this rule on every linear operation and average, the first one included."""
    rules = (Type("linear"), rule), (Type("average"), rule)
    return hw.load_composite("otsuki2024").prepend(*rules, name=f"{rule} everywhere", strict=False)


@dataclass(frozen=True)
class Row:
    """What one architecture gave, the worst of both sizes; or why it could not be explained.

    ``by_headwater`` has the worst error of the composite ``headwater``, at the image or a cut, and ``signed`` that for
    each of ``SIGNED``, both at the first size.
    """

    architecture: Architecture
    operations: int = 0
    kinds: int = 0
    joins: int = 0
    cuts: int = 0
    at_input: float = float("nan")
    at_cuts: float = float("nan")
    by_headwater: float = float("nan")
    signed: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""

    @property
    def worst(self) -> float:
        """Of the image and all cuts, by ``otsuki2024``."""
        return max(self.at_input, self.at_cuts)


def explain(lrp: hw.LRP, x: Tensor, start: Start = "probability") -> tuple[hw.Explanation, float, float]:
    """The explanation, the error at the image and the worst at a cut."""
    e = lrp(x, checkpoints="cuts", start=start)
    assert e.conservation is not None and e.relevance is not None
    assert e.relevance.isfinite().all(), "the map overflows"
    cuts = e.conservation.checkpoint_errors.values()
    return e, float(e.conservation.error.max()), max(float(error.max()) for error in cuts)


def measure(architecture: Architecture, batch: int = 4) -> Row:
    """Explain ``batch`` images of noise at each size and compare relevance with the seed at every cut."""
    at_input, at_cuts, signed, by_headwater = [], [], {}, float("nan")
    start: Start = "logit" if architecture.name.endswith("regression") else "probability"
    row = Row(architecture)
    for size in dict.fromkeys(architecture.sizes or [own_size(architecture)]):
        model = build(architecture, size)
        x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
        lrp = hw.LRP(model, output=architecture.output)
        try:
            e, image, cut = explain(lrp, x, start)
        except hw.HeadwaterError as error:
            return Row(architecture, problem=re.split(r"[;.] ", str(error))[0])
        if not at_input:
            _, *errors = explain(hw.LRP(model, "headwater", architecture.output), x, start)
            by_headwater = max(errors)
        if architecture in ARCHITECTURES and not signed:
            for name, rule in SIGNED.items():
                _, *errors = explain(hw.LRP(model, everywhere(rule), architecture.output), x, start)
                signed[name] = max(errors)
        assert e.conservation is not None and e.flow is not None
        graph = lrp.graph(x)
        at_input.append(image)
        at_cuts.append(cut)
        counts = graph.counts()
        row = Row(
            architecture,
            sum(counts.values()),
            len(counts),
            len(e.flow.joins),
            len(e.conservation.checkpoints),
            max(at_input),
            max(at_cuts),
            by_headwater,
            signed,
        )
    return row


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    columns = (
        "operations",
        "kinds",
        "joins",
        "cuts",
        "error at the image",
        "worst error at a cut",
        "`headwater`",
        *SIGNED,
    )
    cells = []
    for row in rows:
        if row.problem:
            numbers: list[Cell] = [f"not explained: {row.problem}", *[None] * (len(columns) - 1)]
        else:
            errors = (row.at_input, row.at_cuts, row.by_headwater, *(row.signed[rule] for rule in SIGNED))
            numbers = [row.operations, row.kinds, row.joins, row.cuts, *(f"{error:.1e}" for error in errors)]
        cells.append([row.architecture.family, f"`{row.architecture.name}`", *numbers])
    return Table(("family", "network", *columns), cells, align="ll" + "r" * len(columns)).markdown()


def short_table(rows: Sequence[Row], columns: int = 2) -> str:
    """The worst error of each, several networks per line, as Markdown; what could not be explained below it."""
    explained = [row for row in rows if not row.problem]
    cells = [[f"`{row.architecture.name}`", *(f"{e:.1e}" for e in (row.worst, row.by_headwater))] for row in explained]
    cells += [["", "", ""]] * (-len(cells) % columns)
    lines = [list(chain(*cells[start : start + columns])) for start in range(0, len(cells), columns)]
    problems = [f"\n`{row.architecture.name}` is not explained: {row.problem}." for row in rows if row.problem]
    return "\n".join(
        [Table(("network", "worst error", "`headwater`") * columns, lines, align="lrr" * columns).markdown(), *problems]
    )


def conserved(rows: Sequence[Row]) -> int:
    return sum(not row.problem and row.worst <= LIMIT for row in rows)


def conserved_by_headwater(rows: Sequence[Row]) -> int:
    return sum(not row.problem and row.by_headwater <= LIMIT for row in rows)


def signed_text(rows: Sequence[Row]) -> str:
    """How many networks conserve with each of the signed rules."""
    explained = [row for row in rows if not row.problem]
    counts = {name: sum(row.signed[name] <= LIMIT for row in explained) for name in SIGNED}
    return "; ".join(f"{name} {count} of {len(explained)}" for name, count in counts.items())


def page(rows: Sequence[Row], others: Sequence[Row]) -> str:
    """The documentation page with the tables."""
    return f"""# Supported architectures

{conserved(rows)} of {len(rows)} networks conserve relevance to {LIMIT:g} (relative, float32) at the image and at
every cut: every value that all paths from the image to the output cross, found from the graph. Composite
`otsuki2024`, random weights, normalisation statistics of noise, batches of four, two image sizes (96 x 96 and
97 x 121; 128 x 128 where patches must fit; 128 x 160 where the network takes no odd sizes; 224 x 224 for MaxViT), the
worst of all. torch {torch.__version__.split("+")[0]}. Written by `python -m benchmarks.architectures`.

The composite `headwater` does so on {conserved_by_headwater(rows)} of {len(rows)}, at the first size.

The last three columns have the worst error at the image or a cut with a signed rule on every linear operation and
average, the first convolution included, at the first of the two sizes: `Gamma(0.25)`, `AlphaBeta(2, 1)`, `Epsilon()`.
They conserve to {LIMIT:g} on {signed_text(rows)}. What a unit does whose contributions cancel is told in
[Operations](operations.md).

{table(rows)}

Further, a network of every other module of timm (the smallest, up to 448 x 448 pixels and 100 million parameters), and
some ResNets with attention, each at the size that timm has for it: {conserved(others)} of {len(others)}, and with
`headwater` {conserved_by_headwater(others)}.

{short_table(others)}

One image through twenty of them, by `python -m benchmarks.architectures --gallery`. The weights are **random**: what
shows is what the architecture alone does with relevance, its strides, windows and patches, not what a trained network
saw.

![Maps of one image through twenty architectures](images/architectures.png)
"""


def gallery(image: Path) -> bytes:
    """One image through twenty architectures with random weights, as PNG."""
    from headwater.data.images import open_image
    from headwater.data.preprocessing import Preprocessing
    from headwater.report import contact_sheet
    from headwater.report.images import shown

    x: Tensor = Preprocessing(224, 224)(open_image(image))[None]
    known = {architecture.name: architecture for architecture in ARCHITECTURES}
    maps = [hw.LRP(build(known[name], (224, 224)))(x).heatmap[0].numpy() for name in GALLERY]
    return contact_sheet([shown(heatmap).colours() for heatmap in maps], GALLERY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gallery", action="store_true", help="draw one image through twenty networks")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "architectures", help="keeps measured rows")
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "tabby.jpg")
    arguments = parser.parse_args()
    if arguments.gallery:
        print(write_bytes(ROOT / "docs" / "images" / "architectures.png", gallery(arguments.image)))
        return
    networks, path = (*ARCHITECTURES, *OTHERS), arguments.out / "rows.json"
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    missing = [network for network in networks if network.name not in kept]
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for row in pool.map(measure, missing):
            kept[row.architecture.name] = {k: v for k, v in vars(row).items() if k != "architecture"}
            write_text(path, json.dumps(kept, indent=1))
            print(
                f"{row.architecture.name}: {row.problem or f'{row.worst:.1e}, headwater {row.by_headwater:.1e}'}",
                flush=True,
            )
    rows = [Row(network, **kept[network.name]) for network in networks]
    first = len(ARCHITECTURES)
    print(write_text(ROOT / "docs" / "architectures.md", page(rows[:first], rows[first:])))


if __name__ == "__main__":
    main()
