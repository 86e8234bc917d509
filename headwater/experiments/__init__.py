"""Each table and figure of the papers as a named experiment, printed beside the published numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from torch import nn

from headwater.data.labelled import LabelledImages, load_labelled
from headwater.errors import InputError
from headwater.evaluation import Progress, Settings, evaluate
from headwater.evaluation.labels import label_for
from headwater.experiments.conservation import conservation_csv, conservation_figure, conservation_markdown, cut_sums
from headwater.experiments.failures import analyse_errors
from headwater.experiments.grid import explanation_grid, find_classes
from headwater.experiments.networks import networks_for
from headwater.experiments.published import FAILURE_THRESHOLD, GRIDS, TABLES
from headwater.experiments.tables import measure_table
from headwater.files import write_bytes, write_text
from headwater.models import card_of
from headwater.report.accuracy import Accuracy, label_source

_OURS = "otsuki2024+hq"
_CONSERVATION, _FAILURES, _FAILURE_EXAMPLES = "otsuki2024-fig7", "otsuki2024-tableD", "otsuki2024-figD"
_TITLES = {
    _CONSERVATION: "Otsuki et al. 2024, Fig. 7: conservation at three cuts",
    _FAILURES: "Otsuki et al. 2024, Table D: failed explanations",
    _FAILURE_EXAMPLES: "Otsuki et al. 2024, Fig. D: an example of each kind of failure",
}


@dataclass(frozen=True)
class Reproduction:
    """What an experiment gave.

    Attributes:
        name: of the experiment.
        report: the printed numbers beside the measured ones, and what the measured ones come from, as Markdown.
        files: what was written, the report first.
    """

    name: str
    report: str
    files: tuple[Path, ...]


def list_experiments() -> dict[str, str]:
    """Experiments by name, with what each is.

    >>> list_experiments()["otsuki2024-table2"]
    'Otsuki et al. 2024, Table 2: splitting at joins'
    """
    tables, grids = ({e.name: e.title for e in TABLES.values()}, {e.name: e.title for e in GRIDS.values()})
    return dict(sorted({**tables, **grids, **_TITLES}.items()))


def reproduce(
    name: str,
    data: str | Path | LabelledImages,
    models: Sequence[nn.Module],
    out: str | Path,
    settings: Settings | None = None,
    *,
    threshold: float = FAILURE_THRESHOLD,
    worst: int = 100,
    devices: Sequence[str] = (),
    progress: Progress | None = None,
) -> Reproduction:
    """Run one experiment and write its report, tables and figures to ``out``.

    Args:
        name: see :func:`list_experiments`.
        data: a folder (see :func:`headwater.data.load_labelled`) or the data set itself.
        models: the network; several are the paper's several trainings, and give means and deviations over networks.
            Attention branch networks among them are what ``abn`` is measured on.
        out: folder of this experiment; a killed one that is started again goes on.
        settings: samples, protocols, split, seed, step and batch size; the methods are the experiment's. A figure
            of maps ignores them but the seed; that of conservation takes 100 images at most.
        threshold: an explanation fails when its ID (published protocol) is not above it, for ``-tableD`` and ``-figD``.
        worst: failed images to look at, for the same.
        devices: see :func:`headwater.evaluate`.
        progress: see :func:`headwater.evaluate`.

    Raises:
        InputError: no experiment has that name, or no network that it needs is among ``models``.
        DataError: the data do not fit, or ``out`` holds another run.

    >>> import tempfile, headwater as hw
    >>> from headwater.data.labelled import LabelledImage, LabelledImages
    >>> photos = LabelledImages("examples", (LabelledImage("tabby", 5, Path("examples/tabby.jpg")),))
    >>> with tempfile.TemporaryDirectory() as out:
    ...     done = reproduce("otsuki2024-fig7", photos, [hw.load_model("tiny20")], out, Settings(("otsuki2024",), 1))
    >>> [line[:45] for line in done.report.splitlines() if line.startswith("| `otsuki2024` ")]
    ['| `otsuki2024` | 1.0000 | 1.0000 | 1.0000 | 1']
    """
    if name not in list_experiments():
        near = get_close_matches(name, list_experiments(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(list_experiments())}"
        raise InputError(f"no experiment is called {name!r}; {hint}")
    if not models:
        raise InputError("an experiment needs at least one network")
    settings = settings or Settings((_OURS,))
    found, labels = _images(name, data, models, settings)
    out = Path(out)
    source = f"{found.layout}, split {settings.split!r}, {len(found.images)} images"
    if name in TABLES:
        measured = measure_table(TABLES[name], models, data, settings, out, devices, progress)
        body, count = measured.markdown(), min(settings.samples, len(found.images))
        files = [write_text(out / "summary.csv", measured.summary.csv())]
    elif name in GRIDS:
        grid = GRIDS[name]
        shown = find_classes(found, card_of(models[0]), grid.classes)
        whose = f"{len(shown)} of the paper's {len(grid.classes)} classes" if shown else "classes drawn at random"
        shown = shown or list(found.sample(min(4, len(found.images)), settings.seed))
        drawn = explanation_grid(models, shown, grid.methods, grid.images_in_rows)
        files, count = [write_bytes(out / f"{name}.png", drawn)], len(shown)
        missing = [heading for method, heading in grid.methods.items() if not networks_for(method, models)]
        body = f"Images of {whose}; maps of the images' own classes: `{name}.png`."
        body += "".join(f" No network for {m}." for m in missing)
    elif name == _CONSERVATION:
        images = found.sample(min(100, settings.samples, len(found.images)), settings.seed)
        sums = cut_sums(models[0], ("otsuki2024", "otsuki2024-published"), images, settings.batch_size)
        body, count = conservation_markdown(sums), len(images)
        files = [
            write_bytes(out / f"{name}.png", conservation_figure(sums)),
            write_text(out / "conservation.csv", conservation_csv(sums, images)),
        ]
    else:
        settings = replace(settings, methods=(_OURS,), protocols=("published",))
        table = evaluate(models[0], data, settings, out, devices=devices, progress=progress)
        analysis = analyse_errors(models[0], _OURS, table, found.images, threshold, worst)
        accuracy = Accuracy.of(table)
        body, count = analysis.markdown() + (f"\n\n{accuracy}" if accuracy else ""), analysis.of
        files = [write_text(out / "failures.csv", analysis.csv())]
        if analysis.worst:
            files.append(write_bytes(out / "worst.png", analysis.sheet()))
        if any(w.kind for w in analysis.worst):
            files.append(write_bytes(out / f"{_FAILURE_EXAMPLES}.png", analysis.examples()))
    compares = name in (*TABLES, _FAILURES, _FAILURE_EXAMPLES)
    networks = "; ".join(f"{card_of(m).name} (weights: {card_of(m).weights})" for m in models)
    report = "\n".join(
        [
            f"# {name}",
            "",
            f"{list_experiments()[name]}." + " Printed: as in the paper. Measured: as follows." * compares,
            "",
            f"- networks: {networks}",
            f"- images: {count} of {source}",
            *([f"- labels: {labels}"] if labels else []),
            *([f"- protocol: {_how(settings)}"] if compares else []),
            "",
            body,
            "",
        ]
    )
    details = {**asdict(settings), "experiment": name, "networks": networks, "images": source, "count": count}
    first = write_text(out / "report.md", report)
    return Reproduction(name, report, (first, *files, write_text(out / "report.json", json.dumps(details, indent=1))))


def _images(
    name: str, data: str | Path | LabelledImages, models: Sequence[nn.Module], settings: Settings
) -> tuple[LabelledImages, str]:
    """The images of an experiment with the first network's labels, and where those come from, in words.

    Conservation is measured on predicted classes: its images need no labels, and a network no names of classes.
    """
    if name == _CONSERVATION and settings.labels in ("names", "positions"):
        return data if isinstance(data, LabelledImages) else load_labelled(data, settings.split), ""
    if name in GRIDS and settings.labels == "predicted":
        raise InputError(f"{name} shows images of given classes; labels 'predicted' do not give any")
    if name in GRIDS and len({card_of(model).classes for model in models}) > 1:
        raise InputError(f"{name} needs networks with the same classes in the same order, so that all explain the same")
    labelled = label_for(models[0], data, settings)
    return labelled.data, label_source(labelled.source)


def _how(settings: Settings) -> str:
    step = "500 pixels of 224 x 224, in proportion," if settings.step is None else f"{settings.step} pixels"
    return f"{' and '.join(settings.protocols)}; {step} a step; removed pixels black; seed {settings.seed}"


__all__ = ["Reproduction", "list_experiments", "reproduce"]
