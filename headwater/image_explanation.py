"""One call, from an image file to its explanation."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from headwater.data.images import open_image, opened
from headwater.data.preprocessing import Box, Preprocessing, to_image
from headwater.data.storage import StoragePath, as_path
from headwater.engine.explanation import Explanation
from headwater.engine.scales import mean_of_scales
from headwater.errors import HeadwaterError, InputError
from headwater.files import safe_name, write_bytes, write_record
from headwater.heatmaps import heat_quantization
from headwater.methods import DEFAULT_METHOD, QUANTIZED_LEVELS, explains_against, load_method, split_name
from headwater.models import ModelCard, card_of, default_model, load_model, network_input, weights_digest
from headwater.report.images import Labels, Style, figure, overlay
from headwater.report.notebook import ACCOUNT, account_cells, class_table, image_tag
from headwater.report.scales import scales_figure
from headwater.report.tabular import Table

MADE_FROM = "made_from"
"""Key of a result's JSON that says what the result was made from; results that differ in it never share a file name."""
_SUFFIXES = (".overlay.png", ".figure.png", ".npy")


@dataclass(frozen=True, kw_only=True, repr=False)
class ImageExplanation(Explanation):
    """The explanation of one image, with the image; tensors have a batch of one.

    Attributes:
        path: the image's file.
        image: RGB, upright.
        box: the part of the image that the network saw.
        card: what belongs to the model.
        method: name of the method.
        predicted: the predicted class.
        weights_digest: of the network's weights as they were; tells apart networks of one name.
        quantized: levels of heat quantization of the drawn maps, or ``None``.
    """

    path: Path
    image: Image.Image = field(repr=False)
    box: Box
    card: ModelCard
    method: str
    predicted: int
    weights_digest: str
    quantized: int | None = None

    @property
    def additive(self) -> bool:
        """Whether the drawn values may be summed: the map is the relevance itself, or a mean of it over scales."""
        if self.quantized is not None or self.relevance is None:
            return False
        total = self.relevance.sum(1)
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
        return scales_figure(
            self.image, drawn, f"{self.explained}: {self.path.name}, {self.method}", self._style(style)
        )

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

    @property
    def explained(self) -> str:
        """The class, and the one that it is explained against."""
        name = self.card.class_name(int(self.target))
        return name if self.against is None else f"{name}, not {self.card.class_name(int(self.against))}"

    def _labels(self, style: Style) -> Labels:
        target, account = int(self.target), self.conservation
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
        if target != self.predicted:
            most = self.logits.softmax(1)[0, self.predicted].item()
            note += f"  Predicted: {self.card.class_name(self.predicted)} {most:.1%}"
        return Labels(
            title=self.explained,
            probability=probability,
            image=self.path.name,
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
        return self.stem_with(self.path.stem)

    def stem_with(self, image: str) -> str:
        """The same with another name for the image, for images of one stem."""
        return stem_of(image, self.card, self._variant, self.explained)

    def summary(self) -> dict[str, Any]:
        """Everything but the map, in values that JSON can hold."""
        target, account = int(self.target), self.conservation
        other = None if self.against is None else int(self.against)
        return {
            "image": str(self.path),
            MADE_FROM: {
                "image": str(self.path.absolute()),
                "model": self.card.name,
                "weights": self.card.weights,
                "weights_digest": self.weights_digest,
                "method": self.method,
                "target": target,
                "against": other,
                "quantized_levels": self.quantized,
            },
            "model": self.card.name,
            "weights": self.card.weights,
            "method": self.method,
            "target": {"index": target, "name": self.card.class_name(target), "probability": self.probability.item()},
            "against": None if other is None else {"index": other, "name": self.card.class_name(other)},
            "predicted": {
                "index": self.predicted,
                "name": self.card.class_name(self.predicted),
                "probability": self.logits.softmax(1)[0, self.predicted].item(),
            },
            "conservation": None
            if account is None
            else {"seed": account.seed.item(), "input": account.input.item(), "relative_error": account.error.item()},
            "flow": None if self.flow is None else self.flow.as_rows(),
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
        drawn = image_tag(self.figure(), f"{self.path.name}, {maps}")
        classes = class_table(self.logits[0], int(self.target), self.card.class_name)
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
        if stem is not None and (stem in ("", ".", "..") or Path(stem).name != stem):
            raise InputError(f"stem must be a file name without a folder, got {stem!r}; the folder is given as out")
        drawn, raw = io.BytesIO(), io.BytesIO()
        np.save(raw, self.heatmap[0].float().cpu().numpy())
        self.overlay(style).save(drawn, format="png")
        contents = dict(zip(_SUFFIXES, (drawn.getvalue(), self.figure(style), raw.getvalue()), strict=True))
        if scales:
            contents[".scales.png"] = self.scales_figure(style)
        name = write_record(Path(out), stem or self.stem, self.summary(), MADE_FROM, tuple(contents))
        written = [write_bytes(Path(out) / f"{name}{suffix}", content) for suffix, content in contents.items()]
        return [*written, Path(out) / f"{name}.json"]


def stem_of(first: str, card: ModelCard, method: str, target: str) -> str:
    """``FIRST.MODEL.METHOD.TARGET`` as a file name; a model loaded from a file is called by the end of its path."""
    model = "/".join(Path(card.name).parts[-2:])
    return ".".join([safe_name(first), safe_name(model, 40), safe_name(method, 40), safe_name(target, 40)])


def explain(
    image: str | Path,
    model: str | Path | nn.Module | None = None,
    method: str = DEFAULT_METHOD,
    target: int | str | None = None,
    quantize: int | None = None,
    preprocessing: Preprocessing | None = None,
    against: int | str | None = None,
) -> ImageExplanation:
    """Explain an image file.

    Args:
        image: the file.
        model: a name (see :func:`load_model`), or a module; ``None`` for ResNet-50 if its ImageNet weights
            are in torch's cache, else EfficientNet-Lite0 if the extra ``imagenet`` is installed, else tiny20.
        method: a name (see :func:`list_methods`).
        target: class to explain, by number or name; ``None`` for the predicted one.
        quantize: levels of heat quantization for the drawn maps.
        preprocessing: for a module of your own that has no card.
        against: explain why the target and not this class, by number or name: the map has both signs, and sums to the
            difference of the two logits. ``"headwater"`` is the method for it; ``"otsuki2024"`` hardly tells classes
            apart.

    Raises:
        HeadwaterError: the image, the model, the method or a class does not fit; the message says which and why.

    >>> import headwater as hw
    >>> e = hw.explain("examples/espresso.jpg", model="tiny20")
    >>> e.card.class_name(e.predicted)
    'espresso'
    >>> e.overlay().size == e.image.size
    True
    """
    if not isinstance(image, (str, Path)):
        raise InputError(
            f"image must be a file's path, got {type(image).__name__}; for tensors use LRP(model)(x) or load_method"
        )
    network = default_model() if model is None else model if isinstance(model, nn.Module) else load_model(model)
    (result,) = explain_files([image], network, method, target, quantize, preprocessing, against=against)
    if isinstance(result, HeadwaterError):
        raise result
    return result


def explain_files(
    images: Sequence[str | Path | StoragePath],
    model: nn.Module,
    method: str = DEFAULT_METHOD,
    target: int | str | None = None,
    quantize: int | None = None,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
    against: int | str | None = None,
) -> Iterator[ImageExplanation | HeadwaterError]:
    """Explain image files in batches; for an image that cannot be explained, its error is yielded instead.

    Args and raises: as :func:`explain`; an unknown method, target or unfit model is raised at once. ``progress`` is
    called with the steps done of one batch and the steps in all.
    """
    if quantize is not None and quantize < 2:
        raise InputError(f"quantization needs at least 2 levels, got {quantize}")
    card = card_of(model, preprocessing)
    chosen = None if target is None else card.class_index(target)
    explainer, digest = load_method(method, model), weights_digest(model)
    options: dict[str, Any] = {}
    if against is not None:
        if not explains_against(explainer):
            raise InputError(f"method {method!r} explains one class; against takes headwater or a composite of LRP")
        options = {"against": card.class_index(against), "start": "logit"}
        if chosen is not None and chosen == options["against"]:
            raise InputError(
                f"target and against are the same class, {card.class_name(chosen)}; a map of why one class and not "
                "another needs two"
            )
        batch_size = batch_size if chosen is not None else 1  # an image may be predicted as that class: its own error

    def explanations() -> Iterator[ImageExplanation | HeadwaterError]:
        for start in range(0, len(images), batch_size):
            paths = [as_path(p) for p in images[start : start + batch_size]]
            remote = any(isinstance(path, StoragePath) for path in paths)
            found = opened([partial(open_image, path) for path in paths], remote)
            readable = [p for p in found if not isinstance(p, HeadwaterError)]
            if readable:
                x = network_input(model, readable, card.preprocessing)
                try:
                    e = explainer(x, chosen, progress=progress, **options)
                except InputError as error:
                    if against is None or chosen is not None or x.shape[0] != 1:
                        raise
                    yield type(error)(f"{paths[0]}: {error}")
                    continue
            position = 0
            for path, image in zip(paths, found, strict=True):
                if isinstance(image, HeadwaterError):
                    yield image
                    continue
                one = e.select(position)
                position += 1
                yield ImageExplanation(
                    **vars(one),
                    path=path,
                    image=image,
                    box=card.preprocessing.box(*image.size),
                    card=card,
                    method=method,
                    predicted=int(one.logits.argmax(1)),
                    weights_digest=digest,
                    quantized=quantize,
                )

    return explanations()
