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
from headwater.experiments.grid import find_classes, mixed_grid
from headwater.experiments.networks import networks_for
from headwater.experiments.published import GRIDS, TABLES, GridExperiment, TableExperiment
from headwater.experiments.subjects import STYLES, Data
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
            self.table,
            request.models,
            request.data,
            settings,
            request.out,
            request.devices,
            request.progress,
            request.expected,
        )
        files = [write_text(request.out / "summary.csv", measured.summary.csv())]
        return Outcome(measured.markdown(), files, min(settings.samples, len(request.images.images)))


@dataclass(frozen=True)
class Grid(Experiment):
    """A figure of images with the maps of several methods."""

    grid: GridExperiment

    @property
    def data_names(self) -> tuple[str, ...]:
        return tuple(self.grid.classes)

    def images(self, data: Data, models: Sequence[nn.Module], settings: Settings) -> tuple[LabelledImages, str]:
        if settings.labels == "predicted":
            raise InputError(f"{self.name} shows images of given classes; labels 'predicted' do not give any")
        if len({card_of(model).classes for model in models}) > 1:
            raise InputError(
                f"{self.name} needs networks with the same classes in the same order, so that all explain the same"
            )
        return super().images(data, models, settings)

    def run(self, request: Request) -> Outcome:
        methods = self.grid.methods if request.style == "published" else self.grid.ours
        wanted = [name for classes in self.grid.classes.values() for name in classes]
        parts = []
        for subject in request.subjects:
            classes = self.grid.classes[subject.name] if subject.name else wanted
            parts.append((subject.models, find_classes(subject.images, card_of(subject.models[0]), classes)))
        count = sum(len(shown) for _, shown in parts)
        whose = f"{count} of the paper's {len(wanted)} classes" if count else "classes drawn at random"
        if not count:
            found = request.images
            parts = [(request.models, list(found.sample(min(4, len(found.images)), request.settings.seed)))]
        models = [model for mine, shown in parts if shown for model in mine]
        without = [heading for method, heading in methods.items() if not networks_for(method, models)]
        maps = request.maps([method for method in methods if networks_for(method, models)])
        drawn = mixed_grid(
            parts, methods, self.grid.images_in_rows, STYLES[request.style], request.caption(f"{self.title}. {maps}")
        )
        body = f"Images of {whose}; maps of the images' own classes: `{self.name}.png`. {maps}"
        body += "".join(f" No network for {heading}." for heading in without)
        shown_count = sum(len(shown) for _, shown in parts)
        return Outcome(body, [write_bytes(request.out / f"{self.name}.png", drawn)], shown_count)


@dataclass(frozen=True)
class Conservation(Experiment):
    """Sums of relevance at three cuts against the probability."""

    def images(self, data: Data, models: Sequence[nn.Module], settings: Settings) -> tuple[LabelledImages, str]:
        """The images need no labels, and a network no names of classes: predicted classes are explained."""
        if settings.labels in ("names", "positions"):
            return unlabelled(data, settings), ""
        return super().images(data, models, settings)

    def run(self, request: Request) -> Outcome:
        settings, found = request.settings, request.images
        images = found.sample(min(100, settings.samples, len(found.images)), settings.seed)
        composites = ("otsuki2024", "otsuki2024-published")
        sums = [one for model in request.models for one in cut_sums(model, composites, images, settings.batch_size)]
        caption = request.caption(f"{self.title}. {len(images)} images, predicted classes.")
        files = [
            write_bytes(request.out / f"{self.name}.png", conservation_figure(sums, caption)),
            write_text(request.out / "conservation.csv", conservation_csv(sums, images)),
        ]
        return Outcome(conservation_markdown(sums), files, len(images))


@dataclass(frozen=True)
class Failures(Experiment):
    """Failed explanations, the worst of them sorted by kind; of several networks, each in a folder of its own."""

    def settings(self, settings: Settings) -> Settings:
        return replace(settings, methods=(OURS,), protocols=("published",))

    def run(self, request: Request) -> Outcome:
        if len(request.models) == 1:
            return self._of(request.models[0], request, request.out)
        bodies, files, count = list[str](), list[Path](), 0
        for number, model in enumerate(request.models):
            place = request.out / f"network-{number}"
            outcome = self._of(model, request, place)
            bodies.append(f"## {card_of(model).name}\n\nFiles in `{place.name}`.\n\n{outcome.body}")
            files += outcome.files
            count = outcome.count
        return Outcome("\n\n".join(bodies), files, count)

    def _of(self, model: nn.Module, request: Request, out: Path) -> Outcome:
        """One network's failures."""
        table = evaluate(
            model,
            request.data,
            request.settings,
            out,
            devices=request.devices,
            progress=request.progress,
            expected=request.expected,
        )
        analysis = analyse_errors(
            model,
            OURS,
            table,
            request.images.images,
            request.threshold,
            request.worst,
            style=STYLES[request.style],
        )
        accuracy = Accuracy.of(table)
        mine = replace(request, subjects=[replace(request.subjects[0], models=[model])])
        caption = mine.caption(f"{self.title}. {request.maps([OURS])}")
        files = [write_text(out / "failures.csv", analysis.csv())]
        if analysis.worst:
            files.append(write_bytes(out / "worst.png", analysis.sheet(caption=caption)))
        if any(image.kind for image in analysis.worst):
            files.append(write_bytes(out / "otsuki2024-figD.png", analysis.examples(caption)))
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
