"""What the page shows of an explanation: values, colours, curves, files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch

import headwater as hw
from headwater.errors import InputError
from headwater.methods.method import Progress
from headwater.metrics.insertion_deletion import Protocol, insertion_deletion, pixel_ranks
from headwater.models import network_input
from headwater.report.images import shown
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
        levels: of heat quantization; ``None`` for the map itself.
        style: colours.
    """

    levels: int | None
    style: hw.Style

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Look:
        """From a request of the page.

        Raises:
            InputError: a level, a colour map or an opacity is out of range.
        """
        levels, opacity = request.get("levels", 0), request.get("opacity", 0.85)
        if not isinstance(levels, int) or not (levels == 0 or 2 <= levels <= MOST_LEVELS):
            raise InputError(f"levels must be 0 (none) or 2 to {MOST_LEVELS}, got {levels!r}")
        if request.get("colormap", "") not in COLORMAPS or not isinstance(opacity, (int, float)):
            raise InputError(f"colormap must be one of {', '.join(COLORMAPS[1:])} or empty, and opacity a number")
        return cls(levels or None, hw.Style(request.get("colormap") or None, opacity=float(opacity)))


def map_view(e: hw.ImageExplanation, look: Look) -> tuple[dict[str, Any], Arrays]:
    """A map with its numbers."""
    width, height = e.image.size
    account, target, joins = e.conservation, int(e.target), e.flow.joins if e.flow else ()
    message = {
        "method": e.method,
        "target": _class(e, target),
        "predicted": [_class(e, k) for k in e.logits[0].topk(min(_CLASSES, e.logits.shape[1])).indices.tolist()],
        "box": [e.box.left / width, e.box.top / height, e.box.right / width, e.box.bottom / height],
        "sum": e.heatmap.sum().item(),
        "additive": e.additive,
        "stem": e.stem,
        "conservation": None
        if account is None
        else {"seed": account.seed.item(), "input": account.input.item(), "error": account.error.item()},
        "flow": [{"module": j.module, "skip": j.skip.item(), "branches": j.branches} for j in joins],
    }
    return message, {"values": e.heatmap[0].float().cpu().numpy(), "colours": colours(e, look)}


def _class(e: hw.ImageExplanation, index: int) -> dict[str, Any]:
    probability = e.logits.softmax(1)[0, index].item()
    return {"index": index, "name": e.card.class_name(index), "probability": probability}


def colours(e: hw.ImageExplanation, look: Look) -> np.ndarray:
    """The map in colours, as strong as its values: RGBA, uint8 ``(h, w, 4)``."""
    heatmap = e.heatmap if look.levels is None else hw.heat_quantization(e.heatmap, look.levels)
    view = shown(heatmap[0].float().cpu().numpy(), look.style)
    return (np.dstack([view.colours(), view.strength()]) * 255).round().astype(np.uint8)


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
            hw.Settings((e.method,)).step_for(rows * columns),
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
    arrays["input"] = _pixels(x, prepare)
    return {"method": e.method, "areas": message}, arrays


def _pixels(x: torch.Tensor, prepare: hw.Preprocessing) -> np.ndarray:
    """The network's input as RGB, uint8 ``(h, w, 3)``."""
    image = x[0].float().cpu().movedim(0, -1) * torch.tensor(prepare.std) + torch.tensor(prepare.mean)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def drawn_file(e: hw.ImageExplanation, what: object, look: Look) -> tuple[str, bytes]:
    """A file to download: its name and content.

    Raises:
        InputError: ``what`` is neither ``"figure"`` nor ``"overlay"``.
    """
    e = replace(e, quantized=look.levels)
    if what == "figure":
        return f"{e.stem}.figure.png", e.figure(look.style)
    if what == "overlay":
        stream = io.BytesIO()
        e.overlay(look.style).save(stream, format="png")
        return f"{e.stem}.overlay.png", stream.getvalue()
    raise InputError(f"a file is a figure or an overlay, got {what!r}")
