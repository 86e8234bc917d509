"""Which of a network's classes each class of a data set is, by name or by WordNet number, never by position alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from headwater.data.labelled import IMAGE_SUFFIXES, LabelledPicture, LabelledPictures
from headwater.data.texts import read_table
from headwater.errors import DataError

_WNID = re.compile(r"n\d{8}")


def match_classes(
    names: Sequence[str], classes: Sequence[str] | None, wnids: Sequence[str] | None, network: str
) -> tuple[int, ...]:
    """The network's index of each class of a data set.

    Names are compared without case, punctuation, leading numbers (``001.``) and leading WordNet numbers
    (``n02123045_tabby`` is ``tabby``); WordNet numbers are compared with the network's.

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
    if classes is None and wnids is None:
        raise DataError(
            f"the classes of {network} have no names, so those of the data ({_some(names)}) cannot be matched with "
            f"them; {_WAYS_OUT}"
        )
    by_number = _index(wnids or ())
    by_name = _index([_plain(name) for name in classes or ()])
    found, missing = list[int](), list[str]()
    for name in names:
        number = _WNID.match(name)
        places = (by_number.get(number[0]) if number else None) or by_name.get(_plain(name)) or []
        if len(places) > 1:
            raise DataError(f"{network} has {len(places)} classes called {name!r}: {places}; {_WAYS_OUT}")
        missing += [] if places else [name]
        found += places
    if missing:
        near = get_close_matches(_plain(missing[0]), by_name, n=3)
        hint = f"; did you mean {', '.join(repr((classes or ())[by_name[n][0]]) for n in near)}?" if near else ""
        numbered = wnids is None and _WNID.match(missing[0])
        hint += "; its WordNet numbers are not known: for ImageNet's, pip install 'headwater[timm]'" if numbered else ""
        raise DataError(
            f"{network} does not know {len(missing)} of the data's {len(names)} classes: {_some(missing)}{hint}; "
            f"{_WAYS_OUT}"
        )
    twice = [name for k, name in enumerate(names) if found.index(found[k]) != k]
    if twice:
        raise DataError(f"several classes of the data are one class of {network}: {_some(twice)}")
    return tuple(found)


_WAYS_OUT = (
    "give labels as a CSV file with columns image,label, as 'predicted' (the network's own predictions), or as "
    "'positions' if the data's k-th class is the network's k-th"
)


def listed_images(
    root: Path, file: Path, classes: Sequence[str] | None, wnids: Sequence[str] | None, network: str
) -> LabelledPictures:
    """Images with the labels that a CSV file gives them.

    Args:
        root: folder that the file's paths are relative to.
        file: CSV with columns ``image`` and ``label``; a label is a class's index, name or WordNet number.
        classes: names of the network's classes.
        wnids: their WordNet numbers.
        network: what the network is called, for errors.

    Raises:
        DataError: the file cannot be read, an image is not there, or a label is no class of the network.
    """
    rows = read_table(file, ("image", "label"))
    if not rows:
        raise DataError(f"{file} lists no images")
    words = list(dict.fromkeys(row["label"].strip() for row in rows))
    named = [word for word in words if not word.isdecimal()]
    index = dict(zip(named, match_classes(named, classes, wnids, network) if named else (), strict=True))
    count = len(classes or wnids or ())
    images = []
    for row in rows:
        word, path = row["label"].strip(), root / row["image"].strip()
        label = int(word) if word.isdecimal() else index[word]
        if count and label >= count:
            raise DataError(f"{file}: {row['image']} has label {label}; {network} has classes 0 to {count - 1}")
        if not path.is_file():
            raise DataError(f"{file}: {path} does not exist")
        images.append(LabelledPicture(row["image"].strip(), label, path))
    names = [image.name for image in images]
    if len(set(names)) != len(names):
        raise DataError(f"{file} lists {next(n for n in names if names.count(n) > 1)} more than once")
    return LabelledPictures("listed", tuple(images))


def found_images(root: Path) -> LabelledPictures:
    """Every image below a folder, without labels (-1).

    Raises:
        DataError: there is none.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"{root} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return LabelledPictures("images", tuple(LabelledPicture(str(p.relative_to(root)), -1, p) for p in paths))


def with_labels_of(data: LabelledPictures, indices: Sequence[int]) -> LabelledPictures:
    """The same images, their labels changed from the data's classes to ``indices`` of the network's."""
    return LabelledPictures(data.layout, tuple(replace(p, label=indices[p.label]) for p in data.pictures))


def _plain(name: str) -> str:
    """Lower-case letters and digits alone, without a leading number or WordNet number and a separator."""
    name = re.sub(r"^(n\d{8}|\d+)[._ -]+", "", name)
    return re.sub(r"[^\w]|_", "", name.casefold())


def _index(names: Sequence[str]) -> dict[str, list[int]]:
    index: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        index.setdefault(name, []).append(place)
    return index


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
