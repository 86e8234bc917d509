"""The page of an evaluation: what is on it, that it stands alone, and what cannot be made into one."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import dataclass, replace

import html5lib
import numpy as np
import pytest
import torch
from command import headwater
from helpers import TinyResidual, settle
from PIL import Image

import headwater as hw
from headwater.errors import DataError
from headwater.evaluation import Settings, evaluate
from headwater.evaluation.thumbnails import small_map, small_photo
from headwater.report.page import evaluation_page, write_report
from headwater.report.run_folder import RunFolder

pd = pytest.importorskip("pandas")
METHODS = ("otsuki2024", "otsuki2024+hq", "random")
CORNERS = "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
BOX = f"<annotation><object><bndbox>{CORNERS}</bndbox></object></annotation>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run on nine images, one of them unreadable, with boxes around four."""
    root = tmp_path_factory.mktemp("report")
    for k in range(9):
        path = root / "data" / f"class{k % 3}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(k).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
        if k < 4:
            path.with_suffix(".xml").write_text(BOX)
    (root / "data" / "class2" / "8.png").write_bytes(b"nothing")
    torch.manual_seed(0)
    model = settle(TinyResidual(classes=3))
    model.card = hw.ModelCard("<tiny>", "random", hw.Preprocessing(20, 20), ("class0", "class1", "class2"))
    settings = Settings(METHODS, 9, step=50, batch_size=4)
    evaluate(model, root / "data", settings, root / "run", command="headwater evaluate --data 'my data'")
    return root / "run"


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_the_page_is_valid_and_stands_alone(folder):
    page = write_report(folder)
    text = page.read_text(encoding="utf-8")
    assert page == folder / "report.html"
    document = html5lib.HTMLParser(strict=True).parse(text)
    space = "{http://www.w3.org/1999/xhtml}"
    images = list(document.iter(f"{space}img"))
    assert images and all(image.get("alt") for image in images)
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert links and all(link.startswith(("data:", "#")) for link in links), "nothing is requested"
    assert "url(" not in text and "@import" not in text and "<script" not in text and "<tiny>" not in text
    assert all("aria-label" in svg or "aria-hidden" in svg for svg in re.findall(r"<svg[^>]*>", text))
    targets = {element.get("id") for element in document.iter() if element.get("id")}
    assert {link.removeprefix("#") for link in links if link.startswith("#")} <= targets


def test_its_numbers_are_those_of_the_table(folder):
    text, run = evaluation_page(RunFolder.read(folder)), RunFolder.read(folder)
    rows = run.table[run.table["error"].isna()]
    for method in METHODS:
        mine = rows[rows["method"] == method].sort_values(["id_published", "image"], ascending=[False, True])
        assert f"{mine['id_published'].mean():.3f}" in text
        part = text[text.index(f"<h3>{method}: best</h3>") :]
        shown = re.findall(r"<figcaption><strong>([^<]*)</strong>", part[: part.index("<h3>", 4)])
        assert shown == list(mine["image"][:4]), "half of eight images, the best first"
    assert "headwater evaluate --data &#39;my data&#39;" in text
    assert "8.png: " in text and "not an image" in text
    for package in ("torch", "numpy"):
        assert run.about["versions"][package] in text


def test_failures_are_sorted_by_where_the_object_is(folder):
    run = RunFolder.read(folder)
    text = evaluation_page(run, threshold=2.0)  # every ID is at most 1
    line = re.search(r'<tr><th scope="row">otsuki2024</th>(.*?)</tr>', text[text.index('id="failures"') :])[1]
    images, failed, wrong, small, large, elsewhere, unboxed = map(int, re.findall(r">(\d+)<", line))
    assert (images, failed, unboxed) == (8, 8, 4) and small + large + elsewhere == 4
    mine = run.table[(run.table["method"] == "otsuki2024") & run.table["error"].isna()]
    assert wrong == (mine["predicted"] != mine["label"]).sum()
    boxed = mine[mine["mass"].notna()]
    uncovered = boxed[boxed["box_covered"] < 0.5]
    assert large == len(boxed) - len(uncovered)
    assert small == (uncovered["inside_box"] >= 0.5).sum()


def test_a_map_keeps_its_signs_and_its_largest_values():
    heatmap = torch.zeros(112, 112)
    heatmap[:8, :8], heatmap[-8:, -8:] = 2.0, -2.0
    grey = np.asarray(Image.open(io.BytesIO(small_map(heatmap))))
    assert grey.shape == (56, 56)
    assert (grey[0, 0], grey[30, 30], grey[-1, -1]) == (255, 128, 1)
    assert (np.asarray(Image.open(io.BytesIO(small_map(torch.zeros(7, 7))))) == 128).all()
    assert max(Image.open(io.BytesIO(small_photo(Image.new("RGB", (224, 200))))).size) == 144


def test_a_thousand_images_and_many_methods_stay_below_ten_megabytes(folder):
    """Pictures of noise, which compress worst; every image another class."""

    @dataclass(frozen=True)
    class Noise(RunFolder):
        def pictures(self, wanted):
            values = np.random.default_rng(0).integers(0, 256, (144, 144, 3), dtype=np.uint8)
            two = small_photo(Image.fromarray(values)), small_map(torch.rand(56, 56))
            return dict.fromkeys(wanted, two)

    run, methods = RunFolder.read(folder), [f"method-{k}" for k in range(20)]
    row = run.table[run.table["error"].isna()].iloc[:1]
    images = pd.concat([row] * 1000, ignore_index=True).assign(image=[f"n{k}/{k}.jpg" for k in range(1000)])
    images["label"] = range(1000)
    table = pd.concat([images.assign(method=method) for method in methods], ignore_index=True)
    about = {**run.about, "classes": [f"class number {k}" for k in range(1000)], "baselines": []}
    curves = dict.fromkeys(methods, run.curves["random"])
    many = Noise(run.folder, run.settings, about, table, curves, None)
    assert len(evaluation_page(many).encode()) < 10_000_000


def test_the_randomisation_test_is_drawn_where_there_is_one(folder):
    assert "Layers made random" not in evaluation_page(RunFolder.read(folder))
    (folder / "randomisation.csv").write_text(
        "method,layers,layer,image,correlation\nrandom,1,fc,a,0.5\nrandom,2,conv,a,0.25\n"
    )
    assert "Layers made random" in evaluation_page(RunFolder.read(folder))


def spoil(path, content=b"nothing"):
    path.write_bytes(content)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop(path, column):
    pd.read_parquet(path).drop(columns=column).to_parquet(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is not a folder"),
        (lambda f: (f / "settings.json").unlink(), "holds no run of headwater evaluate"),
        (lambda f: spoil(f / "settings.json", b'{"headwater": "0.0.1"}'), "was written by headwater 0.0.1, this is"),
        (lambda f: spoil(f / "settings.json"), "settings.json cannot be read"),
        (lambda f: spoil(f / "settings.json", b"[1]"), "does not hold what headwater evaluate writes"),
        (lambda f: (f / "results.parquet").unlink(), r"is not finished \(3 files of rows, no results.parquet\)"),
        (lambda f: spoil(f / "results.parquet"), "results.parquet cannot be read"),
        (lambda f: (f / "curves.json").unlink(), r"is not finished \(no curves.json\)"),
        (lambda f: (f / "run.json").unlink(), r"is not finished \(no run.json\)"),
        (lambda f: shutil.rmtree(f / "rows"), "rows holds no rows"),
        (lambda f: spoil(f / "rows" / "000001.parquet"), "000001.parquet cannot be read"),
        (lambda f: spoil(f / "run.json", b"{}"), "run.json does not hold what headwater evaluate writes"),
        (lambda f: change(f / "run.json", devices=None), "run.json does not hold"),
        (lambda f: change(f / "run.json", versions=[1]), "run.json does not hold"),
        (lambda f: spoil(f / "curves.json", b"{}"), "curves.json does not hold"),
        (lambda f: change(f / "curves.json", random=[1]), "curves.json does not hold"),
        (lambda f: spoil(f / "randomisation.csv", b""), "randomisation.csv cannot be read"),
        (lambda f: spoil(f / "randomisation.csv", b"a,b\n1,2\n"), "randomisation.csv cannot be read"),
        (lambda f: flip(f / "rows" / "000001.parquet"), "000001.parquet cannot be read"),
        (lambda f: (f / "rows" / "000001.parquet").unlink(), "holds no picture of .*png by"),
        (lambda f: drop(f / "results.parquet", "label_source"), "holds no rows of an evaluation"),
        (lambda f: drop(f / "results.parquet", "mass"), "holds no rows of an evaluation"),
        (lambda f: pd.DataFrame({"image": []}).to_parquet(f / "results.parquet"), "holds no rows of an evaluation"),
    ],
)
def test_folders_without_a_finished_run_are_errors(folder, damage, message):
    damage(folder)
    with pytest.raises(DataError, match=message):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_names_are_text(tmp_path):
    """Of files, classes and the command, as far as a file system takes them."""
    hostile = "<script>alert(1)<|script>"
    for k in range(2):
        path = tmp_path / "data" / hostile / f"<img src=x onerror=alert({k})>.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (99 * k, 0, 0)).save(path)
    model = settle(TinyResidual(classes=2))
    model.card = hw.ModelCard(hostile, hostile, hw.Preprocessing(20, 20), (hostile, "b"))
    evaluate(model, tmp_path / "data", Settings(("random",), 2, step=50), tmp_path / "run", command=hostile)
    text = write_report(tmp_path / "run").read_text()
    assert "<script" not in text and "<img src=x" not in text and "&lt;script&gt;" in text


def test_the_step_that_was_used_is_in_the_page(folder):
    change(folder / "run.json", step=77)
    assert "77</td>" in evaluation_page(RunFolder.read(folder))


def test_on_the_command_line(folder, tmp_path):
    done = headwater("report", str(folder), "--out", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").stat().st_size > 10_000 and str(tmp_path / "page.html") in done.stdout
    done = headwater("report", str(tmp_path))
    assert done.returncode == 1 and "holds no run of headwater evaluate" in done.stderr
    assert json.loads((folder / "run.json").read_text())["baselines"] == ["random"]


def test_without_a_command_the_python_call_is_given(folder):
    run = RunFolder.read(folder)
    text = evaluation_page(replace(run, about={**run.about, "command": ""}))
    assert "headwater.evaluate(model, " in text and "samples=9" in text
