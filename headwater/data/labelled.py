"""Labelled images from common folder layouts, recognised by what is in the folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from headwater.data.images import open_image, opened
from headwater.data.preprocessing import Box
from headwater.data.storage import StoragePath, as_path
from headwater.data.texts import read_lines, read_table
from headwater.errors import DataError, HeadwaterError, ImageError, StorageError
from headwater.files import is_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of the files that are taken for images."""


@dataclass(frozen=True)
class LabelledImage:
    """One image of a data set.

    Attributes:
        name: unique in the data set.
        label: index of its class; -1 where it has none.
        source: the file, or the tar file that it is in; on disk, or in object storage.
        span: where in the tar file it begins, and its length, in bytes; ``None`` for a file of its own.
        boxes: around its object, in pixels of the image as stored; empty where they are not known.
    """

    name: str
    label: int
    source: Path | StoragePath
    span: tuple[int, int] | None = None
    boxes: tuple[Box, ...] = ()

    def open(self) -> Image.Image:
        """The image, RGB and upright.

        Raises:
            ImageError: it cannot be read.
            StorageError: object storage denies access, or cannot be reached.
        """
        if self.span is None:
            return open_image(self.source)
        try:
            return Image.open(io.BytesIO(self.content())).convert("RGB")
        except StorageError:
            raise
        except Exception as error:  # on broken files decoders raise exceptions of any type
            raise ImageError(f"{self.source}: {self.name} cannot be read ({error})") from error

    def content(self) -> bytes:
        """The file's bytes.

        Raises:
            OSError: it cannot be read.
        """
        if isinstance(self.source, StoragePath):
            return self.source.read_bytes(self.span)
        if self.span is None:
            return self.source.read_bytes()
        with self.source.open("rb") as file:
            file.seek(self.span[0])
            return file.read(self.span[1])

    def digest(self) -> str:
        """A hash of the file's bytes, or of what object storage says of them; ``"unreadable"`` if it cannot be read."""
        if isinstance(self.source, StoragePath):
            with contextlib.suppress(HeadwaterError):
                version = self.source.version()
                return version if self.span is None else f"{version} {self.span[0]}"
            return "unreadable"
        try:
            return hashlib.sha256(self.content()).hexdigest()[:16]
        except OSError:
            return "unreadable"


def open_images(images: Sequence[LabelledImage]) -> list[Image.Image | HeadwaterError]:
    """Each image, or why it cannot be read, see :func:`~headwater.data.images.opened`.

    Raises:
        StorageError: several images, and the storage refuses all of them: then it will refuse others as well.
    """
    found = opened([image.open for image in images], any(isinstance(p.source, StoragePath) for p in images))
    raise_if_all_refused(found)
    return found


def raise_if_all_refused(results: Sequence[object]) -> None:
    """Raise the StorageError of the first of several results if all are such errors."""
    refused = [one for one in results if isinstance(one, StorageError)]
    if len(refused) == len(results) > 1:
        raise refused[0]


@dataclass(frozen=True)
class LabelledImages:
    """A data set.

    Attributes:
        layout: the recognised layout, see :func:`load_labelled`.
        images: in a fixed order.
        classes: class names in the order of the labels; ``None`` if labels are a network's class indices already.
        wnids: the classes' WordNet numbers, if the data have them besides the names.
    """

    layout: str
    images: tuple[LabelledImage, ...]
    classes: tuple[str, ...] | None = None
    wnids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for image in self.images:
            if not image.name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in image.name):
                shown = image.name.encode(errors="backslashreplace").decode()
                raise DataError(f"the file name {shown} is not UTF-8, as tables need it; rename the file")

    def names(self) -> tuple[str, ...] | None:
        """The class names, each with its WordNet number in front if the data have both."""
        if self.classes is None or self.wnids is None:
            return self.classes
        return tuple(f"{wnid}_{name}" for wnid, name in zip(self.wnids, self.classes, strict=True))

    def sample(self, count: int, seed: int = 42) -> tuple[LabelledImage, ...]:
        """``count`` images, as many of each class as possible, in a random order that the seed fixes; or all there are.

        With 1,000 of ImageNet's validation images that is one per class, with 1,000 of CUB's test images five.

        Raises:
            DataError: there are fewer images, or a class has too few for its share.
        """
        if not 1 <= count <= len(self.images):
            raise DataError(f"{count} images were asked for, of {len(self.images)}")
        generator = torch.Generator().manual_seed(seed)
        by_class: dict[int, list[LabelledImage]] = defaultdict(list)
        for image in self.images:
            by_class[image.label].append(image)
        if count == len(self.images) and len(set(map(len, by_class.values()))) > 1:  # all, though not balanced
            return tuple(self.images[k] for k in torch.randperm(count, generator=generator).tolist())
        labels = sorted(by_class)
        share, more = divmod(count, len(labels))
        lucky = {labels[k] for k in torch.randperm(len(labels), generator=generator)[:more].tolist()}
        chosen = []
        for label in labels:
            wanted, there = share + (label in lucky), by_class[label]
            if wanted > len(there):
                raise DataError(
                    f"a balanced sample of {count} needs {wanted} images of class {label}, which has {len(there)}; "
                    "ask for fewer"
                )
            chosen += [there[k] for k in torch.randperm(len(there), generator=generator)[:wanted].tolist()]
        return tuple(chosen[k] for k in torch.randperm(len(chosen), generator=generator).tolist())


def load_labelled(root: str | Path, split: str = "val") -> LabelledImages:
    """Recognise the layout of ``root``, a folder or an address such as ``s3://bucket/folder``, and list its images.

    Layouts, in the order in which they are tried:

    - ``tiny20``: ``classes.csv`` with a folder or tar file for the split, and ``boxes.csv``.
    - ``cub-200-2011``: ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt``, ``classes.txt`` and the
      folder ``images``; splits ``"train"`` and ``"val"`` (or ``"test"``), with boxes.
    - ``imagenet-flat``: ``ILSVRC2012_val_00000001.JPEG`` and so on, with the devkit's
      ``ILSVRC2012_validation_ground_truth.txt`` and ``meta`` mapping (``LOC_synset_mapping.txt`` or ``synsets.txt``).
    - ``flat``: images called ``<wnid>_<anything>``; the sorted wnids are the classes.
    - ``folders``: one folder per class, sorted (torchvision's ImageFolder; ImageNet's validation folder), directly or
      in a folder named after the split.

    Annotations in ImageNet's format, ``<image>.xml``, give boxes in the last three layouts: beside the images, or
    anywhere below a folder ``Annotations`` (or ``bbox``) in ``root`` or beside it.

    Raises:
        DataError: none fits, or a part is missing; says what was found and what is expected.
        StorageError: object storage denies access, or cannot be reached.
    """
    root = as_path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    loaders: tuple[tuple[Callable[[Path], bool], Callable[[Path, str], LabelledImages]], ...] = (
        (lambda r: (r / "classes.csv").is_file(), _tiny20),
        (lambda r: (r / "images.txt").is_file() or (r / "image_class_labels.txt").is_file(), _cub),
        (lambda r: next(r.glob("ILSVRC2012_val_*.JPEG"), None) is not None, _imagenet_flat),
        (lambda r: any(_wnid(p) for p in r.iterdir() if p.is_file()), _flat),
        (lambda r: any(p.is_dir() for p in r.iterdir()), _folders),
    )
    for fits, load in loaders:
        if fits(root):
            found = load(root, split)
            if not found.images:
                raise DataError(f"{root} looks like {found.layout!r} but holds no image of split {split!r}")
            return found
    contents = sorted(p.name for p in root.iterdir())
    seen = f"{len(contents)} entries ({', '.join(contents[:4])}, ...)" if contents else "nothing"
    raise DataError(
        f"{root}: found {seen}; expected one folder per class, images called <wnid>_<name>.jpg, ImageNet's validation "
        "images with the devkit's ground truth, CUB-200-2011's lists with images/, or tiny20's classes.csv; images "
        "of your own need labels: a CSV file with columns image,label, or 'predicted'"
    )


def has_lists(root: Path) -> bool:
    """Whether a folder lists its images in a file: tiny20, CUB-200-2011, ImageNet's devkit."""
    return any(
        (root / name).is_file()
        for name in ("classes.csv", "images.txt", "image_class_labels.txt", "ILSVRC2012_validation_ground_truth.txt")
    )


def _wnid(path: Path) -> str | None:
    """The leading synset number of a file name, such as n01440764."""
    first = path.name.split("_")[0]
    is_wnid = len(first) == 9 and first[0] == "n" and first[1:].isdigit()
    return first if is_wnid and path.suffix.lower() in IMAGE_SUFFIXES else None


def _flat(root: Path, split: str) -> LabelledImages:
    files = sorted(p for p in root.iterdir() if _wnid(p))
    wnids = sorted({_wnid(p) or "" for p in files})
    index = {wnid: k for k, wnid in enumerate(wnids)}
    boxes_of = annotated_boxes(root)
    images = tuple(LabelledImage(p.name, index[_wnid(p) or ""], p, boxes=boxes_of(p)) for p in files)
    return LabelledImages("flat", images, tuple(wnids))


def _folders(root: Path, split: str) -> LabelledImages:
    root = root / split if (root / split).is_dir() else root
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name not in _ANNOTATIONS)
    boxes_of, images = annotated_boxes(root), []
    for label, name in enumerate(classes):
        for path in sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
            images.append(LabelledImage(str(path.relative_to(root)), label, path, boxes=boxes_of(path)))
    return LabelledImages("folders", tuple(images), tuple(classes))


def _imagenet_flat(root: Path, split: str) -> LabelledImages:
    truth = _first(root, "ILSVRC2012_validation_ground_truth.txt", "data/ILSVRC2012_validation_ground_truth.txt")
    mapping = _first(root, "synsets.txt", "LOC_synset_mapping.txt")
    if truth is None or mapping is None:
        missing = (
            "ILSVRC2012_validation_ground_truth.txt" if truth is None else "synsets.txt (devkit order of the wnids)"
        )
        raise DataError(f"{root}: found ImageNet's validation images, but not {missing}")
    devkit = [line.split()[0] for line in read_lines(mapping)]
    sorted_index = {wnid: k for k, wnid in enumerate(sorted(devkit))}
    try:
        numbers = [int(line) for line in read_lines(truth)]
    except ValueError as error:
        raise DataError(f"{truth}: a line is not a class number ({error})") from error
    boxes_of, images = annotated_boxes(root), []
    for path in sorted(root.glob("ILSVRC2012_val_*.JPEG")):
        number = int(path.stem.rsplit("_", 1)[1])
        if not 1 <= number <= len(numbers) or not 1 <= numbers[number - 1] <= len(devkit):
            raise DataError(f"{truth}: no class for {path.name}; the list has {len(numbers)} entries")
        label = sorted_index[devkit[numbers[number - 1] - 1]]
        images.append(LabelledImage(path.name, label, path, boxes=boxes_of(path)))
    return LabelledImages("imagenet-flat", tuple(images), tuple(sorted(devkit)))


def _first(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).is_file()), None)


_ANNOTATIONS = ("Annotations", "annotations", "Annotation", "bbox")


def annotated_boxes(root: Path) -> Callable[[Path], tuple[Box, ...]]:
    """A function from an image file to its boxes: from the file beside it, else from a folder of annotations."""
    outside = isinstance(root, StoragePath) and root.is_listed  # beside an address nothing may be readable
    around = (root,) if outside else (root.parent, root)
    places = [parent / name for parent in around for name in _ANNOTATIONS if (parent / name).is_dir()]
    found = {(path.parent.name, path.stem): path for place in places for path in sorted(place.rglob("*.xml"))}
    classes = {p.name for p in root.iterdir() if p.is_dir() and p.name not in _ANNOTATIONS}
    at_large = {stem: path for (folder, stem), path in found.items() if folder not in classes}

    def boxes(image: Path) -> tuple[Box, ...]:
        beside = image.with_suffix(".xml")
        known = found.get((image.parent.name, image.stem)) or at_large.get(image.stem)
        return _xml_boxes(beside if beside.is_file() else known)

    return boxes


def _xml_boxes(path: Path | None) -> tuple[Box, ...]:
    """Boxes of an annotation in ImageNet's (Pascal VOC's) format; none where there is no such file."""
    if path is None:
        return ()
    try:
        with path.open("rb") as file:
            tree = ElementTree.parse(file)
        return tuple(
            Box(*_corners([box.findtext(corner) or "" for corner in ("xmin", "ymin", "xmax", "ymax")]))
            for box in tree.iterfind(".//bndbox")
        )
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} is not an annotation in ImageNet's format ({error})") from error


def _corners(texts: Sequence[str]) -> list[float]:
    """Four finite numbers; ValueError for anything else."""
    numbers = [float(text) for text in texts]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"a box needs four finite numbers, not {', '.join(texts)}")
    return numbers


def _tiny20(root: Path, split: str) -> LabelledImages:
    rows = read_table(root / "classes.csv", ("index", "wnid", "name"))
    if [row["index"].strip() for row in rows] != [str(k) for k in range(len(rows))]:
        raise DataError(f"{root / 'classes.csv'}: the column index must count 0, 1, 2, ... from row to row")
    unnamed = [k for k, row in enumerate(rows, 2) if not row["name"].strip()]
    if unnamed:
        raise DataError(f"{root / 'classes.csv'}, line {unnamed[0]}: the class has no name")
    index = {row["wnid"]: k for k, row in enumerate(rows)}
    if not rows or len(index) != len(rows):
        raise DataError(f"{root / 'classes.csv'}: there must be rows, each with a wnid of its own")
    boxes: dict[str, tuple[Box, ...]] = {}
    if (root / "boxes.csv").is_file():
        for line, row in enumerate(read_table(root / "boxes.csv", ("file", "x_min", "y_min", "x_max", "y_max")), 2):
            try:
                left, top, right, bottom = _corners([row[c] for c in ("x_min", "y_min", "x_max", "y_max")])
            except ValueError as error:
                raise DataError(f"{root / 'boxes.csv'}, line {line}: {error}") from error
            boxes[row["file"]] = (Box(left, top, right + 1, bottom + 1),)
    folder, archive = root / split, root / f"{split}.tar"
    members: Sequence[tuple[str, Path, tuple[int, int] | None]]
    if folder.is_dir():
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        members = [(str(p.relative_to(root)), p, None) for p in files]
    elif archive.is_file():
        try:
            with archive.open("rb") as file, tarfile.open(fileobj=file) as tar:
                inside = [m for m in tar.getmembers() if m.isfile() and Path(m.name).suffix.lower() in IMAGE_SUFFIXES]
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{archive} is not a readable tar file ({error})") from error
        members = sorted((m.name, archive, (m.offset_data, m.size)) for m in inside)
    else:
        raise DataError(f"{root}: found classes.csv, but neither {split}/ nor {split}.tar")
    unknown = next((name for name, *_ in members if Path(name).parent.name not in index), None)
    if unknown is not None:
        raise DataError(f"{root}: image {unknown} does not lie in a folder that classes.csv lists")
    images = tuple(
        LabelledImage(name, index[Path(name).parent.name], source, span, boxes.get(Path(name).name, ()))
        for name, source, span in members
    )
    return LabelledImages("tiny20", images, tuple(row["name"] for row in rows), tuple(index))


def _cub(root: Path, split: str) -> LabelledImages:
    needed = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "bounding_boxes.txt")
    absent = [name for name in needed if not (root / name).is_file()]
    if absent:
        raise DataError(f"{root}: CUB-200-2011 is incomplete, {', '.join(absent)} missing")
    lists: dict[str, Mapping[str, str]] = {}
    for name in needed:
        pairs = [line.split(maxsplit=1) for line in read_lines(root / name)]
        if any(len(pair) != 2 for pair in pairs):
            raise DataError(f"{root / name}: every line needs a number and a value")
        lists[name] = {pair[0]: pair[1] for pair in pairs}
    names, labels, splits, classes, boxes = (lists[name] for name in needed)
    if not names.keys() == labels.keys() == splits.keys() == boxes.keys():
        raise DataError(f"{root}: the lists of CUB-200-2011 name different images")
    order = {key: k for k, key in enumerate(classes)}
    wanted = "1" if split == "train" else "0"
    images, missing = [], 0
    for key, name in names.items():
        if splits[key] != wanted:
            continue
        if labels[key] not in order or classes[labels[key]] != Path(name).parts[0]:
            raise DataError(f"{root}: {name} has label {labels[key]}, which is not its folder's class in classes.txt")
        path = root / "images" / name
        missing += not is_file(path)
        try:
            left, top, width, height = _corners(boxes[key].split())
        except ValueError as error:
            raise DataError(f"{root / 'bounding_boxes.txt'}: no box of four numbers for {name} ({error})") from error
        box = Box(left, top, left + width, top + height)
        images.append(LabelledImage(name, order[labels[key]], path, boxes=(box,)))
    if missing:
        raise DataError(f"{root}: {missing} of {len(images)} images of split {split!r} are missing from images/")
    return LabelledImages("cub-200-2011", tuple(images), tuple(classes.values()))
