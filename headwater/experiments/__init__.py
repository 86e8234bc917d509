"""Each table and figure of the papers as a named experiment, printed beside the published numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

from torch import nn

from headwater.errors import InputError
from headwater.evaluation import Expected, Progress, Settings
from headwater.experiments.experiment import Request
from headwater.experiments.published import FAILURE_THRESHOLD, WEIGHTS
from headwater.experiments.registry import EXPERIMENTS, OURS
from headwater.experiments.subjects import STYLES, Data, Subject, paired
from headwater.files import write_text
from headwater.models import card_of, weights_digest


@dataclass(frozen=True)
class Reproduction:
    """Result of an experiment.

    Attributes:
        name: of the experiment.
        report: printed and measured numbers side by side, with the networks, images and protocol used, as Markdown.
        files: the files written, the report first.
    """

    name: str
    report: str
    files: tuple[Path, ...]


def list_experiments() -> dict[str, str]:
    """Titles of all experiments by name.

    >>> list_experiments()["otsuki2024-table2"]
    'Otsuki et al. 2024, Table 2: splitting at joins'
    """
    return {name: experiment.title for name, experiment in EXPERIMENTS.items()}


def reproduce(
    name: str,
    data: Data | Mapping[str, Data],
    models: Sequence[nn.Module] | Mapping[str, Sequence[nn.Module]],
    out: str | Path,
    settings: Settings | None = None,
    *,
    threshold: float = FAILURE_THRESHOLD,
    worst: int = 100,
    devices: Sequence[str] = (),
    progress: Progress | None = None,
    expected: Expected | None = None,
    style: str = "published",
) -> Reproduction:
    """Run one experiment and write its report, tables and figures to ``out``.

    Args:
        name: see :func:`list_experiments`.
        data: a folder (see :func:`headwater.data.load_labelled`) or the data set itself; for a figure that mixes data
            sets, several by the names that it knows: ``{"cub": ..., "imagenet": ...}``.
        models: the network, or several trainings of it for means and deviations over networks. ``abn`` is measured on
            the attention branch networks among them, every other method on the rest. For several data sets, the
            networks of each by the same names.
        out: folder of this experiment; an interrupted run continues when it is started again.
        settings: samples, protocols, split, seed, step and batch size; the methods are the experiment's. Figures
            of maps use only split, labels and seed; the conservation figure uses at most 100 images.
        threshold: an explanation fails when its ID (published protocol) is not above it, for ``-tableD`` and ``-figD``.
        worst: how many failed images are shown, lowest ID first, for the same two.
        devices: see :func:`headwater.evaluate`.
        progress: see :func:`headwater.evaluate`.
        expected: likewise, for each network, by tables and the two experiments on failures.
        style: of the maps in figures: ``"published"``, as the authors drew them (their variant of the method,
            quantized, positive part, jet), or ``"headwater"`` (the exact variant, not quantized, in the colours used
            elsewhere).

    Raises:
        InputError: no experiment, data set or style has that name, or no network that it needs is among ``models``.
        DataError: the data do not fit, or ``out`` holds another run.

    >>> import tempfile, headwater as hw
    >>> from headwater.data.labelled import LabelledImage, LabelledImages
    >>> photos = LabelledImages("examples", (LabelledImage("tabby", 5, Path("examples/tabby.jpg")),))
    >>> with tempfile.TemporaryDirectory() as out:
    ...     done = reproduce("otsuki2024-fig7", photos, [hw.load_model("tiny20")], out, Settings(("otsuki2024",), 1))
    >>> [line[:43] for line in done.report.splitlines() if line.startswith("| `otsuki2024` ")]
    ['| `otsuki2024` | 1.0000 | 1.0000 | 1.0000 |']
    """
    check_names(name, tuple(data) if isinstance(data, Mapping) else (), style)
    experiment, asked, out = EXPERIMENTS[name], settings or Settings((OURS,)), Path(out)
    subjects = [
        Subject(part, mine, networks, *experiment.images(mine, networks, asked))
        for part, mine, networks in paired(experiment.data_names, data, models)
    ]
    settings = experiment.settings(asked)
    outcome = experiment.run(Request(subjects, settings, out, threshold, worst, devices, progress, expected, style))
    said = [subject.described(settings.split) for subject in subjects]
    networks, sources = (" | ".join(part) for part in zip(*said, strict=True))
    labels = "; ".join(dict.fromkeys(subject.labels for subject in subjects if subject.labels))
    cards = [card_of(model) for subject in subjects for model in subject.models]
    other = "; ".join(dict.fromkeys(f"{card.name} ({card.weights})" for card in cards if card.version != WEIGHTS))
    measured = "Measured: with other weights than the paper's." if other else "Measured: as follows."
    report = "\n".join(
        [
            f"# {name}" + ", NOT with the paper's weights" * bool(other),
            "",
            f"{experiment.title}." + f" Printed: as in the paper. {measured}" * experiment.compares,
            "",
            f"- networks: {networks}",
            *([f"- weights: the paper's are {WEIGHTS}, or trained from them; NOT so: {other}"] if other else []),
            f"- preprocessing: {'; '.join(dict.fromkeys(card.preprocessing.described() for card in cards))}",
            f"- images: {outcome.count} of {sources}",
            *([f"- labels: {labels}"] if labels else []),
            *([f"- protocol: {_how(settings)}"] if experiment.compares else []),
            "",
            outcome.body,
            "",
        ]
    )
    details = {
        **asdict(settings),
        "experiment": name,
        "networks": networks,
        "weights": [_weights(model) for subject in subjects for model in subject.models],
        "images": sources,
        "count": outcome.count,
        "style": style,
    }
    first = write_text(out / "report.md", report)
    last = write_text(out / "report.json", json.dumps(details, indent=1))
    return Reproduction(name, report, (first, *outcome.files, last))


def check_names(name: str, data: Sequence[str] = (), style: str = "published") -> None:
    """Check the names of an experiment, of its data sets and of the style of its maps, before any work is done.

    Args:
        name: of the experiment.
        data: names of the data sets; none for one without a name.
        style: of the maps.

    Raises:
        InputError: one is unknown; says what there is.
    """
    if name not in EXPERIMENTS:
        near = get_close_matches(name, EXPERIMENTS, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(EXPERIMENTS)}"
        raise InputError(f"no experiment is called {name!r}; {hint}")
    if style not in STYLES:
        raise InputError(f"no style is called {style!r}; there are {', '.join(STYLES)}")
    known = EXPERIMENTS[name].data_names
    unknown = [part for part in data if part not in known]
    if unknown:
        knows = f"it knows {' and '.join(known)}" if known else "it takes one data set, without a name"
        raise InputError(f"{name} knows no data set called {unknown[0]!r}; {knows}")


def _weights(model: nn.Module) -> dict[str, str | None]:
    card = card_of(model)
    return {
        "network": card.name,
        "weights": card.weights,
        "version": card.version,
        "digest": weights_digest(model),
        "preprocessing": card.preprocessing.described(),
    }


def _how(settings: Settings) -> str:
    step = "500 pixels of 224 x 224, in proportion," if settings.step is None else f"{settings.step} pixels"
    return f"{' and '.join(settings.protocols)}; {step} per step; removed pixels black; seed {settings.seed}"


__all__ = ["Reproduction", "check_names", "list_experiments", "reproduce"]
