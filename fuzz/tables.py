"""Tables: lists of data sets, labels, annotations, and run folders that are damaged before the run is resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from fuzz.case import Draw, must
from fuzz.damage import WORDS, damaged, damaged_text
from fuzz.subjects import CLASSES, kept_residual, photo, write
from headwater.data.labelled import LabelledImages, load_labelled
from headwater.evaluation import Settings, evaluate
from headwater.report.tables import SummaryTable

Files = dict[str, str]
_SETTINGS = Settings(("random", "gradient-x-input"), samples=6, step=60, batch_size=2)


def tables(draw: Draw) -> None:
    """Load a data set, read labels, or resume a run, with one of its files damaged or not."""
    draw.one((_data_set, _data_set, _data_set, _labels, _resume, _resume))(draw)


def _data_set(draw: Draw) -> None:
    """A data set in one of the known layouts, one of its lists damaged or not."""
    layout = draw.one(tuple(_LAYOUTS))
    files, images, labels = _LAYOUTS[layout]()
    draw.note(layout)
    hurt = draw.chance(0.85)
    if hurt and files:
        name = draw.one(tuple(files))
        draw.note(name)
        if draw.chance(0.06):
            draw.note("missing")
            content = None
        elif draw.chance(0.04):
            draw.note("a folder")
            content = None
            (draw.folder / name).mkdir(parents=True)
        else:
            content = damaged_text(draw, files[name])
        del files[name]
        if content is not None:
            write(draw.folder / name, content)
    for name, text in files.items():
        write(draw.folder / name, text)
    for name in images:
        write(draw.folder / name, photo(0, (4, 4)))
    split = draw.one(("val", "val", "val", "train", *WORDS[:6], "..", "\0")) if hurt else "val"
    found = load_labelled(draw.folder, split)
    _check_data(found)
    if not hurt:
        must(found.layout == layout, f"taken as {found.layout}")
        got = {Path(p.name).name: p.label for p in found.images}
        must(got == labels, f"labels are {got}, not {labels}")
    count = draw.one((1, 2, 3, 1000, 0, -1))
    draw.note(f"sample of {count}")
    chosen = found.sample(count, draw.one((0, 42, 2**31)))
    must(len(chosen) == count, f"{len(chosen)} images of {count}")


def _check_data(found: LabelledImages) -> None:
    names = [p.name for p in found.images]
    must(len(set(names)) == len(names), "two images have the same name")
    classes = len(found.classes) if found.classes is not None else 1000
    for image in found.images:
        must(0 <= image.label < classes, f"{image.name} has label {image.label} of {classes} classes")
        for box in image.boxes:
            edges = (box.left, box.top, box.right, box.bottom)
            must(all(abs(e) < 1e9 for e in edges), f"{image.name} has a box {edges}")
    if found.classes is not None:
        must(all(isinstance(c, str) and c for c in found.classes), f"classes are called {found.classes}")


def _tiny20() -> tuple[Files, list[str], dict[str, int]]:
    wnids = ("n01443537", "n01882714", "n01910747")
    rows = ["index,wnid,name,imagenet_name", *(f"{k},{w},{CLASSES[k]},{CLASSES[k]}" for k, w in enumerate(wnids))]
    images = [f"val/{w}/val_{k}.png" for k, w in enumerate(wnids)]
    boxes = ["file,wnid,x_min,y_min,x_max,y_max", *(f"{Path(i).name},{Path(i).parts[1]},0,1,2,3" for i in images)]
    labels = {Path(i).name: k for k, i in enumerate(images)}
    return {"classes.csv": "\n".join(rows), "boxes.csv": "\n".join(boxes)}, images, labels


def _cub() -> tuple[Files, list[str], dict[str, int]]:
    names = [f"{k:03d}.Bird_{k}/Bird_{k}_{n}.png" for k in (1, 2, 3) for n in (1, 2)]
    files = {
        "images.txt": [f"{i} {name}" for i, name in enumerate(names, 1)],
        "image_class_labels.txt": [f"{i} {(i + 1) // 2}" for i in range(1, 7)],
        "train_test_split.txt": [f"{i} {i % 2}" for i in range(1, 7)],
        "classes.txt": [f"{k} {k:03d}.Bird_{k}" for k in (1, 2, 3)],
        "bounding_boxes.txt": [f"{i} 0.0 1.0 2.0 3.0" for i in range(1, 7)],
    }
    labels = {Path(name).name: k // 2 for k, name in enumerate(names) if k % 2}
    return {name: "\n".join(lines) for name, lines in files.items()}, [f"images/{n}" for n in names], labels


def _imagenet() -> tuple[Files, list[str], dict[str, int]]:
    files = {
        "ILSVRC2012_validation_ground_truth.txt": "2\n1\n3",
        "synsets.txt": "n03000000 c\nn01000000 a\nn02000000 b",
        "Annotations/ILSVRC2012_val_00000001.xml": _BOX,
    }
    images = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in (1, 2, 3)]
    return files, images, dict(zip(images, (0, 2, 1), strict=True))


_BOX = """<annotation><object><bndbox>
<xmin>1</xmin>
<ymin>1</ymin>
<xmax>3</xmax>
<ymax>3</ymax>
</bndbox></object></annotation>"""


def _flat() -> tuple[Files, list[str], dict[str, int]]:
    images = [f"n0{k}000000_name.png" for k in (1, 2, 3)]
    return {"n01000000_name.xml": _BOX}, images, {name: k for k, name in enumerate(images)}


def _folders() -> tuple[Files, list[str], dict[str, int]]:
    images = [f"{name}/{name}.png" for name in sorted(CLASSES)]
    return {f"{images[0].removesuffix('.png')}.xml": _BOX}, images, {Path(n).name: k for k, n in enumerate(images)}


_LAYOUTS: dict[str, Callable[[], tuple[Files, list[str], dict[str, int]]]] = {
    "tiny20": _tiny20,
    "cub-200-2011": _cub,
    "imagenet-flat": _imagenet,
    "flat": _flat,
    "folders": _folders,
}


def _labels(draw: Draw) -> None:
    """Images with a table of labels, by index or by name, damaged or not."""
    words = {f"{k}.png": draw.one((str(k % 4), CLASSES[k % 4], CLASSES[k % 4].upper())) for k in range(3)}
    for k, name in enumerate(words):
        write(draw.folder / "data" / name, photo(k))
    text = "\n".join(("image,label", *(f"{name},{word}" for name, word in words.items())))
    hurt = draw.chance(0.8)
    file = write(draw.folder / "labels.csv", damaged_text(draw, text) if hurt else text)
    labels = draw.one(("predicted", *WORDS[:30])) if draw.chance(0.1) else str(file)
    settings = Settings(("random",), samples=3, step=100, batch_size=2, labels=labels)
    table = evaluate(kept_residual(), draw.folder / "data", settings, draw.folder / "out")
    if labels == str(file):
        must(table["label"].between(0, 3).all(), f"labels are {table['label'].tolist()}")
        if not hurt:
            got = dict(zip(table["image"], table["label"], strict=True))
            must(got == {name: int(name[0]) for name in words}, f"labels are {got}")
    must(table["error"].isna().all(), f"errors: {table['error'].tolist()}")


def _resume(draw: Draw) -> None:
    """A finished run with damaged files is started again: it must give the same table or an error."""
    data, run = _finished(draw.folder.parent / "kept")
    out = draw.folder / "out"
    shutil.copytree(run, out)
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    for name in dict.fromkeys(draw.one(names) for _ in range(draw.whole(1, 2))):
        draw.note(name)
        path = out / name
        way = draw.one(("bytes", "bytes", "bytes", "json", "other rows", "gone", "folder"))
        if way == "gone":
            path.unlink()
            draw.note("gone")
        elif way == "folder":
            path.unlink()
            path.mkdir()
            draw.note("a folder")
        elif way == "json" and path.suffix == ".json":
            path.write_bytes(_other_json(draw, json.loads(path.read_text())))
        elif way == "other rows" and path.suffix == ".parquet":
            _other_rows(draw, path)
        else:
            path.write_bytes(damaged(draw, path.read_bytes()))
    if draw.chance(0.15):
        name = "lion/1.png"
        draw.note(f"and {name} is another image")
        data = shutil.copytree(data, draw.folder / "data")
        write(data / name, photo(99))
        run = draw.folder / "fresh"
        evaluate(kept_residual(), data, _SETTINGS, run)
    table = evaluate(kept_residual(), data, _SETTINGS, out)
    _check_table(table, pd.read_parquet(run / "results.parquet"))
    must((out / "results.parquet").read_bytes() == (run / "results.parquet").read_bytes(), "results.parquet differs")
    must((out / "curves.json").read_text() == (run / "curves.json").read_text(), "curves.json differs")
    SummaryTable.of(table, ["random"]).markdown()
    draw.maps += len(table)


def _check_table(table: pd.DataFrame, fresh: pd.DataFrame) -> None:
    try:
        pd.testing.assert_frame_equal(table, fresh, check_exact=True)
    except AssertionError as error:
        must(False, f"another table than a fresh run's: {' '.join(str(error).split())[:300]}")


def _other_json(draw: Draw, value: dict[str, Any]) -> bytes:
    way = draw.one(("[]", "null", "3", "{}", "key", "key", "key"))
    draw.note(f"json {way}")
    if way != "key":
        return way.encode()
    key = draw.one((*value, "unknown"))
    value[key] = draw.one((None, [], {}, 1, 1.5, "x", *WORDS[:8]))
    draw.note(f"{key} = {value[key]!r}")
    return json.dumps(value).encode(errors="surrogateescape")


def _other_rows(draw: Draw, path: Path) -> None:
    """Replace a table by a readable one with other rows or columns."""
    table = pd.read_parquet(path)
    way = draw.one(("a column less", "a row less", "no rows", "rows twice", "another type", "another table", "strings"))
    draw.note(f"table: {way}")
    if way == "a column less":
        table = table.drop(columns=draw.one(list(table.columns)))
    elif way == "a row less":
        table = table.iloc[1:]
    elif way == "no rows":
        table = table.iloc[:0]
    elif way == "rows twice":
        table = pd.concat([table, table])
    elif way == "another type":
        table["label"] = table["label"].astype(float) + 0.5
    elif way == "another table":
        table = pd.DataFrame({"a": [1, 2]})
    else:
        table = pd.DataFrame({column: ["x"] * len(table) for column in table})
    table.to_parquet(path, index=False)


@lru_cache(maxsize=1)
def _finished(folder: Path) -> tuple[Path, Path]:
    """Data and run folder of a finished evaluation, made once per process."""
    for k, name in enumerate(CLASSES):
        for n in range(2):
            write(folder / "data" / name / f"{n}.png", photo(2 * k + n))
    evaluate(kept_residual(), folder / "data", _SETTINGS, folder / "run")
    return folder / "data", folder / "run"
