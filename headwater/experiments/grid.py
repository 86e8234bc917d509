"""Figures that show images with the maps of several methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from headwater.data.labelled import LabelledImage, LabelledImages
from headwater.data.preprocessing import seen
from headwater.errors import InputError
from headwater.experiments.networks import networks_for
from headwater.methods import load_method
from headwater.models import ModelCard, card_of, network_input
from headwater.report.images import Style, overlay
from headwater.report.sheet import contact_sheet


def explanation_grid(
    models: Sequence[nn.Module],
    images: Sequence[LabelledImage],
    methods: Mapping[str, str],
    images_in_rows: bool = True,
    style: Style | None = None,
) -> bytes:
    """The maps of the images' own classes by every method, laid over the photos, as PNG.

    Args:
        models: networks; the first that a method is measured on explains.
        images: with their labels, which are explained.
        methods: names with their headings; those without a network are left out.
        images_in_rows: images are rows and methods columns, or the other way round.
        style: colours.

    Raises:
        InputError: no images, or no method has a network.
    """
    chosen = {name: found[0] for name in methods if (found := networks_for(name, models))}
    if not images or not chosen:
        raise InputError(f"a grid needs images and methods with a network, got {len(images)} and {len(chosen)}")
    labels = torch.tensor([image.label for image in images])
    card = card_of(next(iter(chosen.values())))
    opened = [image.open() for image in images]
    photos = [seen(card.preprocessing(image), card.preprocessing) for image in opened]
    lines = [("", photos)]
    for name, model in chosen.items():
        x = network_input(model, opened)
        heatmaps = load_method(name, model)(x, labels.to(x.device)).heatmap
        lines.append((methods[name], [overlaid(p, h, style) for p, h in zip(photos, heatmaps, strict=True)]))
    headings = [class_of(image, card) for image in images]
    places = [(line, image) for line in range(len(lines)) for image in range(len(images))]
    if images_in_rows:
        places.sort(key=lambda place: place[::-1])

    def title(line: int, image: int) -> str:
        """The image's class over its photo, the method's heading over its first map, else nothing."""
        return headings[image] if line == 0 else lines[line][0] * (image == 0)

    return contact_sheet(
        [np.asarray(lines[line][1][image]) for line, image in places],
        [title(line, image) for line, image in places],
        columns=len(lines) if images_in_rows else len(images),
    )


def overlaid(photo: Image.Image, heatmap: Tensor, style: Style | None = None) -> Image.Image:
    """A map ``(H, W)`` over what the network saw."""
    return overlay(photo, heatmap.detach().float().cpu().numpy(), style)


def class_of(image: LabelledImage, card: ModelCard) -> str:
    """The name of an image's class; taken from its folder or file where the network's classes have no names."""
    if card.classes is not None:
        return card.class_name(image.label)
    *folders, file = image.name.split("/")
    return re.sub(r"^n\d{8}_", "", folders[-1] if folders else file.rsplit(".", 1)[0]).replace("_", " ")


def find_classes(data: LabelledImages, card: ModelCard, wanted: Sequence[str]) -> list[LabelledImage]:
    """The first image of each wanted class, matched by the network's name for its label; without those not found."""
    found = []
    for name in wanted:
        for image in data.images:
            if _plain(name) == _plain(class_of(image, card)):
                found.append(image)
                break
    return found


def _plain(name: str) -> str:
    """The letters of a class name in lower case, without a leading synset or class number."""
    return re.sub(r"[^a-z]", "", re.sub(r"^(n\d{8}_|\d+\.)", "", name.lower()))
