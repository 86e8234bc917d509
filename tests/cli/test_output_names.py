"""Nothing is lost: every result of ``explain`` has files of its own, and one that fails does not stop the others."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from command import headwater
from helpers import EXAMPLES, TinyResidual, fill_disk, settle
from PIL import Image

import headwater as hw
from headwater.errors import InputError, OutputError
from headwater.files import check_folder, concerns_all, safe_name, write_record
from headwater.models import weights_digest

PREPARE = hw.Preprocessing(40, 32)


@pytest.fixture
def photo() -> Callable[[Path], Path]:
    """Makes image files, each of another colour."""
    shades = count(20, 20)

    def made(path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (next(shades), 90, 60)).save(path)
        return path

    return made


def results(out: Path) -> dict[str, str]:
    """The image of each result by its name; every result has its four files and there are no others."""
    stems = {p.name.removesuffix(".json"): json.loads(p.read_text())["image"] for p in out.glob("*.json")}
    for stem in stems:
        assert all((out / f"{stem}{ending}").is_file() for ending in (".overlay.png", ".figure.png", ".npy"))
    assert len(list(out.iterdir())) == 4 * len(stems)
    return stems


def test_images_of_one_name_have_files_of_their_own(tmp_path, photo):
    """What an image's number would make of its name may be another image's name."""
    images = [photo(tmp_path / name) for name in ("n1/x.png", "n2/x.bmp", "n1/x-2.png")]
    out = tmp_path / "out"
    for _ in range(2):  # made again, each replaces its own
        done = headwater("explain", *map(str, images), "--model", "tiny20", "--target", "tabby", "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert results(out) == {
            "x.tiny20.headwater.tabby": str(images[0]),
            "x.tiny20.headwater.tabby-2": str(images[1]),
            "x-2.tiny20.headwater.tabby": str(images[2]),
        }


def test_models_methods_targets_and_quantizations_do_not_overwrite_each_other(tmp_path, tiny, photo):
    image, out = photo(tmp_path / "x.png"), tmp_path / "out"
    for method, target, quantize in (
        ("otsuki2024", 0, None),
        ("otsuki2024", 1, None),
        ("otsuki2024", 0, 4),
        ("otsuki2024-i", 0, None),
    ):
        hw.explain(image, tiny, method, target, quantize, PREPARE).save(out)
    hw.explain(image, "tiny20", target="tabby").save(out)
    assert set(results(out)) == {
        "x.TinyResidual.otsuki2024.class-0",
        "x.TinyResidual.otsuki2024.class-1",
        "x.TinyResidual.otsuki2024+hq4.class-0",
        "x.TinyResidual.otsuki2024-i.class-0",
        "x.tiny20.headwater.tabby",
    }


def test_the_same_model_name_with_other_weights_is_another_result(tmp_path, tiny, photo):
    image, out = photo(tmp_path / "x.png"), tmp_path / "out"
    for weights in ("a", "b", "a"):
        tiny.card = hw.ModelCard("net", weights, PREPARE)
        hw.explain(image, tiny, target=0).save(out)
    assert set(results(out)) == {"x.net.headwater.class-0", "x.net.headwater.class-0-2"}


def test_files_of_unknown_origin_are_left_alone(tmp_path, tiny, photo):
    out = tmp_path / "out"
    out.mkdir()
    foreign = {"x.TinyResidual.headwater.class-0.npy": "mine", "x.TinyResidual.headwater.class-0-2.json": "[1]"}
    for name, content in foreign.items():
        (out / name).write_text(content)
    written = hw.explain(photo(tmp_path / "x.png"), tiny, target=0, preprocessing=PREPARE).save(out)
    assert {p.name.split(".")[3] for p in written} == {"class-0-3"}
    assert {name: (out / name).read_text() for name in foreign} == foreign


def test_a_name_that_is_given_is_taken_and_numbered_too(tmp_path, tiny, photo):
    out = tmp_path / "out"
    for name in ("a.png", "b.png", "a.png"):
        hw.explain(photo(tmp_path / name), tiny, target=0, preprocessing=PREPARE).save(out, stem="mine")
    assert set(results(out)) == {"mine", "mine-2"}
    e = hw.explain(tmp_path / "a.png", tiny, target=0, preprocessing=PREPARE)
    for bad in ("", "a/b", "..", "a/"):
        with pytest.raises(InputError, match="without a folder"):
            e.save(out, stem=bad)


def test_long_and_odd_names_are_written(tmp_path, photo):
    names = ["y" * 240 + "1.png", "y" * 240 + "2.png", "画" * 80 + ".png", ".hidden.png", "-a b;$(c)'?*.png", "ok.png"]
    images, out = [photo(tmp_path / name) for name in names], tmp_path / "out"
    done = headwater("explain", "--model", "tiny20", "--out", str(out), "--", *map(str, images))
    assert done.returncode == 0, done.stderr
    stems = results(out)
    assert sorted(stems.values()) == sorted(map(str, images))
    assert all(len(stem.encode()) < 200 and stem[0] not in "-." for stem in stems)


def test_one_that_cannot_be_saved_does_not_stop_the_others(tmp_path, photo, monkeypatch):
    """A file system may refuse a name for reasons of its own."""
    from typer.testing import CliRunner

    from headwater.cli.app import app

    def refusing(path: Path, mode: str = "r", *args, **options):
        if path.name.startswith("bad") and "x" in mode:  # a result, not the image
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, mode, *args, **options)

    def refusing_links(path: Path, target: Path):
        refusing(path, "x") if path.name.startswith("bad") else linked(path, target)

    opened, linked = Path.open, Path.hardlink_to
    monkeypatch.setattr(Path, "open", refusing)
    monkeypatch.setattr(Path, "hardlink_to", refusing_links)
    images, out = [photo(tmp_path / name) for name in ("a.png", "bad.png", "c.png")], tmp_path / "out"
    done = CliRunner().invoke(app, ["explain", *map(str, images), "--model", "tiny20", "--out", str(out)])
    assert done.exit_code == 1
    assert {Path(image).name for image in results(out).values()} == {"a.png", "c.png"}
    lines = done.stderr.splitlines()
    assert "bad.png: cannot write" in lines[0] and "Invalid argument" in lines[0]
    assert lines[-1].endswith(f"1 of 3 images could not be explained or saved; the others are in {out}")


def test_a_folder_that_cannot_be_written_is_said_once_and_before_any_work(tmp_path, photo):
    images = [str(photo(tmp_path / name)) for name in ("a.png", "b.png")]
    done = headwater("explain", *images, "--model", "tiny20", "--out", str(tmp_path / "a.png" / "out"))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("cannot write") == 1
    with pytest.raises(OutputError, match="it is a file"):
        check_folder(tmp_path / "a.png")


def test_no_image_explained_says_so_without_others(tmp_path):
    done = headwater("explain", "none.jpg", "--model", "tiny20", "--out", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("1 of 1 images could not be explained or saved")


def test_the_flows_of_two_runs_have_files_of_their_own(tmp_path):
    for image in ("tabby", "espresso"):
        done = headwater(
            *("explain", str(EXAMPLES / f"{image}.jpg"), "--model", "tiny20", "--flow", "--out", str(tmp_path))
        )
        assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.glob("flow.*")} == {
        f"flow.tiny20.headwater.predicted{number}{ending}" for number in ("", "-2") for ending in (".png", ".json")
    }


def test_a_record_tells_what_a_result_was_made_from(tmp_path, tiny, photo):
    image = photo(tmp_path / "x.png")
    written = hw.explain(image, tiny, target=3, preprocessing=PREPARE).save(tmp_path / "out")
    record = json.loads(written[-1].read_text())
    assert record["made_from"] == {
        "image": str(image),
        "model": "TinyResidual",
        "weights": "given",
        "weights_digest": weights_digest(tiny),
        "method": "headwater",
        "target": 3,
        "against": None,
        "quantized_levels": None,
    }
    raw = np.load(next(p for p in written if p.suffix == ".npy"))
    assert raw.sum(dtype=np.float64) == pytest.approx(record["conservation"]["input"], rel=1e-5)


def test_two_networks_of_one_class_do_not_overwrite_each_other(tmp_path, tiny, photo):
    image, other = photo(tmp_path / "x.png"), settle(TinyResidual(), seed=1)
    first = hw.explain(image, tiny, target=3, preprocessing=PREPARE).save(tmp_path / "out")
    second = hw.explain(image, other, target=3, preprocessing=PREPARE).save(tmp_path / "out")
    again = hw.explain(image, tiny, target=3, preprocessing=PREPARE).save(tmp_path / "out")
    assert not set(first) & set(second)
    assert again == first


@pytest.mark.parametrize("text", ["", "...", "x" * 500, "ü" * 500, 'a/b\\c:d*e?f"g<h>i|j\0k\n', "-rf", "timm:a/b.c"])
def test_safe_names(text):
    name = safe_name(text)
    assert 0 < len(name.encode()) <= 60
    assert name[0] not in "-." and not set(name) & set('/\\:*?"<>|\0\n ')
    assert safe_name(name) == name


def test_long_names_with_one_beginning_stay_different():
    assert safe_name("x" * 100 + "1") != safe_name("x" * 100 + "2")


def test_a_full_disk_leaves_no_half_record(tmp_path, monkeypatch):
    fill_disk(monkeypatch)
    with pytest.raises(OutputError, match="No space left") as refused:
        write_record(tmp_path, "x", {"made_from": 1}, "made_from")
    assert concerns_all(refused.value), "the others need not be tried"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_a_record_takes_its_name_whole(tmp_path, monkeypatch, links):
    def link(path, target):
        assert json.loads(target.read_text()) and not path.exists(), "written before it gets its name"
        if not links:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        linked(path, target)

    linked = Path.hardlink_to
    monkeypatch.setattr(Path, "hardlink_to", link)
    names = [write_record(tmp_path, "x", {"made_from": k, "more": "y" * 9999}, "made_from") for k in (1, 2, 1)]
    assert names == ["x", "x-2", "x"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-2.json", "x.json"], "no temporary file is left"
    assert [len(json.loads((tmp_path / f"{name}.json").read_text())["more"]) for name in names] == [9999] * 3


def test_without_hard_links_a_name_is_given_back_if_the_record_cannot_be_put_there(tmp_path, monkeypatch):
    def refused(*_: Path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "hardlink_to", refused)
    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OutputError, match=os.strerror(errno.EIO)):
        write_record(tmp_path, "x", {"made_from": 1}, "made_from")
    assert not list(tmp_path.iterdir())


def test_threads_that_want_one_name_get_two(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda k: write_record(tmp_path, "x", {"made_from": k}, "made_from"), range(16)))
    assert len(set(names)) == 16
    assert sorted(json.loads(path.read_text())["made_from"] for path in tmp_path.iterdir()) == list(range(16))
