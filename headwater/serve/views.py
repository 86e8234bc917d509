"""What the page shows of an explanation: values, colours, curves, files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

import headwater as hw
from headwater.data.preprocessing import seen
from headwater.errors import InputError
from headwater.figures import Grid, caption_facts
from headwater.files import safe_name
from headwater.methods.method import Progress
from headwater.metrics.insertion_deletion import Protocol, insertion_deletion, pixel_ranks, published_step
from headwater.models import network_input
from headwater.report.images import encoded, shown
from headwater.serve.networks import Network
from headwater.serve.photo import Photo

COLORMAPS = ("", "viridis", "magma", "jet", "RdBu_r", "gray")
"""Of the page; ``""`` is the usual one: inferno, or red and blue around 0 for signed maps."""
MOST_LEVELS = 32
_CLASSES = 5  # the most probable, beside the explained one

Arrays = dict[str, "np.ndarray | bytes"]


@dataclass(frozen=True)
class Look:
    """How the maps are drawn.

    Attributes:
        levels: of heat quantization; ``None`` for none.
        style: colours.
        scale: which of an explanation's scales, from the coarsest; ``None`` for the map itself.
    """

    levels: int | None
    style: hw.Style
    scale: int | None = None

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Look:
        """From a request of the page.

        Raises:
            InputError: a level, a scale, a colour map or an opacity is out of range.
        """
        levels, opacity, scale = request.get("levels", 0), request.get("opacity", 0.85), request.get("scale")
        if scale is not None and (not isinstance(scale, int) or scale < 0):
            raise InputError(f"a scale is counted from 0, the coarsest; got {scale!r}")
        if not isinstance(levels, int) or not (levels == 0 or 2 <= levels <= MOST_LEVELS):
            raise InputError(f"levels must be 0 (none) or 2 to {MOST_LEVELS}, got {levels!r}")
        if request.get("colormap", "") not in COLORMAPS:
            raise InputError(f"colormap must be one of {', '.join(COLORMAPS[1:])} or empty")
        if not isinstance(opacity, (int, float)) or not 0 <= opacity <= 1:
            raise InputError(f"opacity must be a number in [0, 1], got {opacity!r}")
        return cls(levels or None, hw.Style(request.get("colormap") or None, opacity=float(opacity)), scale)


def map_view(e: hw.ImageExplanation, look: Look) -> tuple[dict[str, Any], Arrays]:
    """A map with its numbers."""
    width, height = e.image.size
    account, joins = e.conservation, e.flow.joins if e.flow else ()
    sizes = {name: tuple(maps.shape[1:]) for name, maps in e.coarse.items()}
    best = e.logits[0].topk(min(_CLASSES, e.logits.shape[1])).indices.tolist()
    message = {
        "method": e.method,
        "stem": e.stem,
        "explained": e.explained,
        "target": _class(e, int(e.target)),
        "against": None if e.against is None else _class(e, int(e.against)),
        "predicted": [_class(e, k) for k in best],
        "box": [e.box.left / width, e.box.top / height, e.box.right / width, e.box.bottom / height],
        "sum": e.heatmap.sum().item(),
        "additive": e.additive,
        "conservation": None
        if account is None
        else {"seed": account.seed.item(), "input": account.input.item(), "error": account.error.item()},
        "flow": [{"module": j.module, "skip": j.skip.item(), "branches": j.branches} for j in joins],
        "scales": [{"name": name, "size": sizes.get(name, tuple(maps.shape[1:]))} for name, maps in e.scales.items()],
    }
    drawn, arrays = painted(e, look)
    return message | drawn, {**arrays, "map": e.heatmap[0].float().cpu().numpy()}


def _class(e: hw.ImageExplanation, index: int) -> dict[str, Any]:
    return e.class_summary(index)


def painted(e: hw.ImageExplanation, look: Look) -> tuple[dict[str, Any], Arrays]:
    """The values that are drawn, and their colours, as strong as the values: RGBA, uint8 ``(h, w, 4)``."""
    scales = list(e.scales.values()) if look.scale is not None else []
    chosen = look.scale is not None and look.scale < len(scales)
    heatmap = scales[look.scale or 0] if chosen else e.heatmap
    values = heatmap[0].float().cpu().numpy()
    style = look.style if e.against is None else replace(look.style, sign="signed")
    if look.levels is not None:
        heatmap = hw.heat_quantization(heatmap, look.levels)
    view = shown(heatmap[0].float().cpu().numpy(), style)
    colours = (np.dstack([view.colours(), view.strength()]) * 255).round().astype(np.uint8)
    return {"scale": look.scale if chosen else None}, {"values": values, "colours": colours}


def curves(network: Network, photo: Photo, e: hw.ImageExplanation, progress: Progress) -> tuple[dict[str, Any], Arrays]:
    """Insertion and deletion of the explained class under both protocols, and in which order the pixels enter.

    The steps are those of the papers, 500 pixels of 224 x 224, in proportion for other sizes.
    """
    x = network_input(network.model, [photo.decoded()])
    prepare, rows, columns = network.card.preprocessing, x.shape[2], x.shape[3]
    protocols: tuple[Protocol, ...] = get_args(Protocol)
    message, arrays = dict[str, Any](), dict[str, "np.ndarray | bytes"]()
    for number, protocol in enumerate(protocols):

        def told(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(protocols) * total)

        result = insertion_deletion(
            network.model,
            x,
            e.heatmap,
            e.target,
            protocol,
            published_step(rows * columns),
            mean=prepare.mean,
            std=prepare.std,
            progress=told,
        )
        message[protocol] = {"insertion": result.insertion.item(), "deletion": result.deletion.item()}
        ranks = pixel_ranks(e.heatmap, protocol, resolution=(rows, columns))[0]
        arrays[f"{protocol}.ranks"] = ranks.to("cpu", torch.int32).numpy()
        arrays[f"{protocol}.insertion"] = result.insertion_curve[0].float().cpu().numpy()
        arrays[f"{protocol}.deletion"] = result.deletion_curve[0].float().cpu().numpy()
        arrays[f"{protocol}.fraction"] = result.fraction[0].float().cpu().numpy()
    arrays["input"] = np.asarray(seen(x[0], prepare))
    return {"method": e.method, "areas": message}, arrays


def drawn_file(e: hw.ImageExplanation, what: object, look: Look) -> tuple[str, bytes]:
    """A file to download: its name and content.

    Raises:
        InputError: ``what`` is none of ``"figure"``, ``"overlay"`` and ``"scales"``, or the method has no scales.
    """
    e = replace(e, quantized=look.levels)
    if what == "figure":
        return f"{e.stem}.figure.png", e.figure(look.style)
    if what == "overlay":
        stream = io.BytesIO()
        e.overlay(look.style).save(stream, format="png")
        return f"{e.stem}.overlay.png", stream.getvalue()
    if what == "scales":
        return f"{e.stem}.scales.png", e.scales_figure(look.style)
    raise InputError(f"a file is a figure, an overlay or scales, got {what!r}")


def paper_figure(maps: Sequence[hw.ImageExplanation], look: Look) -> tuple[str, bytes, str]:
    """All maps of a photo in a row, as PDF in the width of a column: name, content, and what a caption needs."""
    first, style = maps[0], look.style
    box, (width, height) = first.box, first.image.size
    part = (
        max(0, round(box.left)),
        max(0, round(box.top)),
        min(width, round(box.right)),
        min(height, round(box.bottom)),
    )
    overlays = [replace(e, quantized=look.levels).overlay(style).crop(part) for e in maps]
    methods = [e.method if look.levels is None else f"{e.method}+hq{look.levels}" for e in maps]
    target = {"file": first.name, "class": first.explained, "probability": first.probability.item()}
    variant = "" if look.levels is None else f"heat-quantized to {look.levels} levels, published variant"
    facts = caption_facts(first.card, first.weights_digest, methods, variant, None, style, [target])
    grid = Grid(((first.image.crop(part), *overlays),), (first.explained,), ("input", *methods), (), facts)
    content = encoded(grid.figure(), "pdf", {"Subject": grid.caption()})
    return f"{safe_name(Path(first.name).stem)}.{safe_name(first.explained)}.maps.pdf", content, grid.caption()
