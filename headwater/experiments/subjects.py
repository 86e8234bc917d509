"""What an experiment looks at: data sets, each with the networks for it, by the names that a figure knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from headwater.data.labelled import LabelledImages
from headwater.errors import InputError
from headwater.models import card_of
from headwater.report.images import Style

Data = str | Path | LabelledImages
"""A folder or the data set itself."""
STYLES: Mapping[str, Style] = {
    "published": Style("jet", "positive", clip=98, clip_by="mass", opacity=0.4, even=True),
    "headwater": Style(),
}
"""How maps are drawn. ``"published"``, as the authors' code does (``exp.sh``: ``--normalize --sign positive``;
``utils/visualize.py``, lines 44 to 66 and 194 to 221): jet over the photo, evenly, from 0 to the value below which
pixels hold 98 % of the positive relevance. ``"headwater"``: as everywhere else here."""


@dataclass(frozen=True)
class Subject:
    """A data set and the networks that are measured on it.

    Attributes:
        name: of the data set, as the experiment knows it; empty where there is one and it was given without a name.
        data: a folder or the data set itself.
        models: the networks.
        images: the images, with labels of the first network's classes where the experiment needs them.
        labels: where the labels come from, as text.
    """

    name: str
    data: Data
    models: Sequence[nn.Module]
    images: LabelledImages
    labels: str

    def described(self, split: str) -> tuple[str, str]:
        """The networks with their weights, and the images, as text."""
        networks = "; ".join(f"{card_of(m).name} (weights: {card_of(m).weights})" for m in self.models)
        prefix = f"{self.name}: " if self.name else ""
        source = f"{self.images.layout}, split {split!r}, {len(self.images.images)} images"
        return prefix + networks, prefix + source


def paired(
    known: Sequence[str],
    data: Data | Mapping[str, Data],
    models: Sequence[nn.Module] | Mapping[str, Sequence[nn.Module]],
) -> list[tuple[str, Data, Sequence[nn.Module]]]:
    """Name, data and networks of each data set, in the experiment's order.

    Args:
        known: the names of data sets that the experiment knows.
        data: a data set, or several by name.
        models: networks, or those of each data set by its name.

    Raises:
        InputError: a name is given to the networks or the data alone, or a data set has no network.
    """
    if not isinstance(data, Mapping):
        if isinstance(models, Mapping):
            raise InputError(f"networks are given for {', '.join(models)}; give the data by the same names")
        if not models:
            raise InputError("an experiment needs at least one network")
        return [("", data, models)]
    if not data:
        raise InputError("an experiment needs a data set")
    if not isinstance(models, Mapping):
        if len(data) > 1:
            raise InputError(f"say which network is for which of {', '.join(data)}: cub=NETWORK, imagenet=NETWORK")
        models = dict.fromkeys(data, models)
    stray = [name for name in models if name not in data]
    if stray:
        raise InputError(f"a network is given for {stray[0]!r}, but no data; data are given for {', '.join(data)}")
    bare = [name for name in data if not models.get(name)]
    if bare:
        raise InputError(f"an experiment needs at least one network; there is none for {bare[0]!r}")
    return [(name, data[name], models[name]) for name in known if name in data]
