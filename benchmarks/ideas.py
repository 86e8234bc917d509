"""What ideas for a faster sweep would save on this machine, each measured beside what is built.

    python -m benchmarks.ideas [--arch resnet50] [--batch 1 8] [--rounds 9] [--out docs/results/ideas.md]

The convolutions of a network are run one by one on random values of their shapes, both ways in turn, for several
rounds; medians are added up over the network, and set against the time of a whole explanation in the same process.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import headwater as hw
from benchmarks.speed import network, processor
from headwater.engine import packing, phases
from headwater.files import write_text
from headwater.report.tabular import Cell, Table

LAST = torch.channels_last
Way = Callable[[], object]


@dataclass(frozen=True)
class Layer:
    """A convolution of the network, with random values of the shapes that it has there."""

    conv: nn.Conv2d
    h: Tensor
    s: Tensor

    @property
    def geometry(self) -> phases.Geometry:
        conv = self.conv
        assert not isinstance(conv.padding, str)
        return phases.Geometry(list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)

    @property
    def is_product(self) -> bool:
        """Whether it is a matrix product, pixel by pixel."""
        return self.conv.kernel_size == (1, 1) and self.conv.stride == (1, 1) and self.conv.groups == 1

    def forward(self, w: Tensor) -> Tensor:
        return packing.convolution(self.h, w, None, self.geometry)

    def adjoint(self, w: Tensor) -> Tensor:
        return packing.adjoint(self.s, w, self.h, self.geometry)


def layers_of(model: nn.Module, x: Tensor) -> list[Layer]:
    found: list[Layer] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        h, s = (torch.rand(t.shape).contiguous(memory_format=LAST) for t in (given[0], output))
        found.append(Layer(module, h, s))

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def packed_weights(layer: Layer) -> tuple[Way, Way]:
    w, kept = (layer.conv.weight.clamp(min=0).contiguous(memory_format=LAST) for _ in range(2))
    packing.cache(kept)
    return lambda: (layer.forward(w), layer.adjoint(w)), lambda: (layer.forward(kept), layer.adjoint(kept))


def matrix_products(layer: Layer) -> tuple[Way, Way] | None:
    if not layer.is_product:
        return None
    w = layer.conv.weight.contiguous(memory_format=LAST)
    matrix, h, s = w.flatten(1), layer.h.permute(0, 2, 3, 1), layer.s.permute(0, 2, 3, 1)
    return lambda: (layer.forward(w), layer.adjoint(w)), lambda: (functional.linear(h, matrix), s @ matrix)


def stacked_weights(layer: Layer) -> tuple[Way, Way] | None:
    if layer.conv.groups > 1:
        return None
    w = layer.conv.weight.contiguous(memory_format=LAST)
    positive = w.clamp(min=0)
    both = torch.cat([w, positive]).contiguous(memory_format=LAST)
    return lambda: (layer.forward(w), layer.forward(positive)), lambda: layer.forward(both)


def folded_normalisation(layer: Layer) -> tuple[Way, Way]:
    w = layer.conv.weight.contiguous(memory_format=LAST)
    scale, shift = torch.rand(2, len(w))

    def passes() -> Tensor:
        z = layer.forward(w)
        return torch.addcmul(shift[:, None, None], z, scale[:, None, None], out=z).relu_()

    stride, padding, dilation, groups = layer.geometry
    layout = torch.ops.mkldnn._reorder_convolution_weight(w, padding, stride, dilation, groups, layer.h.shape)

    def folded() -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(
            layer.h, layout, shift, padding, stride, dilation, groups, "relu", [], ""
        )

    return passes, folded


def half_denominators(layer: Layer) -> tuple[Way, Way]:
    w = layer.conv.weight.clamp(min=0).contiguous(memory_format=LAST)
    h, half = layer.h.bfloat16(), w.bfloat16()
    return lambda: layer.forward(w), lambda: packing.convolution(h, half, None, layer.geometry).float()


def by_phases(layer: Layer) -> tuple[Way, Way] | None:
    """The adjoint of a strided convolution to few channels as one convolution to all phases of the stride."""
    w = layer.conv.weight.contiguous(memory_format=LAST)
    if not phases.pays(w, layer.geometry):
        return None
    stride, padding, dilation, groups = layer.geometry

    def as_one() -> object:
        geometry = (stride, padding, dilation, False, [0, 0], groups)
        return torch.ops.aten.convolution_backward(layer.s, layer.h, w, None, *geometry, [True, False, False])

    return as_one, lambda: phases.adjoint(layer.s, w, layer.h, layer.geometry)


def rounding_left(layer: Layer) -> tuple[Way, Way]:
    """The passes around the convolutions of a sweep: with the remainder of every quotient followed, and without."""
    r, z = 1 + layer.s, 1 + torch.rand_like(layer.s)  # so that all quotients exist, round after round
    given = torch.rand_like(layer.h)

    def followed() -> Tensor:
        s = (r / z).nan_to_num_(0.0, 0.0, 0.0)
        left = torch.addcmul(r, s, z, value=-1).mean(1, keepdim=True)
        each = left.mean((2, 3), keepdim=True).expand(layer.h.shape)  # its place does not matter to the time
        return torch.addcmul(each, given, layer.h, out=given)

    def spared() -> Tensor:
        torch.div(r, z, out=z)
        return given.mul_(layer.h) if z.sum().isfinite() else given

    return followed, spared


def adjoint_times_input(layer: Layer) -> tuple[Way, Way] | None:
    """The adjoint and the product with the input, as one convolution with the product as oneDNN's last operation."""
    stride, padding, dilation, groups = layer.geometry
    if list(stride) != [1, 1] or groups > 1 or layer.h.numel() < 4 * layer.conv.weight.numel():
        return None
    w = layer.conv.weight.contiguous(memory_format=LAST)
    turned = w.transpose(0, 1).flip(2, 3).contiguous(memory_format=LAST)
    around = [d * (k - 1) - p for d, k, p in zip(dilation, w.shape[2:], padding, strict=True)]

    def fused() -> Tensor:
        moves = (around, [1, 1], dilation, 1)
        return torch.ops.mkldnn._convolution_pointwise(
            layer.s, layer.h, turned, None, *moves, "mul", None, None, [], None
        )

    return lambda: layer.adjoint(w).mul_(layer.h), fused


IDEAS: dict[str, tuple[Callable[[Layer], tuple[Way, Way] | None], str]] = {
    "z+ weights packed once (forward and back)": (
        packed_weights,
        "built, for up to 256 pixels (weights of 1 MB: 1,024)",
    ),
    "1 x 1 convolutions as matrix products (forward and back)": (
        matrix_products,
        "no: packed weights gain more, and more images lose",
    ),
    "network and z+ denominators as one convolution over stacked weights": (
        stacked_weights,
        "no: keeps every denominator from forward to back",
    ),
    "batch normalisation and ReLU folded into the convolution": (
        folded_normalisation,
        "no: less than half of it once weights are packed; logits of rounded weights, and a copy of all of them",
    ),
    "z+ denominators in bfloat16": (half_denominators, "no: shares change by 1e-3"),
    "rounding of many outputs' quotients left alone": (rounding_left, "built, for 16,384 outputs and more"),
    "adjoint and product with the input as one convolution": (adjoint_times_input, "no"),
    "adjoint of the first convolution as one over the phases of its stride": (by_phases, "built"),
}


def compared(ways: Sequence[tuple[Way, Way]], rounds: int) -> tuple[float, float]:
    """Milliseconds of both ways, medians added up over the layers."""
    sums = [0.0, 0.0]
    for pair in ways:
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds + 1):
            for way, taken in zip(pair, times, strict=True):
                began = time.perf_counter()
                way()
                taken.append(time.perf_counter() - began)
        for k in (0, 1):
            sums[k] += 1e3 * statistics.median(times[k][1:])
    return sums[0], sums[1]


@torch.no_grad()
def measure(arch: str, batch: int, rounds: int) -> list[Sequence[Cell]]:
    model, x = network(arch, LAST), torch.randn(batch, 3, 224, 224).contiguous(memory_format=LAST)
    lrp = hw.LRP(model)
    _, whole = compared([(lambda: None, lambda: lrp(x))], rounds)
    layers = layers_of(model, x)
    rows: list[Sequence[Cell]] = []
    for idea, (make, verdict) in IDEAS.items():
        ways = [pair for layer in layers if (pair := make(layer)) is not None]
        before, after = compared(ways, rounds)
        part = f"{100 * (before - after) / whole:+.1f} %"
        rows.append((arch, batch, idea, len(ways), f"{before:.0f}", f"{after:.0f}", part, verdict))
    blocks = [name for name, module in model.named_modules() if type(module).__name__ in ("Bottleneck", "BasicBlock")]
    e = lrp(x, checkpoints=blocks)
    arrived = list(e.checkpoints.values())
    pixels = sum((r == 0).all(1).sum().item() for r in arrived) / sum(r[:, 0].numel() for r in arrived)
    seen = f"{100 * pixels:.1f} % of pixels"
    rows.append((arch, batch, "pixels without any relevance skipped", len(blocks), None, None, seen, "no"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="page to write")
    arguments = parser.parse_args()
    rows = [row for batch in arguments.batch for row in measure(arguments.arch, batch, arguments.rounds)]
    columns = ("network", "batch", "idea", "layers", "as it is, ms", "so, ms", "saves of a sweep", "taken")
    table = Table(columns, rows, align="lrlrrrrl").markdown()
    what = (__doc__ or "").split("\n\n")[2].strip()
    about = f"{processor()}, torch {torch.__version__.split('+')[0]}, {platform.system()}; {time.strftime('%Y-%m-%d')}."
    page = "\n\n".join(["# Results: ideas for a faster sweep", what, about, table]) + "\n"
    print(write_text(arguments.out, page) if arguments.out else page)


if __name__ == "__main__":
    main()
