"""Every measure of every method on labelled images: one row per image and method, in chunks that survive a kill."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from headwater import __version__
from headwater.data.labelled import LabelledImage, LabelledImages
from headwater.data.preprocessing import Preprocessing
from headwater.data.storage import as_path
from headwater.engine.copies import own_copy
from headwater.engine.prediction import Predictor
from headwater.errors import DataError, InputError, MissingDependencyError
from headwater.evaluation.chunks import unfinished
from headwater.evaluation.labels import label_for
from headwater.evaluation.settings import Settings
from headwater.evaluation.thumbnails import COLUMNS as THUMBNAILS
from headwater.evaluation.time_estimate import Estimate, estimate
from headwater.evaluation.worker import Worker, worker_on
from headwater.files import claim, write_bytes, write_checked, write_text
from headwater.methods import is_baseline, load_method
from headwater.metrics import randomisation
from headwater.models import ModelCard, card_of, network_input, weights_digest
from headwater.report.run_folder import ABOUT, CURVES, RESULTS, ROWS, SETTINGS
from headwater.report.tables import SummaryTable, curves_figure, randomisation_figure

if TYPE_CHECKING:
    import pandas

    from headwater.cluster import Engine, Rows

Progress = Callable[[int, int, float], None]
"""Called after each chunk with images done, images in all, seconds since the start."""
Expected = Callable[[Estimate, int], None]
"""Called with the estimate of a run's time on one device, and the number of images that it is for."""


def evaluate(
    model: nn.Module,
    data: str | Path | LabelledImages,
    settings: Settings,
    out: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    devices: Sequence[str] = (),
    engine: Engine | None = None,
    progress: Progress | None = None,
    expected: Expected | None = None,
    command: str = "",
) -> pandas.DataFrame:
    """Measure methods on labelled images.

    The map explains the *predicted* class, the curves follow the *true* label, as in the papers. Finished chunks are
    in ``out/rows``; a killed run that is started again continues after them and ends in the same table. An image that
    cannot be read has a row with the reason in column ``error``. The next start tries it again, and also measures again
    images whose files have changed and chunks whose rows are damaged; a warning says how many.

    Args:
        model: the network; it is not changed.
        data: a folder or an address in object storage (see :func:`headwater.data.load_labelled`), or the data set
            itself.
        settings: see :class:`Settings`.
        out: folder of this run.
        preprocessing: for a model of your own that has no card.
        devices: such as ``["cuda:0", "cuda:1"]``, which share the chunks, each with a copy of the model; by default the
            device of the model.
        engine: what spreads the chunks over workers, such as :class:`headwater.cluster.Ray`, instead of ``devices``;
            the table is the same.
        progress: called after every chunk.
        expected: called before the first image is measured, with :func:`~headwater.evaluation.estimate` for those that
            are left, on the first of the devices; not where none is left, nor with an engine, whose workers are other
            machines.
        command: that this was called by, for the report.

    Returns:
        One row per image and method: ``image``, ``label``, ``predicted``, ``probability`` (of the predicted class),
        ``method``, ``error``, ``insertion_P``, ``deletion_P``, ``id_P`` for each protocol P, ``conservation_error`` (at
        the image), ``cut_error`` (the worst of all cuts), ``pointing``, ``mass``, ``rank`` (where there are boxes),
        ``gini``, ``box_covered`` and ``inside_box`` (see :class:`~headwater.metrics.failures.Overlap`),
        ``label_source`` (as in the settings, a file's name, or ``"given"`` with the data set), ``classes`` (how many
        the network has), ``weights`` (the network and its weights).

    ``out`` then holds these rows as ``results.parquet``, their summary as ``summary.csv``, ``.md`` and ``.tex``, the
    paired tests as ``tests.md``, and the mean curves as ``curves.json`` and ``.png``; ``run.json`` says how it was run.
    ``headwater report`` makes a page of them.

    Raises:
        DataError: the data do not fit, no image can be read, or ``out`` holds a run with other settings (the difference
            is named).
        StorageError: object storage denies access, or cannot be reached.
        ClusterError: the engine's workers cannot do the work.
        InputError: one step of the curves would be the whole image, or both ``devices`` and ``engine`` are given.
        MissingDependencyError: pandas or pyarrow is not installed.
        OutputError: ``out`` cannot be written.
    """
    pd = _pandas()
    if engine is not None and devices:
        raise InputError("an engine chooses the devices itself; give devices or engine, not both")
    if engine is not None and not isinstance(data, LabelledImages):
        data = as_path(data).absolute()  # workers have another working directory
    out, card = Path(out), card_of(model, preprocessing)
    settings.step_for(math.prod(card.preprocessing.size))
    labelled = label_for(model, data, settings, preprocessing)
    found = labelled.data
    chosen = found.sample(min(settings.samples, len(found.images)), settings.seed)
    identity = _identity(model, card, found, chosen, settings)
    claim(out, identity, SETTINGS)
    write_text(out / ABOUT, json.dumps(_about(model, card, data, settings, devices, engine, command), indent=1))
    run = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    chunks = [chosen[k : k + settings.batch_size] for k in range(0, len(chosen), settings.batch_size)]
    paths = [out / ROWS / f"{k:06d}.parquet" for k in range(len(chunks))]
    digests = {image.name: f"{image.digest()} {run}" for image in chosen}  # rows of other settings do not count
    todo = unfinished(paths, chunks, digests)
    done = len(chosen) - sum(len(chunks[k]) for k in todo)
    if expected is not None and todo and engine is None:
        left = len(chosen) - done
        remaining = replace(settings, samples=left)
        expected(estimate(own_copy(model, devices[0]) if devices else model, remaining, card.preprocessing), left)
    began = time.monotonic()
    if engine is not None:
        make = functools.partial(worker_on, own_copy(model, "cpu"), card.preprocessing, settings)
        results = engine.run(make, chunks, todo)
    else:
        results = _run(model, card.preprocessing, settings, chunks, todo, devices)
    with contextlib.closing(results):  # an interruption ends the workers now
        for k, rows in results:
            stream = io.BytesIO()
            pd.DataFrame([{**row, "digest": digests[row["image"]]} for row in rows]).to_parquet(stream, index=False)
            write_checked(paths[k], stream.getvalue())
            done += len(chunks[k])
            if progress is not None:
                progress(done, len(chosen), time.monotonic() - began)
    table, curves = _collected(paths, settings.methods)
    table = table.assign(label_source=labelled.source, classes=labelled.classes, weights=f"{card.name}: {card.weights}")
    if table["error"].notna().all():
        raise DataError(f"none of the {len(chosen)} images could be read; the first: {table['error'].iloc[0]}")
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    write_bytes(out / RESULTS, stream.getvalue())
    summary = SummaryTable.of(table, [name for name in settings.methods if is_baseline(name)])
    write_text(out / "summary.csv", summary.csv())
    write_text(out / "summary.md", summary.markdown() + "\n")
    write_text(out / "summary.tex", summary.latex())
    write_text(out / "tests.md", summary.tests() + "\n")
    write_text(out / CURVES, json.dumps(curves, indent=1))
    write_bytes(out / "curves.png", curves_figure(curves))
    return table


def _run(
    model: nn.Module,
    preprocessing: Preprocessing,
    settings: Settings,
    chunks: Sequence[Sequence[LabelledImage]],
    todo: Sequence[int],
    devices: Sequence[str],
) -> Rows:
    """Number and rows of each chunk that is still to do, in order."""
    if not devices:
        worker = Worker(model, preprocessing, settings)
        for k in todo:
            yield k, worker.rows(chunks[k])
        return
    idle: SimpleQueue[Worker] = SimpleQueue()
    for device in devices:
        idle.put(Worker(own_copy(model, device), preprocessing, settings))

    def work(k: int) -> tuple[int, list[dict[str, Any]]]:
        worker = idle.get()
        try:
            return k, worker.rows(chunks[k])
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(devices)) as pool:
        yield from pool.map(work, todo)


def _identity(
    model: nn.Module,
    card: ModelCard,
    found: LabelledImages,
    chosen: Sequence[LabelledImage],
    settings: Settings,
) -> dict[str, Any]:
    """Everything that the table depends on, to be compared with the settings in the run folder."""
    images = hashlib.sha256("\n".join(f"{image.label} {image.name}" for image in chosen).encode())
    return {
        "headwater": __version__,
        "model": card.name,
        "weights": f"{card.weights} ({weights_digest(model)})",
        "data": found.layout,
        "preprocessing": str(card.preprocessing),
        "images and labels": f"{len(chosen)} ({images.hexdigest()[:12]})",
        **vars(settings),
    }


def _about(
    model: nn.Module,
    card: ModelCard,
    data: str | Path | LabelledImages,
    settings: Settings,
    devices: Sequence[str],
    engine: Engine | None,
    command: str,
) -> dict[str, Any]:
    """How a run was made, as far as the table does not depend on it."""
    used = {str(p.device) for p in model.parameters()}
    return {
        "command": command,
        "data": data.layout if isinstance(data, LabelledImages) else str(as_path(data).absolute()),
        "devices": list(devices) or (sorted(used) if engine is None else [str(engine)]),
        "classes": card.classes,
        "step": settings.step_for(math.prod(card.preprocessing.size)),
        "baselines": [name for name in settings.methods if is_baseline(name)],
        "versions": {"Python": platform.python_version(), "headwater": __version__, **_installed()},
    }


def _installed() -> dict[str, str]:
    """Versions of the libraries that measures depend on."""
    versions = {}
    for package in ("torch", "torchvision", "timm", "numpy", "pillow", "scipy", "captum", "grad-cam"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def measure_randomisation(
    model: nn.Module,
    data: str | Path | LabelledImages,
    settings: Settings,
    count: int = 10,
    comparisons: int = 6,
    preprocessing: Preprocessing | None = None,
    out: str | Path | None = None,
) -> pandas.DataFrame:
    """Randomise the network from the output down and compare each method's maps, on the first images of the sample.

    Args:
        model: the network; it is not changed.
        data: as in :func:`evaluate`.
        settings: methods, sample and seed of these are used.
        count: number of images.
        comparisons: depths at which maps are compared, evenly over the layers.
        preprocessing: for a model of your own that has no card.
        out: folder for ``randomisation.csv`` and ``.png``; nothing is written if it is not given.

    Returns:
        One row per method, depth and image: ``method``, ``layers`` (how many are random), ``layer`` (the last of them),
        ``image``, ``correlation`` (Spearman's, of absolute values).
    """
    pd = _pandas()
    found = label_for(model, data, settings, preprocessing).data
    chosen = found.sample(min(settings.samples, len(found.images)), settings.seed)[:count]
    x = network_input(model, [image.open() for image in chosen], preprocessing)
    target = Predictor(model, x).predicted(x)
    rows = []
    for name in settings.methods:
        result = randomisation(
            model, functools.partial(load_method, name), x, target, comparisons=comparisons, seed=settings.seed
        )
        for depth, layer in enumerate(result.layers):
            rows += [
                {"method": name, "layers": result.counts[depth], "layer": layer, "image": p.name, "correlation": c}
                for p, c in zip(chosen, result.correlation[:, depth].tolist(), strict=True)
            ]
    table = pd.DataFrame(rows)
    if out is not None:
        write_text(Path(out) / "randomisation.csv", table.to_csv(index=False))
        write_bytes(Path(out) / "randomisation.png", randomisation_figure(table))
    return table


def _collected(paths: Sequence[Path], methods: Sequence[str]) -> tuple[pandas.DataFrame, dict[str, Any]]:
    """The rows of all chunks without curves and thumbnails, and the mean curves: ``{method: {column: [mean]}}``.

    One file at a time: the curves and thumbnails of a million images would not fit into memory.
    """
    import pandas

    parts, sums = list[pandas.DataFrame](), dict[tuple[str, str], np.ndarray]()
    counts, columns = dict.fromkeys(methods, 0), dict[str, None]()
    for path in paths:
        rows = pandas.read_parquet(path).drop(columns=["digest", *THUMBNAILS])
        curves = [column for column in rows if column.endswith("_curve")]
        parts.append(rows.drop(columns=curves))
        measured = rows[rows["error"].isna()]
        for method in methods:
            of_method = measured[measured["method"] == method]
            counts[method] += len(of_method)
            for column in curves if len(of_method) else ():
                columns[column] = None
                total = np.stack(of_method[column].tolist()).astype(float).sum(0)
                sums[method, column] = sums.get((method, column), 0.0) + total
    means = {
        method: {column: (sums[method, column] / counts[method]).tolist() for column in columns if counts[method]}
        for method in methods
    }
    return pandas.concat(parts, ignore_index=True), means


def _pandas() -> Any:
    try:
        import pandas
        import pyarrow  # noqa: F401 - pandas needs it for Parquet
    except ImportError as error:
        raise MissingDependencyError(f"evaluation needs {error.name}: pip install 'headwater[evaluate]'") from error
    return pandas
