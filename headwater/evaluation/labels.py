"""A data set's labels as class indices of a network, matched by name, position, file or prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image
from torch import nn

from headwater.data.classes import (
    found_images,
    label_indices,
    listed_images,
    mapped_folders,
    match_classes,
    with_labels_of,
)
from headwater.data.labelled import LabelledImages, has_lists, load_labelled
from headwater.data.preprocessing import Preprocessing
from headwater.data.storage import as_path
from headwater.data.texts import read_columns
from headwater.engine.prediction import Predictor
from headwater.errors import DataError, InputError
from headwater.evaluation.settings import LABELS, Settings
from headwater.models.card import ModelCard, card_of, network_input, wnids_among

PREDICTED = -1
"""Label of an image that stands for the class that the network predicts."""


@dataclass(frozen=True)
class NetworkLabels:
    """A data set with labels that are a network's class indices.

    Attributes:
        data: the images; labels are the network's class indices, or :data:`PREDICTED`.
        source: ``"names"``, ``"positions"``, ``"predicted"``, the name of a file, or ``"given"`` where the data set had
            the network's indices already.
        classes: how many classes the network has.
    """

    data: LabelledImages
    source: str
    classes: int


def label_for(
    model: nn.Module,
    data: str | Path | LabelledImages,
    settings: Settings,
    preprocessing: Preprocessing | None = None,
) -> NetworkLabels:
    """Load a data set and find each image's class among the network's.

    The labels of a data set without class names are taken as the network's indices.

    Args:
        model: the network; its card has the names of its classes.
        data: a folder (see :func:`headwater.data.load_labelled`) or the data set itself.
        settings: ``labels`` and ``split`` of these are used.
        preprocessing: for a model of your own that has no card.

    Raises:
        DataError: the data do not fit, or their classes cannot be found among the network's.
        InputError: the network does not return logits ``(N, K)``.
    """
    card = card_of(model, preprocessing)
    count = len(card.classes) if card.classes is not None else _class_count(model, card)
    if settings.labels == "predicted":
        found = _images(data, settings.split, card)
        unlabelled = tuple(replace(image, label=PREDICTED) for image in found.images)
        return NetworkLabels(LabelledImages(found.layout, unlabelled), "predicted", count)
    if settings.labels not in LABELS:
        return NetworkLabels(_from_file(data, settings, card, count), Path(settings.labels).name, count)
    found = data if isinstance(data, LabelledImages) else load_labelled(data, settings.split)
    if found.classes is None:
        outside = [image.label for image in found.images if not 0 <= image.label < count]
        if outside:
            raise DataError(f"label {outside[0]} is out of range; {card.name} has classes 0 to {count - 1}")
        return NetworkLabels(found, "given", count)
    if settings.labels == "positions":
        if len(found.classes) != count:
            raise DataError(
                f"{card.name} has {count} classes, the data ({found.layout}) have {len(found.classes)}; positions "
                "cannot be the same"
            )
        return NetworkLabels(with_labels_of(found, range(count)), "positions", count)
    names = found.names() or ()
    used = sorted({image.label for image in found.images})  # a folder without images needs no class
    mine = [names[label] for label in used]
    places = match_classes(mine, card.classes, wnids_among(names, card, count), card.name)
    return NetworkLabels(with_labels_of(found, dict(zip(used, places, strict=True))), "names", count)


def _images(data: str | Path | LabelledImages, split: str, card: ModelCard) -> LabelledImages:
    """The images without regard to labels: those of a layout with lists, else all below the folder (of the split)."""
    if isinstance(data, LabelledImages):
        return data
    root = as_path(data)
    if has_lists(root):
        return load_labelled(root, split)
    return found_images(root / split if (root / split).is_dir() else root)


def _from_file(data: str | Path | LabelledImages, settings: Settings, card: ModelCard, count: int) -> LabelledImages:
    file = Path(settings.labels)
    indices_of = partial(label_indices, classes=card.classes, wnids=card.wnids, count=count, network=card.name)
    columns = read_columns(file)
    if "label" not in columns or not {"image", "folder"} & set(columns):
        raise DataError(
            f"{file} needs columns image,label or folder,label, separated by commas; it has "
            f"{', '.join(map(repr, columns)) or 'none'}"
        )
    if "image" in columns:
        found = _images(data, settings.split, card)
        root = None if isinstance(data, LabelledImages) or has_lists(as_path(data)) else as_path(data)
        return listed_images(found, root, file, indices_of)
    found = data if isinstance(data, LabelledImages) else load_labelled(data, settings.split)
    if found.classes is None:
        raise DataError(f"{file} labels folders, but the data have the network's class indices already")
    return mapped_folders(found, file, indices_of)


def _class_count(model: nn.Module, card: ModelCard) -> int:
    """Number of logits that the network returns per image."""
    blank = Image.new("RGB", card.preprocessing.size[::-1])
    x = network_input(model, [blank], card.preprocessing)
    logits = Predictor(model, x).logits(x)
    if logits.ndim != 2:
        raise InputError(f"{card.name} returns {tuple(logits.shape)}; logits (N, K) are needed")
    return logits.shape[1]
