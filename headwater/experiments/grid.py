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

Part = tuple[Sequence[nn.Module], Sequence[LabelledImage]]
"""Networks, and the images that they explain."""


def explanation_grid(
    models: Sequence[nn.Module],
    images: Sequence[LabelledImage],
    methods: Mapping[str, str],
    images_in_rows: bool = True,
    style: Style | None = None,
    caption: str = "",
) -> bytes:
    """The maps of the images' own classes by every method, laid over the photos, as PNG.

    Args:
        models: networks; the first that a method is measured on explains.
        images: with their labels, which are explained.
        methods: names with their headings; those without a network are left out.
        images_in_rows: images are rows and methods columns, or the other way round.
        style: colours.
        caption: stands below.

    Raises:
        InputError: no images, or no method has a network.
    """
    return mixed_grid([(models, images)], methods, images_in_rows, style, caption)


def mixed_grid(
    parts: Sequence[Part],
    methods: Mapping[str, str],
    images_in_rows: bool = True,
    style: Style | None = None,
    caption: str = "",
) -> bytes:
    """As :func:`explanation_grid`, of images of several data sets, each with networks of its own.

    A panel is empty where a method has no network for one of the data sets.
    """
    parts = [(models, images) for models, images in parts if images]
    shown = [name for name in methods if any(networks_for(name, models) for models, _ in parts)]
    if not shown:
        count = sum(len(images) for _, images in parts)
        raise InputError(f"a grid needs images and methods with a network, got {count} and {len(shown)}")
    headings: list[str] = []
    lines: dict[str, list[Image.Image]] = {name: [] for name in ("", *shown)}
    for models, images in parts:
        labels = torch.tensor([image.label for image in images])
        chosen = {name: found[0] for name in shown if (found := networks_for(name, models))}
        card = card_of(next(iter(chosen.values()), models[0]))
        opened = [image.open() for image in images]
        photos = [seen(card.preprocessing(image), card.preprocessing) for image in opened]
        headings += [class_of(image, card) for image in images]
        lines[""] += photos
        for name in shown:
            if name not in chosen:
                lines[name] += [Image.new("RGB", photo.size, "white") for photo in photos]
                continue
            x = network_input(chosen[name], opened)
            heatmaps = load_method(name, chosen[name])(x, labels.to(x.device)).heatmap
            lines[name] += [overlaid(p, h, style) for p, h in zip(photos, heatmaps, strict=True)]
    places = [(line, image) for line in range(len(lines)) for image in range(len(headings))]
    if images_in_rows:
        places.sort(key=lambda place: place[::-1])
    panels, titles = list(lines.values()), ["", *(methods[name] for name in shown)]
    return contact_sheet(
        [np.asarray(panels[line][image]) for line, image in places],
        # The image's class over its photo, the method's heading over its first map.
        [headings[image] if line == 0 else titles[line] * (image == 0) for line, image in places],
        columns=len(lines) if images_in_rows else len(headings),
        caption=caption,
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
