"""Every measure of every method on the images of one chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from headwater.data.labelled import LabelledImage, open_images
from headwater.data.preprocessing import Preprocessing, seen
from headwater.engine.explanation import Explanation
from headwater.engine.prediction import Predictor
from headwater.errors import DataError, HeadwaterError, InputError
from headwater.evaluation.labels import PREDICTED
from headwater.evaluation.settings import Settings
from headwater.evaluation.thumbnails import small_map, small_photo
from headwater.heatmaps import heat_quantization
from headwater.methods import Method, load_method, split_name
from headwater.metrics import gini, insertion_deletion, pointing_game, relevance_mass, relevance_rank
from headwater.metrics.failures import overlap
from headwater.models import network_input


class Worker:
    """One model on one device with its methods."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, settings: Settings) -> None:
        self.model, self.preprocessing, self.settings = model, preprocessing, settings
        names = dict.fromkeys(split_name(name)[0] for name in settings.methods)
        self.methods: dict[str, Method] = {name: load_method(name, model) for name in names}

    def rows(
        self, images: Sequence[LabelledImage], given_up: Mapping[str, str] = MappingProxyType({})
    ) -> list[dict[str, Any]]:
        """One row per image and method of a chunk, also for images that cannot be read.

        The image's small photo is in the row of its first method.

        Args:
            images: of the chunk.
            given_up: names of images that are not tried, and why; a row of theirs has the reason as ``error``.

        Raises:
            StorageError: the storage refuses all images of the chunk.
        """
        readable, photos, masks, broken = [], [], [], dict(given_up)
        tried = [image for image in images if image.name not in given_up]
        for image, opened in zip(tried, open_images(tried), strict=True):
            if isinstance(opened, HeadwaterError):
                broken[image.name] = str(opened)
                continue
            readable.append(image)
            photos.append(opened)
            masks.append(object_mask(image, self.preprocessing, opened.size))
        measured: dict[tuple[str, str], dict[str, Any]] = {}
        followed = dict[str, int]()
        if readable:
            x = network_input(self.model, photos, self.preprocessing)
            labels = self._labels(x, readable)
            followed = dict(zip((image.name for image in readable), labels.tolist(), strict=True))
            explained = {name: method(x, checkpoints="cuts") for name, method in self.methods.items()}
            for name in self.settings.methods:
                base, variant = split_name(name)
                e = explained[base]
                heatmap = e.heatmap if variant is None else heat_quantization(e.heatmap, variant=variant)
                if not heatmap.isfinite().all():
                    raise InputError(f"the maps of {name} hold NaN or infinity on this network; leave it out")
                rows = self._measure(e, heatmap, x, labels, masks)
                for image, row, given, one in zip(readable, rows, x, heatmap, strict=True):
                    first = name == self.settings.methods[0]
                    photo = small_photo(seen(given, self.preprocessing)) if first else None
                    measured[image.name, name] = {**row, "map": small_map(one), "photo": photo}
        empty = {"predicted": -1, "probability": math.nan, "map": None, "photo": None}
        return [
            {
                "image": image.name,
                "label": followed.get(image.name, image.label),
                "method": name,
                "error": broken.get(image.name),
                **(measured.get((image.name, name)) or empty),
            }
            for image in images
            for name in self.settings.methods
        ]

    def _labels(self, x: Tensor, images: Sequence[LabelledImage]) -> Tensor:
        """The class that the curves follow, ``(N,)``."""
        if all(image.label == PREDICTED for image in images):
            return Predictor(self.model, x).predicted(x)
        return torch.tensor([image.label for image in images], device=x.device)

    def _measure(
        self, e: Explanation, heatmap: Tensor, x: Tensor, labels: Tensor, masks: Sequence[Tensor | None]
    ) -> Iterator[dict[str, Any]]:
        if (labels >= e.logits.shape[1]).any():
            raise DataError(f"label {int(labels.max())} is out of range; the network has {e.logits.shape[1]} classes")
        columns: dict[str, Tensor] = {"predicted": e.target, "probability": e.probability}
        step = self.settings.step_for(x.shape[2] * x.shape[3])
        for protocol in self.settings.protocols:
            result = insertion_deletion(
                self.model,
                x,
                heatmap,
                labels,
                protocol,
                step,
                mean=self.preprocessing.mean,
                std=self.preprocessing.std,
                batch_size=max(32, self.settings.batch_size),
                seed=self.settings.seed,
            )
            columns |= {
                f"insertion_{protocol}": result.insertion,
                f"deletion_{protocol}": result.deletion,
                f"id_{protocol}": result.id,
                f"insertion_{protocol}_curve": result.insertion_curve,
                f"deletion_{protocol}_curve": result.deletion_curve,
            }
        nothing = torch.full((len(x),), math.nan)
        account = e.conservation
        at_cuts = [] if account is None else list(account.checkpoint_errors.values())
        columns["conservation_error"] = nothing if account is None else account.error
        columns["cut_error"] = torch.stack(at_cuts).amax(0) if at_cuts else nothing
        known = [k for k, mask in enumerate(masks) if mask is not None]
        inside = torch.stack([m for m in masks if m is not None]) if known else None
        for column, measure in (("pointing", pointing_game), ("mass", relevance_mass), ("rank", relevance_rank)):
            values = nothing.clone()
            if inside is not None:
                values[known] = measure(heatmap[known], inside.to(x.device)).float().cpu()
            columns[column] = values
        columns |= {"box_covered": nothing.clone(), "inside_box": nothing.clone()}
        if inside is not None:
            found = overlap(heatmap[known], inside.to(x.device))
            columns["box_covered"][known], columns["inside_box"][known] = (
                found.covered.float().cpu(),
                found.inside.float().cpu(),
            )
        columns["gini"] = gini(heatmap)
        plain = {column: values.cpu().tolist() for column, values in columns.items()}
        for k in range(len(x)):
            yield {column: values[k] for column, values in plain.items()}


def worker_on(model: nn.Module, preprocessing: Preprocessing, settings: Settings, device: str) -> Worker:
    """A worker whose model is moved to a device."""
    return Worker(model.to(device), preprocessing, settings)


def object_mask(image: LabelledImage, preprocessing: Preprocessing, size: tuple[int, int]) -> Tensor | None:
    """The image's boxes as a mask of the network's crop, ``(height, width)``; ``None`` if no box lies in it."""
    seen, (rows, columns) = preprocessing.box(*size), preprocessing.size
    mask = torch.zeros(rows, columns)
    across, down = columns / (seen.right - seen.left), rows / (seen.bottom - seen.top)
    for box in image.boxes:
        left, right = (round((edge - seen.left) * across) for edge in (box.left, box.right))
        top, bottom = (round((edge - seen.top) * down) for edge in (box.top, box.bottom))
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
    return mask if mask.any() else None
