"""What an experiment is: given images, networks and settings, it returns the body of a report and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from headwater.data.labelled import LabelledImages, load_labelled
from headwater.evaluation import Expected, Progress, Settings
from headwater.evaluation.labels import label_for
from headwater.experiments.subjects import STYLES, Data, Subject
from headwater.report.accuracy import label_source


@dataclass(frozen=True)
class Request:
    """What an experiment is run on.

    Attributes:
        subjects: the data sets with their networks; several only where the experiment knows them by name.
        settings: of the evaluation.
        out: folder of the experiment.
        threshold: an explanation fails when its ID is not above it.
        worst: failed images to look at.
        devices: see :func:`headwater.evaluate`.
        progress: see :func:`headwater.evaluate`.
        expected: see :func:`headwater.evaluate`.
        style: a name of :data:`~headwater.experiments.subjects.STYLES`.
    """

    subjects: Sequence[Subject]
    settings: Settings
    out: Path
    threshold: float
    worst: int
    devices: Sequence[str]
    progress: Progress | None
    expected: Expected | None = None
    style: str = "published"

    @property
    def data(self) -> Data:
        """The first data set."""
        return self.subjects[0].data

    @property
    def images(self) -> LabelledImages:
        """The first data set's images, with labels of the first network's classes where the experiment needs them."""
        return self.subjects[0].images

    @property
    def models(self) -> Sequence[nn.Module]:
        """The first data set's networks."""
        return self.subjects[0].models

    def caption(self, drawn: str) -> str:
        """What stands below a figure: what is drawn, with which networks and weights, of which data."""
        lines = [drawn]
        for subject in self.subjects:
            networks, images = subject.described(self.settings.split)
            lines += [f"Network {networks}.", f"Images {images}."]
        return "\n".join(lines)

    def maps(self, methods: Sequence[str]) -> str:
        """Which maps are drawn, and how."""
        style = STYLES[self.style]
        how = "as the authors drew them: " * (self.style == "published")
        how += f"{'positive part' if style.sign == 'positive' else 'positive and negative'}, "
        how += f"{style.colormap or 'inferno, or red and blue where signed'}"
        hq = " (+hq: quantized to 8 levels)" * any(method.endswith("+hq") for method in methods)
        return f"Maps of {', '.join(methods)}{hq}; {how}."


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

    @property
    def data_names(self) -> tuple[str, ...]:
        """Names of the data sets that it knows; none where it takes any one data set."""
        return ()

    def settings(self, settings: Settings) -> Settings:
        """The settings that it is run with."""
        return settings

    def images(self, data: Data, models: Sequence[nn.Module], settings: Settings) -> tuple[LabelledImages, str]:
        """The images with the first network's labels, and the source of the labels as text.

        Raises:
            InputError: the labels that were asked for do not suit this experiment.
            DataError: the data do not fit.
        """
        labelled = label_for(models[0], data, settings)
        return labelled.data, label_source(labelled.source)


def unlabelled(data: Data, settings: Settings) -> LabelledImages:
    """The images as they are, for experiments on predicted classes."""
    return data if isinstance(data, LabelledImages) else load_labelled(data, settings.split)
