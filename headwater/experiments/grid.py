"""Figures that show pictures with the maps of several methods."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from headwater.data.labelled import LabelledPicture, LabelledPictures
from headwater.data.preprocessing import Preprocessing
from headwater.errors import InputError
from headwater.experiments.networks import networks_for
from headwater.methods import load_method
from headwater.models import ModelCard, card_of, network_input
from headwater.report.pictures import Style, overlay
from headwater.report.sheet import contact_sheet


def explanation_grid(
    models: Sequence[nn.Module],
    pictures: Sequence[LabelledPicture],
    methods: Mapping[str, str],
    pictures_in_rows: bool = True,
    style: Style | None = None,
) -> bytes:
    """The maps of the pictures' own classes by every method, laid over the photos, as PNG.

    Args:
        models: networks; the first that a method is measured on explains.
        pictures: with their labels, which are explained.
        methods: names with their headings; those without a network are left out.
        pictures_in_rows: pictures are rows and methods columns, or the other way round.
        style: colours.

    Raises:
        InputError: no pictures, or no method has a network.
    """
    chosen = {name: found[0] for name in methods if (found := networks_for(name, models))}
    if not pictures or not chosen:
        raise InputError(f"a grid needs pictures and methods with a network, got {len(pictures)} and {len(chosen)}")
    labels = torch.tensor([picture.label for picture in pictures])
    card = card_of(next(iter(chosen.values())))
    opened = [picture.open() for picture in pictures]
    photos = [seen(card.preprocessing(picture), card.preprocessing) for picture in opened]
    lines = [("", photos)]
    for name, model in chosen.items():
        x = network_input(model, opened)
        heatmaps = load_method(name, model)(x, labels.to(x.device)).heatmap
        lines.append((methods[name], [overlaid(p, h, style) for p, h in zip(photos, heatmaps, strict=True)]))
    headings = [class_of(picture, card) for picture in pictures]
    places = [(line, picture) for line in range(len(lines)) for picture in range(len(pictures))]
    if pictures_in_rows:
        places.sort(key=lambda place: place[::-1])

    def title(line: int, picture: int) -> str:
        """A picture is named at its photo, a method at its first map."""
        return headings[picture] if line == 0 else lines[line][0] * (picture == 0)

    return contact_sheet(
        [np.asarray(lines[line][1][picture]) for line, picture in places],
        [title(line, picture) for line, picture in places],
        columns=len(lines) if pictures_in_rows else len(pictures),
    )


def seen(x: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """The part of a photo that the network sees, back from the network's input ``(3, H, W)``."""
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return to_pil_image((x.cpu().float() * std + mean).clamp(0, 1))


def overlaid(photo: Image.Image, heatmap: Tensor, style: Style | None = None) -> Image.Image:
    """A map ``(H, W)`` over what the network saw."""
    return overlay(photo, heatmap.detach().float().cpu().numpy(), style)


def class_of(picture: LabelledPicture, card: ModelCard) -> str:
    """The name of a picture's class; where the network's classes have no names, what the picture's file says."""
    if card.classes is not None:
        return card.class_name(picture.label)
    *folders, file = picture.name.split("/")
    return re.sub(r"^n\d{8}_", "", folders[-1] if folders else file.rsplit(".", 1)[0]).replace("_", " ")


def find_classes(data: LabelledPictures, card: ModelCard, wanted: Sequence[str]) -> list[LabelledPicture]:
    """One picture of each wanted class that the data have, found by the name that the network has for its label."""
    found = []
    for name in wanted:
        for picture in data.pictures:
            if _plain(name) == _plain(class_of(picture, card)):
                found.append(picture)
                break
    return found


def _plain(name: str) -> str:
    """Letters alone, without a leading synset or class number."""
    return re.sub(r"[^a-z]", "", re.sub(r"^(n\d{8}_|\d+\.)", "", name.lower()))
