"""Each table and figure of the papers as a named experiment, printed beside the published numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path

from torch import nn

from headwater.data.labelled import LabelledImages
from headwater.errors import InputError
from headwater.evaluation import Progress, Settings
from headwater.experiments.experiment import Request
from headwater.experiments.published import FAILURE_THRESHOLD
from headwater.experiments.registry import EXPERIMENTS, OURS
from headwater.files import write_text
from headwater.models import card_of


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
    return {name: experiment.title for name, experiment in EXPERIMENTS.items()}


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
    if name not in EXPERIMENTS:
        near = get_close_matches(name, EXPERIMENTS, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(EXPERIMENTS)}"
        raise InputError(f"no experiment is called {name!r}; {hint}")
    if not models:
        raise InputError("an experiment needs at least one network")
    experiment, asked = EXPERIMENTS[name], settings or Settings((OURS,))
    found, labels = experiment.images(data, models, asked)
    settings, out = experiment.settings(asked), Path(out)
    outcome = experiment.run(Request(data, found, models, settings, out, threshold, worst, devices, progress))
    source = f"{found.layout}, split {settings.split!r}, {len(found.images)} images"
    networks = "; ".join(f"{card_of(m).name} (weights: {card_of(m).weights})" for m in models)
    report = "\n".join(
        [
            f"# {name}",
            "",
            f"{experiment.title}." + " Printed: as in the paper. Measured: as follows." * experiment.compares,
            "",
            f"- networks: {networks}",
            f"- images: {outcome.count} of {source}",
            *([f"- labels: {labels}"] if labels else []),
            *([f"- protocol: {_how(settings)}"] if experiment.compares else []),
            "",
            outcome.body,
            "",
        ]
    )
    details = {**asdict(settings), "experiment": name, "networks": networks, "images": source, "count": outcome.count}
    first = write_text(out / "report.md", report)
    last = write_text(out / "report.json", json.dumps(details, indent=1))
    return Reproduction(name, report, (first, *outcome.files, last))


def _how(settings: Settings) -> str:
    step = "500 pixels of 224 x 224, in proportion," if settings.step is None else f"{settings.step} pixels"
    return f"{' and '.join(settings.protocols)}; {step} per step; removed pixels black; seed {settings.seed}"


__all__ = ["Reproduction", "list_experiments", "reproduce"]
