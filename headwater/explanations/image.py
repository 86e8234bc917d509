"""The explanation of one image: map, overlay, figure, files."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from headwater.data.preprocessing import Box, to_image
from headwater.engine.scales import mean_of_scales
from headwater.errors import InputError
from headwater.explanations.single import MADE_FROM, SingleExplanation, stem_of, write_files
from headwater.heatmaps import heat_quantization
from headwater.methods import QUANTIZED_LEVELS, split_name
from headwater.report.images import Labels, Style, figure, overlay
from headwater.report.notebook import ACCOUNT, account_cells, class_table, image_tag
from headwater.report.scales import scales_figure
from headwater.report.tabular import Table

_SUFFIXES = (".overlay.png", ".figure.png", ".npy")


@dataclass(frozen=True, kw_only=True, repr=False)
class ImageExplanation(SingleExplanation):
    """The explanation of one image, with the image; tensors have a batch of one.

    Attributes:
        image: RGB, upright.
        box: the part of the image that the network saw.
        path: the image's file; ``None`` for an image in memory.
        name: what the image is called: its file's name, or that of the file a Pillow image was opened from, or
            ``image``, in a list ``image-3``.
        quantized: levels of heat quantization of the drawn maps, or ``None``.
    """

    image: Image.Image = field(repr=False)
    box: Box
    path: Path | None = None
    name: str = ""
    quantized: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", "image" if self.path is None else self.path.name)

    @property
    def additive(self) -> bool:
        """Whether the drawn values may be summed: the map is the relevance itself, or a mean of it over scales."""
        total = self.finest
        if self.quantized is not None or total is None or not isinstance(self.relevance, torch.Tensor):
            return False
        rounding = 16 * torch.finfo(total.dtype).eps * float(self.relevance.abs().max())  # of a sum over channels
        if torch.allclose(self.heatmap, total, rtol=0, atol=rounding):
            return True
        mean = mean_of_scales({**self.coarse, "image": total}, (total.shape[1], total.shape[2]))
        return mean is not None and torch.allclose(self.heatmap, mean.to(self.heatmap.dtype), rtol=0, atol=rounding)

    @property
    def image_map(self) -> np.ndarray:
        """The map in the image's own coordinates, float32 ``(height, width)``, NaN outside the network's crop.

        Where the map is :attr:`additive`, this is relevance per image pixel: it sums to the sum of the map (for methods
        that conserve, the probability), less what lies on padding outside the image. Otherwise it has the map's values.
        """
        heatmap = self.heatmap if self.quantized is None else heat_quantization(self.heatmap, self.quantized)
        return to_image(heatmap[0], self.box, *self.image.size, additive=self.additive)

    def overlay(self, style: Style | None = None) -> Image.Image:
        """The map laid over the image, in the image's size."""
        return overlay(self.image, self.image_map, self._style(style))

    def figure(self, style: Style | None = None) -> bytes:
        """Image, map with colour bar, and overlay, as PNG; says class, image, method, model and the bar's unit."""
        chosen = self._style(style)
        return figure(self.image, self.image_map, self._labels(chosen), chosen, levels=self._levels())

    def scales_figure(self, style: Style | None = None) -> bytes:
        """The map at every scale laid over the image, from coarse (where it looked) to fine (what it saw), as PNG.

        Raises:
            InputError: the method propagates no relevance, so there are no scales.
        """
        if not self.scales:
            raise InputError(
                f"method {self.method!r} has no scales; methods that propagate relevance have, such as LRP's"
            )
        sizes = {name: tuple(maps.shape[1:]) for name, maps in self.coarse.items()}
        drawn = {}
        for name, maps in self.scales.items():
            rows, columns = sizes.get(name, tuple(maps.shape[1:]))
            drawn[f"{rows} x {columns}, {name}"] = to_image(maps[0], self.box, *self.image.size)
        return scales_figure(self.image, drawn, f"{self.explained}: {self.name}, {self.method}", self._style(style))

    def _style(self, style: Style | None) -> Style:
        """Colours on both sides of 0 for a map of two classes, if nothing else is asked for."""
        style = style or Style()
        return replace(style, sign="signed") if self.against is not None and style.sign == "auto" else style

    def _levels(self) -> np.ndarray | None:
        """The values that a quantized map can have; ``None`` for others."""
        _, variant = split_name(self.method)
        if self.quantized is None and variant is None:
            return None
        quantized = self.heatmap if self.quantized is None else heat_quantization(self.heatmap, self.quantized)
        low, high = quantized.min().item(), quantized.max().item()
        return np.linspace(low, high, self.quantized or QUANTIZED_LEVELS + (variant == "equation"))

    def _labels(self, style: Style) -> Labels:
        account = self.conservation
        probability = f"{self.probability.item():.1%}"
        if self.additive:
            sign = {"positive": ", negative values as 0", "absolute": ", absolute values"}.get(style.sign, "")
            unit = "relevance per\nimage pixel"
            note = f"The values drawn{sign} sum to {{sum}}"
            begun = "probability" if self.against is None else "difference of the logits"
            note += "." if account is None else f"; the {begun} is {account.seed.item():.4g}."
        elif self.quantized is not None:
            unit = f"value of the map,\n{self.quantized} levels"
            note = f"Heat-quantized to {self.quantized} levels: the values do not sum to the probability."
        else:
            unit, note = "value of\nthe map", "This method's values do not sum to the probability."
        note += self.prediction_note()
        return Labels(
            title=self.explained,
            probability=probability,
            image=self.name,
            method=self._variant,
            model=self.card.name,
            unit=unit,
            note=note,
        )

    @property
    def _variant(self) -> str:
        """The method, with the quantization of what is drawn."""
        return self.method if self.quantized is None else f"{self.method}+hq{self.quantized}"

    @property
    def stem(self) -> str:
        """``IMAGE.MODEL.METHOD.TARGET``, the name of the files that :meth:`save` writes; safe on every file system."""
        return self.stem_with(Path(self.name).stem)

    def stem_with(self, image: str) -> str:
        """The same with another name for the image, for images of one stem."""
        return stem_of(image, self.card, self._variant, self.explained)

    def summary(self) -> dict[str, Any]:
        """Everything but the map, in values that JSON can hold."""
        if self.path is None:
            shown = self.name
            source = f"{self.name} ({self.image.width} x {self.image.height}, {_digest(self.image)})"
        else:
            shown, source = str(self.path), str(self.path.absolute())
        outcome = self.outcome({"image": source})
        outcome[MADE_FROM]["quantized_levels"] = self.quantized
        return {
            "image": shown,
            **outcome,
            "map": {
                "shape": list(self.heatmap.shape[1:]),
                "box_in_image": [self.box.left, self.box.top, self.box.right, self.box.bottom],
                "image_size": list(self.image.size),
                "quantized_levels": self.quantized,
            },
        }

    def _repr_png_(self) -> bytes:
        return self.figure()

    def _repr_html_(self) -> str:
        """The figure, the most probable classes and the account, for a notebook."""
        maps = f"its relevance map by {self._variant} for {self.explained}, and the map over the image"
        drawn = image_tag(self.figure(), f"{self.name}, {maps}")
        classes = class_table(self.probabilities[0], int(self.target), self.card.class_name)
        account = Table(ACCOUNT, [account_cells(self.conservation)], "rrr").html()
        return "".join((drawn, classes, "" if self.conservation is None else account))

    def save(
        self, out: str | Path, stem: str | None = None, style: Style | None = None, scales: bool = False
    ) -> list[Path]:
        """Write ``STEM.overlay.png``, ``STEM.figure.png``, ``STEM.npy`` (the raw map) and ``STEM.json`` to ``out``.

        The files of another result (another image, model, method or target) are never overwritten: the name is
        numbered then, ``STEM-2`` and so on. The same result made again replaces its own files.

        Args:
            out: the folder, created if need be.
            stem: the files' name, instead of ``IMAGE.MODEL.METHOD.TARGET``.
            style: colours.
            scales: write ``STEM.scales.png`` too, see :meth:`scales_figure`.

        Raises:
            OutputError: a file cannot be written.
            InputError: ``stem`` is not a file name, or the method has no scales.
        """
        drawn, raw = io.BytesIO(), io.BytesIO()
        np.save(raw, self.heatmap[0].float().cpu().numpy())
        self.overlay(style).save(drawn, format="png")
        contents = dict(zip(_SUFFIXES, (drawn.getvalue(), self.figure(style), raw.getvalue()), strict=True))
        if scales:
            contents[".scales.png"] = self.scales_figure(style)
        return write_files(out, stem, self.stem, self.summary(), contents)


def _digest(image: Image.Image) -> str:
    """The first 12 hexadecimal digits of a SHA-256 over the pixels."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:12]
