"""What an experiment is: given images, networks and settings, it returns the body of a report and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from headwater.data.labelled import LabelledImages, load_labelled
from headwater.evaluation import Progress, Settings
from headwater.evaluation.labels import label_for
from headwater.report.accuracy import label_source


@dataclass(frozen=True)
class Request:
    """What an experiment is run on.

    Attributes:
        data: a folder or the data set itself.
        images: its images, with labels of the first network's classes where the experiment needs them.
        models: the networks.
        settings: of the evaluation.
        out: folder of the experiment.
        threshold: an explanation fails when its ID is not above it.
        worst: failed images to look at.
        devices: see :func:`headwater.evaluate`.
        progress: see :func:`headwater.evaluate`.
    """

    data: str | Path | LabelledImages
    images: LabelledImages
    models: Sequence[nn.Module]
    settings: Settings
    out: Path
    threshold: float
    worst: int
    devices: Sequence[str]
    progress: Progress | None


@dataclass(frozen=True)
class Outcome:
    """Result of an experiment: the body of its report, the files that it wrote, and the number of images."""

    body: str
    files: Sequence[Path]
    count: int


@dataclass(frozen=True)
class Experiment(ABC):
    """One table or figure of a paper.

    Attributes:
        name: what :func:`headwater.experiments.reproduce` takes.
        title: what it is.
        compares: whether measured numbers stand beside printed ones.
    """

    name: str
    title: str
    compares: bool

    @abstractmethod
    def run(self, request: Request) -> Outcome:
        """Measure or draw it."""

    def settings(self, settings: Settings) -> Settings:
        """The settings that it is run with."""
        return settings

    def images(
        self, data: str | Path | LabelledImages, models: Sequence[nn.Module], settings: Settings
    ) -> tuple[LabelledImages, str]:
        """The images with the first network's labels, and the source of the labels as text.

        Raises:
            InputError: the labels that were asked for do not suit this experiment.
            DataError: the data do not fit.
        """
        labelled = label_for(models[0], data, settings)
        return labelled.data, label_source(labelled.source)


def unlabelled(data: str | Path | LabelledImages, settings: Settings) -> LabelledImages:
    """The images as they are, for experiments on predicted classes."""
    return data if isinstance(data, LabelledImages) else load_labelled(data, settings.split)
