"""Every measure of every method on labelled images: one row per image and method, in chunks that survive a kill."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from headwater import __version__
from headwater.data.labelled import LabelledImage, LabelledImages
from headwater.data.preprocessing import Preprocessing
from headwater.engine.explanation import Explanation
from headwater.engine.lrp import LRP
from headwater.engine.trace import shared_copy
from headwater.errors import DataError, HeadwaterError, MissingDependencyError
from headwater.evaluation.chunks import unfinished, write_checked
from headwater.evaluation.labels import PREDICTED, label_for
from headwater.evaluation.settings import Settings
from headwater.files import claim, write_bytes, write_text
from headwater.heatmaps import heat_quantization
from headwater.methods import QUANTIZED, Method, load_method
from headwater.metrics import gini, insertion_deletion, pointing_game, randomisation, relevance_mass, relevance_rank
from headwater.models import ModelCard, card_of, network_input


if TYPE_CHECKING:
    import pandas

Progress = Callable[[int, int, float], None]
"""Told after each chunk: images done, images in all, seconds since the start."""


def evaluate(
    model: nn.Module,
    data: str | Path | LabelledImages,
    settings: Settings,
    out: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    devices: Sequence[str] = (),
    progress: Progress | None = None,
) -> pandas.DataFrame:
    """Measure methods on labelled images.

    The map explains the *predicted* class, the curves follow the *true* label, as in the papers. Finished chunks are
    in ``out/rows``; a killed run that is started again goes on after them and ends in the same table. An image that
    cannot be read is a row with the reason in column ``error``. At the next start it is tried again, images whose files
    have changed are measured again, and so are damaged files of rows; a warning says how many.

    Args:
        model: the network; it is not changed.
        data: a folder (see :func:`headwater.data.load_labelled`) or the data set itself.
        settings: see :class:`Settings`.
        out: folder of this run.
        preprocessing: for a model of your own that has no card.
        devices: such as ``["cuda:0", "cuda:1"]``: chunks are shared among copies of the model; where it is by default.
        progress: called after every chunk.

    Returns:
        One row per image and method: ``image``, ``label``, ``predicted``, ``probability`` (of the predicted class),
        ``method``, ``error``, ``insertion_P``, ``deletion_P``, ``id_P`` for each protocol P, ``conservation_error`` (at
        the image), ``cut_error`` (the worst of all cuts), ``pointing``, ``mass``, ``rank`` (where there are boxes),
        ``gini``; ``label_source`` (as in the settings, a file's name, or ``"given"`` with the data set), ``classes``
        (how many the network has). Also written as ``results.parquet``; mean curves as ``curves.json``.

    Raises:
        DataError: the data do not fit, no image can be read, or ``out`` holds a run with other settings (the difference
            is named).
        InputError: one step of the curves would be the whole image.
        MissingDependencyError: pandas or pyarrow is not installed.
        OutputError: ``out`` cannot be written.
    """
    pd = _pandas()
    out, card = Path(out), card_of(model, preprocessing)
    settings.step_for(card.preprocessing.crop**2)
    labelled = label_for(model, data, settings, preprocessing)
    found = labelled.data
    chosen = found.sample(min(settings.samples, len(found.images)), settings.seed)
    claim(out, _identity(model, card, found, chosen, settings), "settings.json")
    chunks = [chosen[k : k + settings.batch_size] for k in range(0, len(chosen), settings.batch_size)]
    paths = [out / "rows" / f"{k:05d}.parquet" for k in range(len(chunks))]
    digests = {image.name: image.digest() for image in chosen}
    todo = unfinished(paths, chunks, digests)
    done = sum(len(chunk) for k, chunk in enumerate(chunks) if k not in set(todo))
    began = time.monotonic()
    for k, rows in _run(model, card.preprocessing, settings, chunks, todo, devices):
        stream = io.BytesIO()
        pd.DataFrame([{**row, "digest": digests[row["image"]]} for row in rows]).to_parquet(stream, index=False)
        write_checked(paths[k], stream.getvalue())
        done += len(chunks[k])
        if progress is not None:
            progress(done, len(chosen), time.monotonic() - began)
    table = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True).drop(columns="digest")
    table = table.assign(label_source=labelled.source, classes=labelled.classes)
    if table["error"].notna().all():
        raise DataError(f"none of the {len(chosen)} images could be read; the first: {table['error'].iloc[0]}")
    curves = [column for column in table if column.endswith("_curve")]
    write_text(out / "curves.json", json.dumps(_mean_curves(table, curves, settings.methods), indent=1))
    table = table.drop(columns=curves)
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    write_bytes(out / "results.parquet", stream.getvalue())
    return table


def _run(
    model: nn.Module,
    preprocessing: Preprocessing,
    settings: Settings,
    chunks: Sequence[Sequence[LabelledImage]],
    todo: Sequence[int],
    devices: Sequence[str],
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Rows of the chunks still to do, in whatever order the devices finish them."""
    if not devices:
        worker = _Worker(model, preprocessing, settings)
        for k in todo:
            yield k, worker.rows(chunks[k])
        return
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for device in devices:
        idle.put(_Worker(copy.deepcopy(shared_copy(model)).to(device), preprocessing, settings))

    def work(k: int) -> tuple[int, list[dict[str, Any]]]:
        worker = idle.get()
        try:
            return k, worker.rows(chunks[k])
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(devices)) as pool:
        yield from pool.map(work, todo)


class _Worker:
    """One model on one device with its methods."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, settings: Settings) -> None:
        self.model, self.preprocessing, self.settings = model, preprocessing, settings
        names = dict.fromkeys(name.removesuffix(QUANTIZED) for name in settings.methods)
        self.methods: dict[str, Method] = {name: load_method(name, model) for name in names}

    def rows(self, images: Sequence[LabelledImage]) -> list[dict[str, Any]]:
        """Every method on every image of one chunk; images that cannot be read have one row per method too."""
        readable, photos, masks, broken = [], [], [], {}
        for image in images:
            try:
                opened = image.open()
            except HeadwaterError as error:
                broken[image.name] = str(error)
                continue
            readable.append(image)
            photos.append(opened)
            masks.append(object_mask(image, self.preprocessing, opened.size))
        measured: dict[tuple[str, str], dict[str, Any]] = {}
        followed = dict[str, int]()
        if readable:
            x = network_input(self.model, photos, self.preprocessing)
            labels = self._labels(x, readable)
            followed = dict(zip((image.name for image in readable), labels.tolist(), strict=True))
            explained = {
                name: method(x, checkpoints="cuts") if isinstance(method, LRP) else method(x)
                for name, method in self.methods.items()
            }
            for name in self.settings.methods:
                e = explained[name.removesuffix(QUANTIZED)]
                heatmap = heat_quantization(e.heatmap) if name.endswith(QUANTIZED) else e.heatmap
                for image, row in zip(readable, self._measure(e, heatmap, x, labels, masks), strict=True):
                    measured[image.name, name] = row
        empty = {"predicted": -1, "probability": math.nan}
        return [
            {
                "image": image.name,
                "label": followed.get(image.name, image.label),
                "method": name,
                "error": broken.get(image.name),
                **(measured.get((image.name, name)) or empty),
            }
            for image in images
            for name in self.settings.methods
        ]

    def _labels(self, x: Tensor, images: Sequence[LabelledImage]) -> Tensor:
        """The class that the curves follow, ``(N,)``."""
        if all(image.label == PREDICTED for image in images):
            with torch.no_grad():
                return shared_copy(self.model)(x).argmax(1)
        return torch.tensor([image.label for image in images], device=x.device)

    def _measure(
        self, e: Explanation, heatmap: Tensor, x: Tensor, labels: Tensor, masks: Sequence[Tensor | None]
    ) -> Iterator[dict[str, Any]]:
        if (labels >= e.logits.shape[1]).any():
            raise DataError(f"label {int(labels.max())} is out of range; the network has {e.logits.shape[1]} classes")
        columns: dict[str, Tensor] = {"predicted": e.target, "probability": e.probability}
        step = self.settings.step_for(x.shape[2] * x.shape[3])
        for protocol in self.settings.protocols:
            result = insertion_deletion(
                self.model,
                x,
                heatmap,
                labels,
                protocol,
                step,
                mean=self.preprocessing.mean,
                std=self.preprocessing.std,
                batch_size=max(32, self.settings.batch_size),
                seed=self.settings.seed,
            )
            columns |= {
                f"insertion_{protocol}": result.insertion,
                f"deletion_{protocol}": result.deletion,
                f"id_{protocol}": result.id,
                f"insertion_{protocol}_curve": result.insertion_curve,
                f"deletion_{protocol}_curve": result.deletion_curve,
            }
        nothing = torch.full((len(x),), math.nan)
        account = e.conservation
        at_cuts = [] if account is None else list(account.checkpoint_errors.values())
        columns["conservation_error"] = nothing if account is None else account.error
        columns["cut_error"] = torch.stack(at_cuts).amax(0) if at_cuts else nothing
        known = [k for k, mask in enumerate(masks) if mask is not None]
        inside = torch.stack([m for m in masks if m is not None]) if known else None
        for column, measure in (("pointing", pointing_game), ("mass", relevance_mass), ("rank", relevance_rank)):
            values = nothing.clone()
            if inside is not None:
                values[known] = measure(heatmap[known], inside.to(x.device)).float().cpu()
            columns[column] = values
        columns["gini"] = gini(heatmap)
        plain = {column: values.cpu().tolist() for column, values in columns.items()}
        for k in range(len(x)):
            yield {column: values[k] for column, values in plain.items()}


def object_mask(image: LabelledImage, preprocessing: Preprocessing, size: tuple[int, int]) -> Tensor | None:
    """Where the image's boxes are in what the network sees, ``(crop, crop)``; ``None`` if they are nowhere in it."""
    seen, side = preprocessing.box(*size), preprocessing.crop
    mask = torch.zeros(side, side)
    across, down = side / (seen.right - seen.left), side / (seen.bottom - seen.top)
    for box in image.boxes:
        left, right = (round((edge - seen.left) * across) for edge in (box.left, box.right))
        top, bottom = (round((edge - seen.top) * down) for edge in (box.top, box.bottom))
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
    return mask if mask.any() else None


def _identity(
    model: nn.Module,
    card: ModelCard,
    found: LabelledImages,
    chosen: Sequence[LabelledImage],
    settings: Settings,
) -> dict[str, Any]:
    """Everything that the table depends on, for comparison with what a run folder was made from."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    images = hashlib.sha256("\n".join(f"{image.label} {image.name}" for image in chosen).encode())
    return {
        "headwater": __version__,
        "model": card.name,
        "weights": f"{card.weights} ({digest.hexdigest()[:12]})",
        "data": found.layout,
        "preprocessing": str(card.preprocessing),
        "images and labels": f"{len(chosen)} ({images.hexdigest()[:12]})",
        **vars(settings),
    }


def measure_randomisation(
    model: nn.Module,
    data: str | Path | LabelledImages,
    settings: Settings,
    count: int = 10,
    comparisons: int = 6,
    preprocessing: Preprocessing | None = None,
) -> pandas.DataFrame:
    """Randomise the network from the output down and compare each method's maps, on the first images of the sample.

    Args:
        model: the network; it is not changed.
        data: as in :func:`evaluate`.
        settings: whose methods, sample and seed count.
        count: images.
        comparisons: depths at which maps are compared, evenly over the layers.
        preprocessing: for a model of your own that has no card.

    Returns:
        One row per method, depth and image: ``method``, ``layers`` (how many are random), ``layer`` (the last of them),
        ``image``, ``correlation`` (Spearman's, of absolute values).
    """
    pd = _pandas()
    found = label_for(model, data, settings, preprocessing).data
    chosen = found.sample(min(settings.samples, len(found.images)), settings.seed)[:count]
    x = network_input(model, [image.open() for image in chosen], preprocessing)
    with torch.no_grad():
        target = shared_copy(model)(x).argmax(1)
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
    return pd.DataFrame(rows)


def _mean_curves(table: pandas.DataFrame, columns: Sequence[str], methods: Sequence[str]) -> dict[str, Any]:
    """Mean curve of each method: ``{method: {column: [probability at each point]}}``."""
    means: dict[str, Any] = {}
    for method in methods:
        rows = table[(table["method"] == method) & table["error"].isna()]
        means[method] = {c: np.stack(rows[c].tolist()).astype(float).mean(0).tolist() for c in columns if len(rows)}
    return means


def _pandas() -> Any:
    try:
        import pandas
        import pyarrow  # noqa: F401 - pandas needs it for Parquet
    except ImportError as error:
        raise MissingDependencyError(f"evaluation needs {error.name}: pip install 'headwater[evaluate]'") from error
    return pandas


__all__ = ["Progress", "Settings", "evaluate", "measure_randomisation", "object_mask"]
