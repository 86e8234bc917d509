"""One call, from a picture file to its explanation."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from headwater.data.pictures import open_picture
from headwater.data.preprocessing import Box, Preprocessing, to_picture
from headwater.errors import DownloadError, HeadwaterError, InputError
from headwater.explanation import Explanation
from headwater.files import write_bytes, write_text
from headwater.heatmaps import heat_quantization
from headwater.methods import load_method
from headwater.methods.rise import Rise
from headwater.models import ModelCard, card_of, load_model, network_input
from headwater.report.pictures import Style, figure, overlay


@dataclass(frozen=True, kw_only=True)
class PictureExplanation(Explanation):
    """The explanation of one picture, with the picture; tensors have a batch of one.

    Attributes:
        path: the picture's file.
        picture: RGB, upright.
        box: the part of the picture that the network saw.
        card: what belongs to the model.
        method: name of the method.
        predicted: the predicted class.
        quantized: levels of heat quantization of the drawn maps, or ``None``.
    """

    path: Path
    picture: Image.Image = field(repr=False)
    box: Box
    card: ModelCard
    method: str
    predicted: int
    quantized: int | None = None

    @property
    def picture_map(self) -> np.ndarray:
        """The map in the picture's own coordinates, float32 ``(height, width)``, NaN where the network did not look."""
        heatmap = self.heatmap if self.quantized is None else heat_quantization(self.heatmap, self.quantized)
        return to_picture(heatmap[0], self.box, *self.picture.size)

    def overlay(self, style: Style | None = None) -> Image.Image:
        """The map laid over the picture, in the picture's size."""
        return overlay(self.picture, self.picture_map, style)

    def figure(self, style: Style | None = None) -> bytes:
        """Picture, map with colour bar, and overlay, as PNG."""
        target = int(self.target)
        title = f"{self.card.class_name(target)}  {self.probability.item():.1%}"
        if target != self.predicted:
            title += f"  (predicted: {self.card.class_name(self.predicted)})"
        return figure(self.picture, self.picture_map, title, self.method, style)

    def summary(self) -> dict[str, Any]:
        """Everything but the map, as JSON takes it."""
        target, account = int(self.target), self.conservation
        return {
            "picture": str(self.path),
            "model": self.card.name,
            "weights": self.card.weights,
            "method": self.method,
            "target": {"index": target, "name": self.card.class_name(target), "probability": self.probability.item()},
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
                "box_in_picture": [self.box.left, self.box.top, self.box.right, self.box.bottom],
                "picture_size": list(self.picture.size),
                "quantized_levels": self.quantized,
            },
        }

    def save(self, out: str | Path, stem: str | None = None, style: Style | None = None) -> list[Path]:
        """Write ``STEM.overlay.png``, ``STEM.figure.png``, ``STEM.npy`` (the raw map) and ``STEM.json`` to ``out``.

        Raises:
            OutputError: the folder cannot be written.
        """
        stem = stem or f"{self.path.stem}.{self.method}"
        base, stream, laid = Path(out) / stem, io.BytesIO(), io.BytesIO()
        np.save(stream, self.heatmap[0].float().cpu().numpy())
        self.overlay(style).save(laid, format="png")
        return [
            write_bytes(base.with_name(f"{stem}.overlay.png"), laid.getvalue()),
            write_bytes(base.with_name(f"{stem}.figure.png"), self.figure(style)),
            write_bytes(base.with_name(f"{stem}.npy"), stream.getvalue()),
            write_text(base.with_name(f"{stem}.json"), json.dumps(self.summary(), indent=1)),
        ]


def explain(
    picture: str | Path,
    model: str | Path | nn.Module | None = None,
    method: str = "otsuki2024",
    target: int | str | None = None,
    quantize: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> PictureExplanation:
    """Explain a picture file.

    Args:
        picture: the file.
        model: a name (see :func:`load_model`), or a module; ``None`` for ResNet-50 with ImageNet weights, or the
            bundled network where those cannot be had, with a warning.
        method: a name (see :func:`list_methods`).
        target: class to explain, by number or name; ``None`` for the predicted one.
        quantize: levels of heat quantization for the drawn maps.
        preprocessing: for a module of your own that has no card.

    Raises:
        HeadwaterError: whatever does not fit, in words.

    >>> import headwater as hw
    >>> e = hw.explain("examples/espresso.jpg", model="tiny20")
    >>> e.card.class_name(e.predicted)
    'espresso'
    >>> e.overlay().size == e.picture.size
    True
    """
    if not isinstance(picture, (str, Path)):
        raise InputError(
            f"picture must be a file's path, got {type(picture).__name__}; for tensors use LRP(model)(x) or load_method"
        )
    network = default_model() if model is None else model if isinstance(model, nn.Module) else load_model(model)
    (result,) = explain_files([picture], network, method, target, quantize, preprocessing)
    if isinstance(result, HeadwaterError):
        raise result
    return result


def explain_files(
    pictures: Sequence[str | Path],
    model: nn.Module,
    method: str = "otsuki2024",
    target: int | str | None = None,
    quantize: int | None = None,
    preprocessing: Preprocessing | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[PictureExplanation | HeadwaterError]:
    """Explain picture files in batches; a picture that cannot be explained gives its error in its place.

    Args and raises: as :func:`explain`; an unknown method, target or unfit model is raised at once. ``progress`` is
    told by methods that take long over one batch (RISE): masks done, masks in all.
    """
    if quantize is not None and quantize < 2:
        raise InputError(f"quantization needs at least 2 levels, got {quantize}")
    card = card_of(model, preprocessing)
    chosen = None if target is None else card.class_index(target)
    explainer = load_method(method, model)
    if isinstance(explainer, Rise):
        explainer.progress = progress

    def explanations() -> Iterator[PictureExplanation | HeadwaterError]:
        for start in range(0, len(pictures), batch_size):
            paths = [Path(p) for p in pictures[start : start + batch_size]]
            opened = [_open(path) for path in paths]
            readable = [p for p in opened if not isinstance(p, HeadwaterError)]
            if readable:
                e = explainer(network_input(model, readable, card.preprocessing), chosen)
            position = 0
            for path, picture in zip(paths, opened, strict=True):
                if isinstance(picture, HeadwaterError):
                    yield picture
                    continue
                one = e.select(position)
                position += 1
                yield PictureExplanation(
                    **vars(one),
                    path=path,
                    picture=picture,
                    box=card.preprocessing.box(*picture.size),
                    card=card,
                    method=method,
                    predicted=int(one.logits.argmax(1)),
                    quantized=quantize,
                )

    return explanations()


def _open(path: Path) -> Image.Image | HeadwaterError:
    try:
        return open_picture(path)
    except HeadwaterError as error:
        return error


def default_model(progress: bool = True) -> nn.Module:
    """ResNet-50 with ImageNet weights where they are cached or can be downloaded, else the bundled network, loudly."""
    try:
        return load_model("resnet50", progress=progress)
    except DownloadError as error:
        print(
            f"headwater: {error}\nheadwater: WARNING: falling back to the bundled network tiny20, which knows "
            "only 20 classes (headwater models). Its explanation is of ITS prediction, not of ResNet-50's.",
            file=sys.stderr,
        )
        return load_model("tiny20")
