"""Whether relevance adds up at the image, before the first and before the last block (Otsuki et al., Fig. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from headwater.data.labelled import LabelledImage
from headwater.engine.graph import Graph
from headwater.engine.lrp import LRP
from headwater.engine.structure import Structure, layers_of
from headwater.errors import InputError
from headwater.models import card_of, network_input
from headwater.report.images import as_png
from headwater.report.sheet import wrapped, write_caption
from headwater.report.tabular import Table

_WIDTH = 10.5  # of the figure, in inches
PLACES = ("the image", "the first block", "the last block")


@dataclass(frozen=True)
class CutSums:
    """Sums of relevance of one network and composite.

    Attributes:
        network: its name.
        composite: its name.
        probability: relevance that each sweep began with, ``(N,)``.
        sums: relevance at the image, at the first block's input and at the last block's, ``(N, 3)``.
    """

    network: str
    composite: str
    probability: Tensor
    sums: Tensor

    @property
    def kept(self) -> Tensor:
        """Part of the probability that arrives at each place, ``(N, 3)``."""
        return self.sums / self.probability[:, None]


def block_inputs(graph: Graph) -> tuple[str, str]:
    """The cuts at which relevance enters the first and the last block, that is what leads to a join.

    That is the value that the join's branches share, or the last cut before it where the block is inside a larger one.

    Raises:
        InputError: the network has no join.
    """
    structure = Structure(graph, layers_of(graph))
    entries = list(structure.entries().values())
    if not entries:
        raise InputError("the network has no residual block; this figure is about networks with skip connections")
    first, last = (
        [cut for cut in graph.cuts() if structure.comes_from(entry, cut)][-1] for entry in (entries[0], entries[-1])
    )
    return first, last


def cut_sums(
    model: nn.Module, composites: Sequence[str], images: Sequence[LabelledImage], batch_size: int = 8
) -> list[CutSums]:
    """Sums of relevance at the three places, for the predicted class of each image."""
    results = []
    for name in composites:
        lrp, probabilities, sums = LRP(model, name), [], []
        for start in range(0, len(images), batch_size):
            chunk = images[start : start + batch_size]
            x = network_input(model, [image.open() for image in chunk])
            e = lrp(x, checkpoints="cuts")
            assert e.conservation is not None
            graph = lrp.graph(x)
            places = (graph.input, *block_inputs(graph))
            probabilities.append(e.conservation.seed.cpu())
            sums.append(torch.stack([e.conservation.checkpoints[place].cpu() for place in places], 1))
        results.append(CutSums(card_of(model).name, name, torch.cat(probabilities), torch.cat(sums)))
    return results


def conservation_figure(results: Sequence[CutSums], caption: str = "") -> bytes:
    """The sum of relevance against the probability, per place, as PNG; what is conserved lies on the diagonal.

    Sums outside [-0.1, 1.1] are not drawn; the legend says how many.
    """
    lines = wrapped(caption, _WIDTH)
    below = 0.14 * len(lines)
    canvas = Figure(figsize=(_WIDTH, 3.7 + below), dpi=130)
    FigureCanvasAgg(canvas)
    axes = canvas.subplots(1, 3, sharex=True, sharey=True)
    for place, (axis, title) in enumerate(zip(axes, PLACES, strict=True)):
        axis.plot([0, 1], [0, 1], color="0.7", lw=1, zorder=0)
        for number, result in enumerate(results):
            sums = result.sums[:, place]
            outside = int(((sums < -0.1) | (sums > 1.1)).sum())
            axis.scatter(
                result.probability,
                sums,
                s=14,
                color=f"C{number}",
                marker="ox^s"[number % 4],
                linewidths=0.9,
                label=_label(result, results) + (f" ({outside} of {len(sums)} outside)" if outside else ""),
            )
        axis.set_ylim(-0.1, 1.1)
        axis.legend(fontsize=7, frameon=False)
        axis.set_title(f"at {title}", fontsize=9, loc="left")
        axis.set_xlabel("probability of the class", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set_ylabel("sum of relevance", fontsize=8)
    canvas.tight_layout(rect=(0, below / canvas.get_figheight(), 1, 1))
    write_caption(canvas, lines)
    return as_png(canvas)


def _label(result: CutSums, results: Sequence[CutSums]) -> str:
    """The composite, with the network where there are several."""
    return result.composite if len({r.network for r in results}) == 1 else f"{result.composite}, {result.network}"


def conservation_csv(results: Sequence[CutSums], images: Sequence[LabelledImage]) -> str:
    """One line per network, composite and image."""
    rows = [
        (result.network, result.composite, image.name, probability, *sums)
        for result in results
        for image, probability, sums in zip(images, result.probability.tolist(), result.sums.tolist(), strict=True)
    ]
    return Table(("network", "composite", "image", "probability", *PLACES), rows).csv()


def conservation_markdown(results: Sequence[CutSums]) -> str:
    """Mean part of the probability at each place, and the worst relative error, as Markdown."""
    columns: tuple[str, ...] = ("composite", *(f"kept at {place}" for place in PLACES), "worst error")
    rows: list[tuple[str, ...]] = []
    for result in results:
        kept = [f"{part:.4f}" for part in result.kept.mean(0).tolist()]
        worst = f"{(result.kept - 1).abs().max().item():.1e}"
        rows.append((f"`{result.composite}`", *kept, worst, result.network))
    if len({result.network for result in results}) == 1:
        rows = [row[:-1] for row in rows]
    else:
        columns = (*columns, "network")
    return Table(columns, rows).markdown()
