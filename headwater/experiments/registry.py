"""Every experiment by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from headwater.data.labelled import LabelledImages
from headwater.errors import InputError
from headwater.evaluation import Settings, evaluate
from headwater.experiments.conservation import conservation_csv, conservation_figure, conservation_markdown, cut_sums
from headwater.experiments.cost import COSTS, CostExperiment, cost_markdown
from headwater.experiments.experiment import Experiment, Outcome, Request, unlabelled
from headwater.experiments.failures import analyse_errors
from headwater.experiments.grid import explanation_grid, find_classes
from headwater.experiments.networks import networks_for
from headwater.experiments.published import GRIDS, TABLES, GridExperiment, TableExperiment
from headwater.experiments.tables import measure_table
from headwater.files import write_bytes, write_text
from headwater.models import card_of, network_input
from headwater.report.accuracy import Accuracy

OURS = "otsuki2024+hq"
"""The method of Otsuki et al. as printed: with heat quantization."""


@dataclass(frozen=True)
class Table(Experiment):
    """A table of insertion, deletion and ID scores."""

    table: TableExperiment

    def run(self, request: Request) -> Outcome:
        settings = request.settings
        measured = measure_table(
            self.table, request.models, request.data, settings, request.out, request.devices, request.progress
        )
        files = [write_text(request.out / "summary.csv", measured.summary.csv())]
        return Outcome(measured.markdown(), files, min(settings.samples, len(request.images.images)))


@dataclass(frozen=True)
class Grid(Experiment):
    """A figure of images with the maps of several methods."""

    grid: GridExperiment

    def images(
        self, data: str | Path | LabelledImages, models: Sequence[nn.Module], settings: Settings
    ) -> tuple[LabelledImages, str]:
        if settings.labels == "predicted":
            raise InputError(f"{self.name} shows images of given classes; labels 'predicted' do not give any")
        if len({card_of(model).classes for model in models}) > 1:
            raise InputError(
                f"{self.name} needs networks with the same classes in the same order, so that all explain the same"
            )
        return super().images(data, models, settings)

    def run(self, request: Request) -> Outcome:
        grid, found = self.grid, request.images
        shown = find_classes(found, card_of(request.models[0]), grid.classes)
        whose = f"{len(shown)} of the paper's {len(grid.classes)} classes" if shown else "classes drawn at random"
        shown = shown or list(found.sample(min(4, len(found.images)), request.settings.seed))
        drawn = explanation_grid(request.models, shown, grid.methods, grid.images_in_rows)
        missing = [heading for method, heading in grid.methods.items() if not networks_for(method, request.models)]
        body = f"Images of {whose}; maps of the images' own classes: `{self.name}.png`."
        body += "".join(f" No network for {heading}." for heading in missing)
        return Outcome(body, [write_bytes(request.out / f"{self.name}.png", drawn)], len(shown))


@dataclass(frozen=True)
class Conservation(Experiment):
    """Sums of relevance at three cuts against the probability."""

    def images(
        self, data: str | Path | LabelledImages, models: Sequence[nn.Module], settings: Settings
    ) -> tuple[LabelledImages, str]:
        """The images need no labels, and a network no names of classes: predicted classes are explained."""
        if settings.labels in ("names", "positions"):
            return unlabelled(data, settings), ""
        return super().images(data, models, settings)

    def run(self, request: Request) -> Outcome:
        settings, found = request.settings, request.images
        images = found.sample(min(100, settings.samples, len(found.images)), settings.seed)
        sums = cut_sums(request.models[0], ("otsuki2024", "otsuki2024-published"), images, settings.batch_size)
        files = [
            write_bytes(request.out / f"{self.name}.png", conservation_figure(sums)),
            write_text(request.out / "conservation.csv", conservation_csv(sums, images)),
        ]
        return Outcome(conservation_markdown(sums), files, len(images))


@dataclass(frozen=True)
class Failures(Experiment):
    """Failed explanations, the worst of them sorted by kind."""

    def settings(self, settings: Settings) -> Settings:
        return replace(settings, methods=(OURS,), protocols=("published",))

    def run(self, request: Request) -> Outcome:
        table = evaluate(
            request.models[0],
            request.data,
            request.settings,
            request.out,
            devices=request.devices,
            progress=request.progress,
        )
        images = request.images.images
        analysis = analyse_errors(request.models[0], OURS, table, images, request.threshold, request.worst)
        accuracy = Accuracy.of(table)
        files = [write_text(request.out / "failures.csv", analysis.csv())]
        if analysis.worst:
            files.append(write_bytes(request.out / "worst.png", analysis.sheet()))
        if any(image.kind for image in analysis.worst):
            files.append(write_bytes(request.out / "otsuki2024-figD.png", analysis.examples()))
        return Outcome(analysis.markdown() + (f"\n\n{accuracy}" if accuracy else ""), files, analysis.of)


@dataclass(frozen=True)
class CostOfMaps(Experiment):
    """Operations, time and memory of maps beside those of a forward pass, on the first image of the sample."""

    cost: CostExperiment

    def images(
        self, data: str | Path | LabelledImages, models: Sequence[nn.Module], settings: Settings
    ) -> tuple[LabelledImages, str]:
        """Any folder of images does; labels play no part."""
        return super().images(data, models, replace(settings, labels="predicted"))[0], ""

    def run(self, request: Request) -> Outcome:
        image = request.images.sample(1, request.settings.seed)[0].open()
        parts = []
        for model in request.models:
            heading = [f"### {card_of(model).name}"] * (len(request.models) > 1)
            parts += [*heading, cost_markdown(self.cost, model, network_input(model, [image]))]
        return Outcome("\n\n".join(parts), [], 1)


_EXPERIMENTS: tuple[Experiment, ...] = (
    *(Table(table.name, table.title, True, table) for table in TABLES.values()),
    *(Grid(grid.name, grid.title, False, grid) for grid in GRIDS.values()),
    *(CostOfMaps(cost.name, cost.title, False, cost) for cost in COSTS.values()),
    Conservation("otsuki2024-fig7", "Otsuki et al. 2024, Fig. 7: conservation at three cuts", False),
    Failures("otsuki2024-tableD", "Otsuki et al. 2024, Table D: failed explanations", True),
    Failures("otsuki2024-figD", "Otsuki et al. 2024, Fig. D: an example of each kind of failure", True),
)
EXPERIMENTS: Mapping[str, Experiment] = {e.name: e for e in sorted(_EXPERIMENTS, key=lambda e: e.name)}
