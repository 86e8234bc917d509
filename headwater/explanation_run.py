"""Maps of many images as a run: files per image, one row per image, in chunks that survive a kill."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from torch import nn

from headwater import __version__
from headwater.data.classes import found_images
from headwater.data.labelled import LabelledImage, raise_if_all_refused
from headwater.data.storage import as_path
from headwater.engine.copies import own_copy
from headwater.errors import ClusterError, DataError, HeadwaterError, MissingDependencyError, OutputError
from headwater.evaluation.chunks import unfinished
from headwater.explanations import ImageExplanation, explain_files
from headwater.files import check_folder, claim, concerns_all, safe_name, write_bytes, write_checked
from headwater.methods import DEFAULT_METHOD
from headwater.models import card_of, weights_digest
from headwater.report.images import Style

if TYPE_CHECKING:
    import pandas

    from headwater.cluster import Engine, Row, Rows

SETTINGS, MANIFEST = "explain.json", "manifest"
"""Of a run's folder: what its rows depend on, and the folder of finished chunks, beside the table of that name."""


@dataclass(frozen=True)
class Wanted:
    """What is made of each image, as in :func:`headwater.explain`.

    Attributes:
        method: name.
        target: class to explain, by name or number; ``None`` for the predicted one.
        against: why the target and not this class.
        quantize: levels of the drawn maps.
        style: colours.
        scales: draw the map at every scale, too.
        batch_size: images at a time; also per chunk.
    """

    method: str = DEFAULT_METHOD
    target: int | str | None = None
    against: int | str | None = None
    quantize: int | None = None
    style: Style = field(default_factory=Style)
    scales: bool = False
    batch_size: int = 8


def explain_all(
    model: nn.Module,
    places: Sequence[str | Path | LabelledImage],
    wanted: Wanted,
    out: str | Path,
    *,
    engine: Engine | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> pandas.DataFrame:
    """Explain all images of folders and addresses.

    Each image has the files of :meth:`ImageExplanation.save`, in the folder below ``out`` that it has below its own
    root, and a row in ``out/manifest.parquet``. Finished chunks are in ``out/manifest``; a run that is started again
    continues after them, like :func:`headwater.evaluate`.

    Args:
        model: the network; it is not changed.
        places: image files, folders, and addresses of either in object storage; or what :func:`list_images` found.
        wanted: what is made of each image.
        out: folder of this run. The workers of an engine write to it, so all their machines need to see it.
        engine: what spreads the chunks over workers, such as :class:`headwater.cluster.Ray`; by default this process.
        progress: called after each chunk with images done, images in all, seconds since the start.

    Returns:
        One row per image: ``image``, ``error`` (why there is no map), ``target`` and ``target_name``, its
        ``probability``, ``predicted``, ``predicted_name`` and its ``predicted_probability``, ``seed`` and ``arrived``
        (relevance at the start and at the image), ``conservation_error``, and ``map`` (its ``.npy`` below ``out``; the
        other files have the same name with another suffix).

    Raises:
        DataError: there is no image, or ``out`` holds a run with other settings.
        StorageError: object storage denies access, or cannot be reached.
        ClusterError: the engine's workers cannot do the work.
        InputError: the method, target or class against it does not fit the network.
        MissingDependencyError: pandas or pyarrow is not installed.
        OutputError: ``out`` cannot be written.
    """
    pd, out, card = _pandas(), Path(out).absolute(), card_of(model)
    images = list_images(places)
    identity = {
        "headwater": __version__,
        "model": card.name,
        "weights": f"{card.weights} ({weights_digest(model)})",
        "preprocessing": str(card.preprocessing),
        "images": f"{len(images)} ({_digest(chr(10).join(image.name for image in images))})",
        **asdict(wanted),
    }
    check_folder(out)
    claim(out, identity, SETTINGS)
    run = _digest(repr(identity))
    chunks = [images[k : k + wanted.batch_size] for k in range(0, len(images), wanted.batch_size)]
    paths = [out / MANIFEST / f"{k:06d}.parquet" for k in range(len(chunks))]
    digests = {image.name: f"{image.digest()} {run}" for image in images}
    todo = unfinished(paths, chunks, digests)
    done, began = len(images) - sum(len(chunks[k]) for k in todo), time.monotonic()
    stems = _repeated_stems(images)
    with (
        _token(out) as token,
        contextlib.closing(_results(model, wanted, out, token, stems, engine, chunks, todo)) as it,
    ):
        for k, rows in it:
            stream = io.BytesIO()
            pd.DataFrame([{**row, "digest": digests[row["image"]]} for row in rows]).to_parquet(stream, index=False)
            write_checked(paths[k], stream.getvalue())
            done += len(chunks[k])
            if progress is not None:
                progress(done, len(images), time.monotonic() - began)
    table = pd.concat([pd.read_parquet(path).drop(columns="digest") for path in paths], ignore_index=True)
    stream = io.BytesIO()
    table.to_parquet(stream, index=False)
    write_bytes(out / f"{MANIFEST}.parquet", stream.getvalue())
    return table


def list_images(places: Sequence[str | Path | LabelledImage]) -> tuple[LabelledImage, ...]:
    """The images of files, folders and addresses, each with a name of its own: its path below its folder.

    Raises:
        DataError: there is none, or a folder holds none.
        StorageError: object storage denies access, or cannot be reached.
    """
    images = list[LabelledImage]()
    for place in places:
        if isinstance(place, LabelledImage):
            images.append(place)
            continue
        path = as_path(place).absolute()
        images += found_images(path).images if path.is_dir() else [LabelledImage(path.name, -1, path)]
    if not images:
        raise DataError("no image is given; name files, folders, or addresses such as s3://bucket/folder")
    once = list({image.source: image for image in images}.values())  # a place that is given twice counts once
    count = Counter(image.name for image in once)
    return tuple(replace(p, name=str(p.source)) if count[p.name] > 1 else p for p in once)


class _Explainer:
    """One model on one device with what is wanted of each image; writes an image's files."""

    def __init__(
        self, model: nn.Module, wanted: Wanted, out: Path, token: str, repeated: frozenset[str], device: str | None
    ) -> None:
        if not (out / token).is_file():
            raise ClusterError(f"{out} is not the same folder on every machine; give an --out that all of them share")
        self.model = model if device is None else model.to(device)
        self.wanted, self.out, self.repeated = wanted, out, repeated

    def rows(self, images: Sequence[LabelledImage], given_up: Mapping[str, str] = MappingProxyType({})) -> list[Row]:
        """One row per image of a chunk, also for images that cannot be explained."""
        tried, w = [image for image in images if image.name not in given_up], self.wanted
        results = list(
            explain_files(
                [image.source for image in tried],
                self.model,
                w.method,
                w.target,
                w.quantize,
                batch_size=max(1, len(tried)),
                against=w.against,
            )
        )
        raise_if_all_refused(results)
        made = {image.name: self._row(image, one) for image, one in zip(tried, results, strict=True)}
        return [made.get(image.name) or _failed(image, given_up[image.name]) for image in images]

    def _row(self, image: LabelledImage, e: ImageExplanation | HeadwaterError) -> Row:
        if isinstance(e, HeadwaterError):
            return _failed(image, str(e))
        folder = self.out / _below(image.name).parent
        stem = e.stem_with(PurePath(image.name).name) if image.name in self.repeated else None
        try:
            files = e.save(folder, stem, self.wanted.style, self.wanted.scales)
        except OutputError as error:
            if concerns_all(error):
                raise
            return _failed(image, str(error))
        about = e.summary()
        account = about["conservation"] or {}
        return {
            "image": image.name,
            "error": None,
            "target": about["target"]["index"],
            "target_name": about["target"]["name"],
            "probability": about["target"]["probability"],
            "predicted": about["predicted"]["index"],
            "predicted_name": about["predicted"]["name"],
            "predicted_probability": about["predicted"]["probability"],
            "seed": account.get("seed", math.nan),
            "arrived": account.get("input", math.nan),
            "conservation_error": account.get("relative_error", math.nan),
            "map": next(p for p in files if p.suffix == ".npy").relative_to(self.out).as_posix(),
        }


def _failed(image: LabelledImage, why: str) -> Row:
    numbers = dict.fromkeys(("probability", "predicted_probability", "seed", "arrived", "conservation_error"), math.nan)
    return {
        "image": image.name,
        "error": why,
        "target": -1,
        "target_name": None,
        "predicted": -1,
        "predicted_name": None,
        **numbers,
        "map": None,
    }


def _results(
    model: nn.Module,
    wanted: Wanted,
    out: Path,
    token: str,
    repeated: frozenset[str],
    engine: Engine | None,
    chunks: Sequence[Sequence[LabelledImage]],
    todo: Sequence[int],
) -> Rows:
    """Number and rows of each chunk that is still to do."""
    if engine is None:
        worker = _Explainer(model, wanted, out, token, repeated, None)
        for k in todo:
            yield k, worker.rows(chunks[k])
        return
    sent = own_copy(model, "cpu")
    yield from engine.run(functools.partial(_Explainer, sent, wanted, out, token, repeated), chunks, todo)


@contextlib.contextmanager
def _token(out: Path) -> Any:
    """A file in ``out`` by which a worker knows that it sees the same folder."""
    name = f".headwater.{uuid4().hex}"
    write_bytes(out / name, b"")
    try:
        yield name
    finally:
        (out / name).unlink(missing_ok=True)


def _below(name: str) -> PurePath:
    """Where an image lies; one whose name is its whole path or address, without the root or the protocol."""
    path = PurePath(name.split("://", 1)[-1])
    return path.relative_to(path.anchor)


def _repeated_stems(images: Sequence[LabelledImage]) -> frozenset[str]:
    """Names of images whose files would be called as another's in their folder: these need the whole name."""

    def stem(image: LabelledImage) -> tuple[PurePath, str]:
        path = _below(image.name)
        return path.parent, safe_name(path.stem)

    stems = Counter(map(stem, images))
    return frozenset(image.name for image in images if stems[stem(image)] > 1)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:12]


def _pandas() -> Any:
    try:
        import pandas
        import pyarrow  # noqa: F401 - pandas needs it for Parquet
    except ImportError as error:
        raise MissingDependencyError(f"a run needs {error.name}: pip install 'headwater[ray]'") from error
    return pandas
