"""Match the classes of a data set with a network's, by name or WordNet number, never by position alone."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from headwater.data.labelled import IMAGE_SUFFIXES, LabelledImage, LabelledImages, annotated_boxes
from headwater.data.texts import read_table
from headwater.errors import DataError
from headwater.files import is_file

_WNID = re.compile(r"n\d{8}")
_NUMBER = re.compile(r"^(n\d{8}|\d+)[._ -]+")


def match_classes(
    names: Sequence[str], classes: Sequence[str] | None, wnids: Sequence[str] | None, network: str
) -> tuple[int, ...]:
    """The network's index of each class of a data set.

    WordNet numbers decide if the network's are known. Otherwise names do: the same name, or the same without case,
    punctuation, leading numbers (``001.``) and leading WordNet numbers (``n02123045_tabby`` is ``tabby``), or one of
    the synonyms that the network's name lists (``tabby, tabby cat``).

    Args:
        names: of the data's classes: names, WordNet numbers, or both (``n02123045_tabby``).
        classes: names of the network's classes in the order of its logits, where they are known.
        wnids: their WordNet numbers, where they are known.
        network: what the network is called, for errors.

    Raises:
        DataError: a class has no counterpart, or more than one, or two classes have the same; or neither names nor
            numbers of the network's classes are known.

    >>> match_classes(["lion", "Tabby"], ["tabby", "lion"], None, "a network")
    (1, 0)
    """
    found = _places(names, classes, wnids, network)
    twice = [name for k, name in enumerate(names) if found.index(found[k]) != k]
    if twice:
        raise DataError(
            f"several classes of the data are one class of {network}: {_some(twice)}; if that is meant, give labels as "
            "a CSV file with columns folder,label"
        )
    return found


def _places(
    names: Sequence[str], classes: Sequence[str] | None, wnids: Sequence[str] | None, network: str
) -> tuple[int, ...]:
    """As :func:`match_classes`, but several names may be one class."""
    if classes is None and wnids is None:
        raise DataError(
            f"the classes of {network} have no names, so those of the data ({_some(names)}) cannot be matched with "
            f"them; {_WAYS_OUT}"
        )
    if classes is not None and tuple(names) == tuple(classes):
        return tuple(range(len(names)))
    if wnids is None and classes is not None and all(_WNID.fullmatch(name) for name in classes):
        wnids = classes
    by_number, exactly = _index(wnids or ()), _index(classes or ())
    by_name = _index([_plain(name) for name in classes or ()])
    by_synonym = _synonyms(classes or ())
    found, missing = list[int](), list[str]()
    for name in names:
        number = _WNID.match(name)
        if number and by_number:  # another synset may have the same name: ImageNet has two kinds of crane
            places = by_number.get(number[0], [])
        else:
            places = exactly.get(name) or exactly.get(_NUMBER.sub("", name)) or by_name.get(_plain(name)) or []
            places = places or by_synonym.get(_plain(name), [])
        if len(places) > 1:
            raise DataError(f"{network} has {len(places)} classes called {name!r}: {places}; {_WAYS_OUT}")
        missing += [] if places else [name]
        found += places
    if missing:
        near = get_close_matches(_plain(missing[0]), by_name, n=3)
        hint = f"; did you mean {', '.join(repr((classes or ())[by_name[n][0]]) for n in near)}?" if near else ""
        numbered = not by_number and _WNID.match(missing[0])
        hint += "; its WordNet numbers are not known: for ImageNet's, pip install 'headwater[timm]'" if numbered else ""
        raise DataError(
            f"{network} does not know {len(missing)} of the data's {len(names)} classes: {_some(missing)}{hint}; "
            f"{_WAYS_OUT}"
        )
    return tuple(found)


_WAYS_OUT = (
    "give labels as a CSV file with columns image,label or folder,label, as 'predicted' (the network's own "
    "predictions), or as 'positions' if the data's k-th class is the network's k-th"
)


def label_indices(
    words: Sequence[str],
    classes: Sequence[str] | None,
    wnids: Sequence[str] | None,
    count: int | None,
    network: str,
) -> dict[str, int]:
    """The network's index of each label in a table: the name of a class, its WordNet number or its index.

    Args:
        words: the labels; several may be one class.
        classes: names of the network's classes, where they are known. A name of digits alone counts as a name.
        wnids: their WordNet numbers, where they are known.
        count: how many classes the network has, where that is known.
        network: what the network is called, for errors.

    Raises:
        DataError: a label is no class of the network.
    """
    numbers = [word for word in dict.fromkeys(words) if word.isdecimal() and word not in (classes or ())]
    named = [word for word in dict.fromkeys(words) if word not in numbers]
    outside = [number for number in numbers if count is not None and int(number) >= count]
    if outside:
        raise DataError(f"label {outside[0]} is out of range; {network} has classes 0 to {(count or 0) - 1}")
    places = _places(named, classes, wnids, network) if named else ()
    return {number: int(number) for number in numbers} | dict(zip(named, places, strict=True))


def listed_images(
    found: LabelledImages, root: Path | None, file: Path, indices_of: Callable[[Sequence[str]], dict[str, int]]
) -> LabelledImages:
    """The images that a CSV file lists, with the labels that it gives them.

    Args:
        found: the images of the data set.
        root: folder that the file's paths are relative to; ``None`` if they must be names in ``found``.
        file: CSV with columns ``image`` and ``label``.
        indices_of: the network's indices of labels, see :func:`label_indices`.

    Raises:
        DataError: the file cannot be read, an image is not there, or a label is no class of the network.
    """
    rows = read_table(file, ("image", "label"))
    if not rows:
        raise DataError(f"{file} lists no images")
    try:
        indices = indices_of([row["label"].strip() for row in rows])
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    known = {image.name: image for image in found.images}
    images = dict[str, LabelledImage]()
    for row in rows:
        name, label = posixpath.normpath(row["image"].strip()), indices[row["label"].strip()]
        image = known.get(name)
        if image is None and root is not None and is_file(root / name):
            image = LabelledImage(name, label, root / name)
        if image is None:
            where = f"{root / name} does not exist" if root is not None else f"there is no image {name!r}"
            raise DataError(f"{file}: {where}")
        if name in images:
            raise DataError(f"{file} lists {name} more than once")
        images[name] = replace(image, label=label)
    return LabelledImages(found.layout, tuple(images.values()))


def mapped_folders(
    found: LabelledImages, file: Path, indices_of: Callable[[Sequence[str]], dict[str, int]]
) -> LabelledImages:
    """The images with the labels that a CSV file gives to their folders; other folders are matched by name.

    Args:
        found: the data set, with names of its classes.
        file: CSV with columns ``folder`` and ``label``; a folder may also be a class's name or WordNet number.
        indices_of: the network's indices of labels, see :func:`label_indices`.

    Raises:
        DataError: the file cannot be read, names a folder that is not there, or a label is no class of the network.
    """
    rows = read_table(file, ("folder", "label"))
    given = {row["folder"].strip(): row["label"].strip() for row in rows}
    if len(given) != len(rows):
        raise DataError(f"{file} lists a folder more than once")
    names, left, words = found.classes or (), dict(given), list[str]()
    for name, wnid, full in zip(names, found.wnids or names, found.names() or (), strict=True):
        keys = [key for key in (name, wnid) if key in left]
        words.append(left.pop(keys[0]) if keys else full)
    if left:
        raise DataError(f"{file}: the data have no folder {_some(list(left))}; they have {_some(names)}")
    try:
        indices = indices_of(words)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    return with_labels_of(found, [indices[word] for word in words])


def found_images(root: Path) -> LabelledImages:
    """Every image below a folder or address, without labels (-1), with boxes where there are annotations.

    Raises:
        DataError: there is none.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"{root} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    boxes_of = annotated_boxes(root)
    images = (LabelledImage(p.relative_to(root).as_posix(), -1, p, boxes=boxes_of(p)) for p in paths)
    return LabelledImages("images", tuple(images))


def with_labels_of(data: LabelledImages, indices: Sequence[int] | Mapping[int, int]) -> LabelledImages:
    """The same images, their labels changed from the data's classes to ``indices`` of the network's."""
    return LabelledImages(data.layout, tuple(replace(p, label=indices[p.label]) for p in data.images))


def _plain(name: str) -> str:
    """Lower-case letters and digits alone, without a leading number or WordNet number and a separator."""
    return re.sub(r"[^\w]|_", "", _NUMBER.sub("", name).casefold())


def _index(names: Sequence[str]) -> dict[str, list[int]]:
    index: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        index.setdefault(name, []).append(place)
    return index


def _synonyms(names: Sequence[str]) -> dict[str, list[int]]:
    """Where each of the synonyms is that the names list, separated by commas."""
    index: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        for synonym in dict.fromkeys(_plain(part) for part in name.split(", ")):
            index.setdefault(synonym, []).append(place)
    return index


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
