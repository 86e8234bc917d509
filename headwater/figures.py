"""Figures for papers: images in rows, methods in columns, as PDF, SVG or PNG, with what a caption needs beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from headwater import __version__
from headwater.data.images import open_image
from headwater.data.preprocessing import Preprocessing, seen
from headwater.errors import InputError
from headwater.files import write_bytes, write_text
from headwater.methods import QUANTIZED_LEVELS, load_method, split_name
from headwater.metrics.insertion_deletion import Protocol, insertion_deletion, published_step
from headwater.models import ModelCard, network_input, network_of, weights_digest
from headwater.report.images import Style, as_png, encoded, fitted, overlay

COLUMN, PAGE = 3.4, 7.0
"""Width of a column and of a page of the usual two-column layouts, in inches."""
_FONT = 7.0  # points; the figure is printed in its own size, so this is what the reader gets
_GAP, _HEAD, _SIDE, _SCORE = 0.03, 0.14, 0.14, 0.12  # inches: between panels, above, left, and below a panel
_FORMATS = (".pdf", ".svg", ".png")
_DPI = 300


@dataclass(frozen=True)
class Grid:
    """Images with their maps, ready to be drawn.

    Attributes:
        rows: for each image what the network saw, then the same under the map of each method.
        titles: of the rows: the explained classes.
        headings: of the columns.
        scores: below each map, one row per image and one score per method; empty without a protocol.
        facts: what a caption needs: model, weights, method, variant, protocol, images, classes, probabilities.
    """

    rows: tuple[tuple[Image.Image, ...], ...] = field(repr=False)
    titles: tuple[str, ...]
    headings: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    facts: dict[str, Any]

    def figure(self, width: float | None = None) -> Figure:
        """The figure in its printed size.

        Args:
            width: in inches; :data:`COLUMN` for up to four panels in a row and :data:`PAGE` for more if not given.

        Raises:
            InputError: the panels would be less than 0.3 inches wide.
        """
        across = len(self.rows[0])
        width = width or (COLUMN if across <= 4 else PAGE)
        side = (width - _SIDE - _GAP * (across - 1)) / across
        if side < 0.3:
            raise InputError(f"{across} panels do not fit in {width} inches; take fewer methods or a larger width")
        below = _SCORE if self.scores else 0.0
        height = _HEAD + len(self.rows) * (side + below + _GAP) - _GAP
        canvas = Figure(figsize=(width, height), dpi=_DPI)
        FigureCanvasAgg(canvas)
        for i, row in enumerate(self.rows):
            bottom = height - _HEAD - (i + 1) * (side + below + _GAP) + _GAP + below
            for j, panel in enumerate(row):
                left = _SIDE + j * (side + _GAP)
                axis = canvas.add_axes((left / width, bottom / height, side / width, side / height))
                axis.imshow(np.asarray(panel), interpolation="none")
                axis.set_axis_off()
                middle = (left + side / 2) / width
                if i == 0:
                    heading = fitted(self.headings[j], "", side, _FONT)
                    top = 1 - 0.02 / height
                    canvas.text(middle, top, heading, ha="center", va="top", fontsize=_FONT, parse_math=False)
                if self.scores and j > 0:
                    at = (bottom - 0.01) / height
                    canvas.text(middle, at, f"{self.scores[i][j - 1]:.3f}", ha="center", va="top", fontsize=_FONT)
            title = fitted(self.titles[i], "", side, _FONT)
            up = (bottom + side / 2) / height
            canvas.text(0.02 / width, up, title, rotation=90, ha="left", va="center", fontsize=_FONT, parse_math=False)
        return canvas

    def save(self, path: str | Path, width: float | None = None) -> list[Path]:
        """Write the figure, and its facts as text and JSON beside it.

        Args:
            path: ends in ``.pdf``, ``.svg`` or ``.png``; the others are ``NAME.txt`` and ``NAME.json``.
            width: see :meth:`figure`.

        Raises:
            InputError: another format, or a width that is too small.
            OutputError: a file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in _FORMATS:
            raise InputError(f"figures are written as {', '.join(_FORMATS)}, got {path.name!r}")
        content = encoded(self.figure(width), path.suffix.lower().removeprefix("."))
        return [
            write_bytes(path, content),
            write_text(path.with_suffix(".txt"), self.caption() + "\n"),
            write_text(path.with_suffix(".json"), json.dumps(self.facts, indent=1)),
        ]

    def caption(self) -> str:
        """The facts as sentences."""
        f = self.facts
        shown = "; ".join(f"{i['file']}: {i['class']}, {i['probability']:.1%}" for i in f["images"])
        parts = [
            f"Rows: {shown}. Columns: what the network saw, and the same under the map of {', '.join(f['methods'])}.",
            f"Network {f['model']}, weights {f['weights']} ({f['weights_digest']}).",
            *([f"Maps are {f['variant']}."] if f["variant"] else []),
            *([f"Below each map: {f['protocol']}."] if f["protocol"] else []),
            f"Colours {f['colours']}. headwater {f['headwater']}.",
        ]
        return " ".join(parts)

    def _repr_png_(self) -> bytes:
        return as_png(self.figure())


def grid(
    images: Sequence[str | Path],
    methods: Sequence[str],
    model: Any = None,
    *,
    targets: Sequence[int | str | None] | None = None,
    headings: Sequence[str] | None = None,
    protocol: Protocol | None = None,
    step: int | None = None,
    style: Style | None = None,
    preprocessing: Preprocessing | None = None,
) -> Grid:
    """Images in rows, the maps of methods over them in columns, as both papers print them.

    Args:
        images: files.
        methods: names, see :func:`headwater.list_methods`; ``NAME+hq`` is NAME's map after heat quantization.
        model: a name, a folder, a module or a pipeline, as for :func:`headwater.explain`.
        targets: the class to explain in each image, by number or name; ``None`` for the predicted ones.
        headings: of the methods' columns; their names if not given.
        protocol: write insertion minus deletion under each map, measured by this protocol for the explained class.
        step: pixels between two points of the curves; 500 of 224 x 224 if not given.
        style: colours.
        preprocessing: for a module of your own that has no card.

    Raises:
        InputError: no images or methods, or not as many targets or headings.
        HeadwaterError: an image, the model, a method or a target does not fit; the message says which and why.

    >>> import headwater as hw
    >>> figure = hw.figures.grid(["examples/tabby.jpg", "examples/espresso.jpg"], ["otsuki2024", "random"], "tiny20")
    >>> figure.titles, figure.headings
    (('tabby', 'espresso'), ('input', 'otsuki2024', 'random'))
    """
    if isinstance(images, str) or isinstance(methods, str) or not images or not methods:
        raise InputError(f"a grid needs lists of images and of methods, got {images!r} and {methods!r}")
    for what, given, expected in (("targets", targets, images), ("headings", headings, methods)):
        if given is not None and len(given) != len(expected):
            raise InputError(f"there must be as many {what} as rows or columns: {len(expected)}, got {len(given)}")
    (network, card), paths = network_of(model, preprocessing), [Path(path) for path in images]
    classes = [None if t is None else card.class_index(t) for t in targets or [None] * len(paths)]
    rows, scores = list[tuple[Image.Image, ...]](), list[tuple[float, ...]]()
    about = list[dict[str, Any]]()
    explainers = [load_method(name, network) for name in methods]
    for path, chosen in zip(paths, classes, strict=True):
        x = network_input(network, [open_image(path)], card.preprocessing)
        photo, target = seen(x[0], card.preprocessing), chosen
        panels, measured = [photo], list[float]()
        for explain in explainers:
            e = explain(x, target)
            target = int(e.target)
            panels.append(overlay(photo, _enlarged(e.heatmap[0].detach().float().cpu().numpy(), photo.size), style))
            if protocol is not None:
                points = step or published_step(x[0, 0].numel())
                mean, std = card.preprocessing.mean, card.preprocessing.std
                result = insertion_deletion(network, x, e.heatmap, target, protocol, points, mean=mean, std=std)
                measured.append(result.id.item())
        rows.append(tuple(panels))
        scores.append(tuple(measured))
        name = card.class_name(cast("int", target))
        about.append({"file": path.name, "class": name, "probability": e.probability.item()})
    measured_by = None if protocol is None else f"insertion minus deletion ({protocol} protocol)"
    return Grid(
        tuple(rows),
        tuple(image["class"] for image in about),
        ("input", *(headings or methods)),
        tuple(scores) if protocol is not None else (),
        caption_facts(card, weights_digest(network), methods, _variants(methods), measured_by, style or Style(), about),
    )


def caption_facts(
    card: ModelCard,
    digest: str,
    methods: Sequence[str],
    variant: str,
    protocol: str | None,
    style: Style,
    images: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the caption of a grid needs.

    Args:
        card: of the network.
        digest: of its weights.
        methods: names, one per column of maps.
        variant: of the maps, in words; empty for the usual one.
        protocol: what stands below each map, in words; ``None`` for nothing.
        style: colours.
        images: ``file``, ``class`` and ``probability`` of each row.
    """
    return {
        "headwater": __version__,
        "model": card.name,
        "weights": card.weights,
        "weights_digest": digest,
        "methods": list(methods),
        "variant": variant,
        "protocol": protocol,
        "colours": f"{style.colormap or 'inferno, or RdBu_r around 0 for maps with negative relevance'}, up to the "
        f"percentile {style.clip:g} of each map's size",
        "images": list(images),
    }


def _variants(methods: Sequence[str]) -> str:
    """Which of the methods are as published, and which are quantized, in words."""
    groups: dict[str, list[str]] = {}
    for name in methods:
        base, quantization = split_name(name)
        if base.endswith("-published"):
            groups.setdefault("as the authors' code computes them", []).append(name)
        if quantization is not None:
            text = f"heat-quantized to {QUANTIZED_LEVELS} levels, {quantization} variant"
            groups.setdefault(text, []).append(name)
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in groups.items())


def _enlarged(heatmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map in the size of its photo, for methods whose maps are smaller."""
    if heatmap.shape == size[::-1]:
        return heatmap
    return np.asarray(Image.fromarray(heatmap).resize(size, Image.Resampling.BILINEAR))
