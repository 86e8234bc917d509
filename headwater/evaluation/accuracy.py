"""A network's accuracy on every image of a split, not on a sample."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from headwater.data.labelled import LabelledImages
from headwater.engine.prediction import Predictor
from headwater.errors import HeadwaterError
from headwater.evaluation.labels import label_for
from headwater.evaluation.settings import Settings
from headwater.models import network_input
from headwater.report.accuracy import Accuracy


def split_accuracy(model: nn.Module, data: str | Path | LabelledImages, settings: Settings) -> Accuracy:
    """Count the images of the whole split whose predicted class is the label; those that cannot be read are left out.

    Args:
        model: the network; it is not changed.
        data: as in :func:`headwater.evaluate`.
        settings: ``split``, ``labels`` and ``batch_size`` of these are used.

    Raises:
        DataError: the data do not fit.
    """
    labelled = label_for(model, data, settings)
    right, count = 0, 0
    network: Predictor | None = None
    images = labelled.data.images
    for start in range(0, len(images), settings.batch_size):
        photos, labels = [], []
        for image in images[start : start + settings.batch_size]:
            try:
                photos.append(image.open())
            except HeadwaterError:
                continue
            labels.append(image.label)
        if photos:
            x = network_input(model, photos)
            network = network or Predictor(model, x)
            predicted = network.predicted(x).cpu()
            right += int((predicted == torch.tensor(labels)).sum())
            count += len(labels)
    return Accuracy(right, count, labelled.classes, labelled.source)
