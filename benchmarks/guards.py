"""What the checks cost that stand in front of a sweep: at the first call, and at each later one.

At the first call: its whole time, the sweep left out, beside that of ``torch.export`` alone for the same network. At a
later one: the part of the call that notices changes (the module tree's signature; the inputs' and weights' values, with
the checksum of all bytes). Everything is run in turn in one process; medians of several rounds.

    python -m benchmarks.guards [--rounds 9] [--out docs/results/guards.md]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import headwater as hw
from headwater.engine.guards.checks import check_values
from headwater.engine.guards.signature import signature
from headwater.engine.inputs import Inputs
from headwater.files import write_text
from headwater.report.tabular import Cell, Table

HEAD = """\
# Results: what the guards cost

The first call for a size of the inputs traces the network, compares the trace with the network's own output, makes a
plan and derives weights; *ratio* is its time, a later call's taken off, over that of `torch.export` alone. A later call
checks that nothing has changed: the module tree, and the values of the inputs and of the weights. Composite
`otsuki2024`, one example, float32, torch {}, {} threads, {}. Written by `python -m benchmarks.guards`.

"""
Case = tuple[nn.Module, Tensor | dict[str, Tensor]]


def cases() -> dict[str, Callable[[], Case]]:
    """Networks with one example each, their weights random."""
    import transformers

    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(5, 69)[None]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    vit, resnet = transformers.ViTConfig(num_labels=1000), transformers.ResNetConfig(num_labels=1000)
    return {
        "ResNet-50": lambda: (torchvision.models.resnet50(), image),
        "ConvNeXt-T": lambda: (torchvision.models.convnext_tiny(), image),
        "ViT-B/16": lambda: (torchvision.models.vit_b_16(), image),
        "EfficientNet-B0": lambda: (torchvision.models.efficientnet_b0(), image),
        "ResNet-50 of transformers": lambda: (transformers.ResNetForImageClassification(resnet), image),
        "ViT-B/16 of transformers": lambda: (transformers.ViTForImageClassification(vit), image),
        "BERT-base, 64 tokens": lambda: (
            transformers.BertForSequenceClassification(transformers.BertConfig()),
            text,
        ),
        "r3d_18, 16 x 112 x 112": lambda: (torchvision.models.video.r3d_18(), torch.randn(1, 3, 16, 112, 112)),
        "mvit_v2_s, 16 x 224 x 224": lambda: (
            torchvision.models.video.mvit_v2_s(),
            torch.randn(1, 3, 16, 224, 224),
        ),
    }


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def exported(model: nn.Module, x: Tensor | Mapping[str, Tensor]) -> None:
    """``torch.export`` alone, the batch size dynamic."""
    inputs = Inputs.of(x).map(lambda t: torch.zeros((2, *t.shape[1:]), dtype=t.dtype))
    args, kwargs = inputs.arguments
    grow = {0: torch.export.Dim.AUTO}
    shapes = {str(key): grow for key in inputs.keys} if inputs.by_keyword else tuple(grow for _ in args)
    torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def measure(make: Callable[[], Case], rounds: int) -> list[float]:
    """Seconds of an export, of a first call without its sweep, of a later call, and of its guards."""
    torch.manual_seed(0)
    model, x = make()
    model.eval()
    config = getattr(model, "config", None)
    if getattr(config, "use_cache", False):
        config.use_cache = False  # type: ignore[union-attr]
    export, first, later, guards = [], [], [], []
    with torch.no_grad():
        model(**x) if isinstance(x, dict) else model(x)
    for _ in range(3):
        export.append(timed(lambda: exported(copy.deepcopy(model), x)))
        lrp = hw.LRP(model)
        lrp.retrace()
        call = timed(lambda: lrp(x))  # noqa: B023
        first.append(call - timed(lambda: lrp(x)))  # noqa: B023
    inputs, plan = Inputs.of(x), lrp.plan(x)

    def guard() -> None:
        signature(model)
        check_values(inputs)
        plan.weights.refresh(1)

    for _ in range(rounds):
        later.append(timed(lambda: lrp(x)))
        guards.append(timed(guard))
    return [statistics.median(values) for values in (export, first, later, guards)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="*", help="beginnings of names")
    parser.add_argument("--out", type=Path, default=Path("docs/results/guards.md"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[list[Cell]] = []
    for name, make in cases().items():
        if options.only and not name.startswith(tuple(options.only)):
            continue
        export, first, later, guards = measure(make, options.rounds)
        rows.append(
            [
                name,
                f"{export:.2f} s",
                f"{first:.2f} s",
                f"{first / export:.2f}",
                f"{later:.3f} s",
                f"{1e3 * guards:.1f} ms",
                f"{guards / later:.1%}",
            ]
        )
        print(*rows[-1], sep="  ", flush=True)
    heads = ("network", "torch.export alone", "first call, without its sweep", "ratio", "later call", "guards", "part")
    text = HEAD.format(torch.__version__, torch.get_num_threads(), datetime.now(UTC).date())
    text += Table(heads, rows, "lrrrrrr").markdown() + "\n"
    write_text(options.out, text)


if __name__ == "__main__":
    main()
