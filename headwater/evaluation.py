"""Every measure of every method on labelled pictures: one row a picture and method, in chunks that survive a kill."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from headwater.data.classes import found_images, listed_images, match_classes, with_labels_of
from headwater.data.labelled import LabelledPicture, LabelledPictures, load_labelled
from headwater.data.preprocessing import Preprocessing
from headwater.errors import DataError, HeadwaterError, InputError, MissingDependencyError
from headwater.explanation import Explanation
from headwater.files import write_bytes, write_text
from headwater.graph import skeleton
from headwater.heatmaps import heat_quantization
from headwater.lrp import LRP
from headwater.methods import QUANTIZED, Method, list_methods, load_method
from headwater.metrics import gini, insertion_deletion, pointing_game, randomisation, relevance_mass, relevance_rank
from headwater.metrics.insertion_deletion import Protocol
from headwater.models import ModelCard, card_of, network_input
from headwater.run_folder import claim

if TYPE_CHECKING:
    import pandas

_PUBLISHED_STEP, _PUBLISHED_PIXELS = 500, 224 * 224

Progress = Callable[[int, int, float], None]
"""Told after each chunk: pictures done, pictures in all, seconds since the start."""


@dataclass(frozen=True)
class Settings:
    """What a table depends on.

    Attributes:
        methods: names, see :func:`headwater.list_methods`; ``NAME+hq`` is the method's map after heat quantization.
        samples: pictures, balanced over the classes.
        protocols: of insertion and deletion.
        split: of the data set.
        seed: of the sample and of ties.
        step: pixels between two points; ``None`` for 500 of 224 x 224, in proportion for other sizes.
        batch_size: pictures at a time; also the pictures of a chunk.
        labels: where labels come from: ``"names"``: the data's classes, found among the network's by name or WordNet
            number; ``"positions"``: the data's k-th class is the network's k-th; ``"predicted"``: the network's own
            predictions; or a CSV file with columns ``image`` (a path in the data folder) and ``label`` (a class's name,
            WordNet number or index).
    """

    methods: tuple[str, ...]
    samples: int = 1000
    protocols: tuple[Protocol, ...] = ("published", "budget")
    split: str = "val"
    seed: int = 42
    step: int | None = None
    batch_size: int = 16
    labels: str = "names"

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise InputError(f"methods must be different names, got {', '.join(self.methods) or 'none'}")
        known = list_methods()
        for name in self.methods:
            if name.removesuffix(QUANTIZED) not in known:
                raise InputError(f"no method is called {name.removesuffix(QUANTIZED)!r}; there are {', '.join(known)}")
        wrong = [p for p in self.protocols if p not in get_args(Protocol)]
        if wrong or not self.protocols:
            raise InputError(f"protocols must be of {', '.join(get_args(Protocol))}, got {self.protocols}")
        for name in ("samples", "batch_size", "step"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not whole and not (name == "step" and value is None):
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, got {self.seed!r}")

    def step_for(self, pixels: int) -> int:
        """Pixels between two points for an image of ``pixels`` pixels.

        Raises:
            InputError: one step would be the whole image.
        """
        if self.step is not None and self.step >= pixels:
            raise InputError(f"a step of {self.step} pixels leaves no curve on images of {pixels} pixels; take fewer")
        return self.step or max(1, round(_PUBLISHED_STEP * pixels / _PUBLISHED_PIXELS))

    def load(self, data: str | Path | LabelledPictures, card: ModelCard) -> LabelledPictures:
        """The images, with labels that are the network's class indices (-1 for predicted ones).

        A data set without class names is taken to have the network's indices as labels already.

        Raises:
            DataError: the data do not fit, or their classes cannot be found among the network's.
        """
        if self.labels == "predicted":
            found = found_images(Path(data)) if not isinstance(data, LabelledPictures) else data
            return LabelledPictures(found.layout, tuple(replace(p, label=-1) for p in found.pictures))
        if self.labels not in ("names", "positions"):
            if isinstance(data, LabelledPictures):
                raise InputError("labels from a file go with a folder of images, not with a data set")
            return listed_images(Path(data), Path(self.labels), card.classes, card.wnids, card.name)
        found = data if isinstance(data, LabelledPictures) else load_labelled(data, self.split)
        if found.classes is None:
            return found
        if self.labels == "names":
            return with_labels_of(found, match_classes(found.classes, card.classes, card.wnids, card.name))
        if card.classes is not None and len(card.classes) != len(found.classes):
            raise DataError(
                f"{card.name} knows {len(card.classes)} classes, the data ({found.layout}) have {len(found.classes)}; "
                "positions cannot be the same"
            )
        return with_labels_of(found, range(len(found.classes)))


def evaluate(
    model: nn.Module,
    data: str | Path | LabelledPictures,
    settings: Settings,
    out: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    devices: Sequence[str] = (),
    progress: Progress | None = None,
) -> pandas.DataFrame:
    """Measure methods on labelled pictures.

    The map explains the *predicted* class, the curves follow the *true* label, as in the papers. Finished chunks are
    in ``out/rows``; a killed run that is started again goes on after them and ends in the same table. An image that
    cannot be read is a row with the reason in column ``error``; it is tried again at the next start, and an image
    whose file has changed since is measured again.

    Args:
        model: the network; it is not changed.
        data: a folder (see :func:`headwater.data.load_labelled`) or the data set itself.
        settings: see :class:`Settings`.
        out: folder of this run.
        preprocessing: for a model of your own that has no card.
        devices: such as ``["cuda:0", "cuda:1"]``: chunks are shared among copies of the model; where it is by default.
        progress: called after every chunk.

    Returns:
        One row a picture and method: ``picture``, ``label``, ``predicted``, ``probability`` (of the predicted class),
        ``method``, ``error``, ``insertion_P``, ``deletion_P``, ``id_P`` for each protocol P, ``conservation_error`` (at
        the picture), ``cut_error`` (the worst of all cuts), ``pointing``, ``mass``, ``rank`` (where there are boxes),
        ``gini``. Also written as ``results.parquet``; mean curves as ``curves.json``.

    Raises:
        DataError: the data do not fit, or ``out`` holds a run with other settings (the difference is named).
        MissingDependencyError: pandas or pyarrow is not installed.
        OutputError: ``out`` cannot be written.
    """
    pd = _pandas()
    out, card = Path(out), card_of(model, preprocessing)
    settings.step_for(card.preprocessing.crop**2)
    found = settings.load(data, card)
    chosen = found.sample(min(settings.samples, len(found.pictures)), settings.seed)
    claim(out, _identity(model, card, found, chosen, settings), "settings.json")
    chunks = [chosen[k : k + settings.batch_size] for k in range(0, len(chosen), settings.batch_size)]
    paths = [out / "rows" / f"{k:05d}.parquet" for k in range(len(chunks))]
    digests = {picture.name: picture.digest() for picture in chosen}
    todo = [k for k, path in enumerate(paths) if not _is_done(path, chunks[k], digests)]
    done = sum(len(chunk) for k, chunk in enumerate(chunks) if k not in set(todo))
    began = time.monotonic()
    for k, rows in _run(model, card.preprocessing, settings, chunks, todo, devices):
        stream = io.BytesIO()
        pd.DataFrame([{**row, "digest": digests[row["picture"]]} for row in rows]).to_parquet(stream, index=False)
        write_bytes(paths[k], stream.getvalue())
        done += len(chunks[k])
        if progress is not None:
            progress(done, len(chosen), time.monotonic() - began)
    table = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True).drop(columns="digest")
    if table["error"].notna().all():
        raise DataError(f"none of the {len(chosen)} images could be read; the first: {table['error'].iloc[0]}")
    curves = [column for column in table if column.endswith("_curve")]
    write_text(out / "curves.json", json.dumps(_mean_curves(table, curves, settings.methods), indent=1))
    table = table.drop(columns=curves)
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    write_bytes(out / "results.parquet", stream.getvalue())
    return table


def _is_done(path: Path, chunk: Sequence[LabelledPicture], digests: Mapping[str, str]) -> bool:
    """Whether a chunk's rows are there, readable, without failures, and of the files as they are now."""
    if not path.is_file():
        return False
    try:
        rows = _pandas().read_parquet(path, columns=["picture", "error", "digest"])
    except Exception:  # a file that was cut off or replaced raises whatever the reader likes; its rows are made again
        return False
    measured = dict(zip(rows["picture"], rows["digest"], strict=True))
    return bool(rows["error"].isna().all()) and measured == {p.name: digests[p.name] for p in chunk}


def _run(
    model: nn.Module,
    preprocessing: Preprocessing,
    settings: Settings,
    chunks: Sequence[Sequence[LabelledPicture]],
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
        idle.put(_Worker(copy.deepcopy(skeleton(model)).to(device), preprocessing, settings))

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

    def rows(self, pictures: Sequence[LabelledPicture]) -> list[dict[str, Any]]:
        """Every method on every picture of one chunk; pictures that cannot be read have one row a method too."""
        readable, photos, masks, broken = [], [], [], {}
        for picture in pictures:
            try:
                opened = picture.open()
            except HeadwaterError as error:
                broken[picture.name] = str(error)
                continue
            readable.append(picture)
            photos.append(opened)
            masks.append(object_mask(picture, self.preprocessing, opened.size))
        measured: dict[tuple[str, str], dict[str, Any]] = {}
        followed = dict[str, int]()
        if readable:
            x = network_input(self.model, photos, self.preprocessing)
            labels = self._labels(x, readable)
            followed = dict(zip((picture.name for picture in readable), labels.tolist(), strict=True))
            explained = {
                name: method(x, checkpoints="cuts") if isinstance(method, LRP) else method(x)
                for name, method in self.methods.items()
            }
            for name in self.settings.methods:
                e = explained[name.removesuffix(QUANTIZED)]
                heatmap = heat_quantization(e.heatmap) if name.endswith(QUANTIZED) else e.heatmap
                for picture, row in zip(readable, self._measure(e, heatmap, x, labels, masks), strict=True):
                    measured[picture.name, name] = row
        empty = {"predicted": -1, "probability": math.nan}
        return [
            {
                "picture": picture.name,
                "label": followed.get(picture.name, picture.label),
                "method": name,
                "error": broken.get(picture.name),
                **(measured.get((picture.name, name)) or empty),
            }
            for picture in pictures
            for name in self.settings.methods
        ]

    def _labels(self, x: Tensor, pictures: Sequence[LabelledPicture]) -> Tensor:
        """The class that the curves follow, ``(N,)``."""
        if self.settings.labels == "predicted":
            with torch.no_grad():
                return skeleton(self.model)(x).argmax(1)
        return torch.tensor([picture.label for picture in pictures], device=x.device)

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


def object_mask(picture: LabelledPicture, preprocessing: Preprocessing, size: tuple[int, int]) -> Tensor | None:
    """Where the picture's boxes are in what the network sees, ``(crop, crop)``; ``None`` if they are nowhere in it."""
    seen, side = preprocessing.box(*size), preprocessing.crop
    mask = torch.zeros(side, side)
    across, down = side / (seen.right - seen.left), side / (seen.bottom - seen.top)
    for box in picture.boxes:
        left, right = (round((edge - seen.left) * across) for edge in (box.left, box.right))
        top, bottom = (round((edge - seen.top) * down) for edge in (box.top, box.bottom))
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 1
    return mask if mask.any() else None


def _identity(
    model: nn.Module,
    card: ModelCard,
    found: LabelledPictures,
    chosen: Sequence[LabelledPicture],
    settings: Settings,
) -> dict[str, Any]:
    """Everything that the table depends on, for comparison with what a run folder was made from."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    names = hashlib.sha256("\n".join(picture.name for picture in chosen).encode())
    return {
        "model": card.name,
        "weights": f"{card.weights} ({digest.hexdigest()[:12]})",
        "data": found.layout,
        "pictures": f"{len(chosen)} ({names.hexdigest()[:12]})",
        **vars(settings),
    }


def measure_randomisation(
    model: nn.Module,
    data: str | Path | LabelledPictures,
    settings: Settings,
    count: int = 10,
    comparisons: int = 6,
    preprocessing: Preprocessing | None = None,
) -> pandas.DataFrame:
    """Randomise the network from the output down and compare each method's maps, on the first pictures of the sample.

    Args:
        model: the network; it is not changed.
        data: as in :func:`evaluate`.
        settings: whose methods, sample and seed count.
        count: pictures.
        comparisons: depths at which maps are compared, evenly over the layers.
        preprocessing: for a model of your own that has no card.

    Returns:
        One row a method, depth and picture: ``method``, ``layers`` (how many are random), ``layer`` (the last of them),
        ``picture``, ``correlation`` (Spearman's, of absolute values).
    """
    pd = _pandas()
    found = settings.load(data, card_of(model, preprocessing))
    chosen = found.sample(min(settings.samples, len(found.pictures)), settings.seed)[:count]
    x = network_input(model, [picture.open() for picture in chosen], preprocessing)
    with torch.no_grad():
        target = skeleton(model)(x).argmax(1)
    rows = []
    for name in settings.methods:
        result = randomisation(
            model, functools.partial(load_method, name), x, target, comparisons=comparisons, seed=settings.seed
        )
        for depth, layer in enumerate(result.layers):
            rows += [
                {"method": name, "layers": result.counts[depth], "layer": layer, "picture": p.name, "correlation": c}
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
