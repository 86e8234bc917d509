"""A run goes on only as the same run: same network, images, labels and version; what is stale is measured again."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from command import headwater
from helpers import TinyResidual, settle
from PIL import Image

import headwater as hw
from headwater.data.labelled import LabelledImage
from headwater.errors import DataError
from headwater.evaluation import Settings, evaluate

pd = pytest.importorskip("pandas")
PREDICTED = Settings(("random",), 4, ("budget",), step=60, batch_size=2, labels="predicted")


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = settle(TinyResidual(classes=4))
    network.card = hw.ModelCard("tiny-residual", "random", hw.Preprocessing(16, 16), ("a", "b", "c", "d"))
    return network


def noise(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def images(tmp_path):
    for k in range(4):
        noise(tmp_path / "images" / f"{k}.png", k)
    return tmp_path / "images"


def test_all_files_replaced_give_another_table_and_a_warning(model, images, tmp_path):
    before = evaluate(model, images, PREDICTED, tmp_path / "out")
    for k in range(4):
        noise(images / f"{k}.png", 100 + k)
    with pytest.warns(UserWarning, match=r"2 of 2 files of rows .* measured again: 2 of images that have changed"):
        after = evaluate(model, images, PREDICTED, tmp_path / "out")
    assert not after["id_budget"].equals(before["id_budget"])
    assert after.equals(evaluate(model, images, PREDICTED, tmp_path / "fresh"))


def test_files_written_again_with_the_same_bytes_are_the_same_images(model, images, tmp_path, recwarn):
    before, seen = evaluate(model, images, PREDICTED, tmp_path / "out"), []
    for path in images.iterdir():
        path.write_bytes(path.read_bytes())
    after = evaluate(model, images, PREDICTED, tmp_path / "out", progress=lambda done, *_: seen.append(done))
    assert seen == [] and after.equals(before) and not recwarn.list


def test_an_image_that_stays_unreadable_is_not_measured_again(model, images, tmp_path):
    (images / "1.png").write_bytes(b"nothing")
    before, seen = evaluate(model, images, PREDICTED, tmp_path / "out"), []
    after = evaluate(model, images, PREDICTED, tmp_path / "out", progress=lambda done, *_: seen.append(done))
    assert seen == [] and after.equals(before) and after["error"].notna().sum() == 1


def test_an_image_that_could_not_be_read_for_a_moment_is_tried_again(model, images, tmp_path, monkeypatch):
    """Its bytes are the same, but now they can be decoded."""
    opened = LabelledImage.open

    def refuse(self):
        if self.name == "1.png":
            raise hw.errors.ImageError(f"{self.name}: the share is away")
        return opened(self)

    with monkeypatch.context() as patch:
        patch.setattr(LabelledImage, "open", refuse)
        assert evaluate(model, images, PREDICTED, tmp_path / "out")["error"].notna().sum() == 1
    with pytest.warns(UserWarning, match="1 of 2 files .* 1 of images that could not be read before and can be now"):
        assert evaluate(model, images, PREDICTED, tmp_path / "out")["error"].isna().all()


def test_another_preprocessing_is_another_run(model, images, tmp_path):
    evaluate(model, images, PREDICTED, tmp_path / "out")
    with pytest.raises(DataError, match=r"preprocessing: .*crop=16.* there, .*crop=20.* asked"):
        evaluate(model, images, PREDICTED, tmp_path / "out", preprocessing=hw.Preprocessing(20, 20))


def test_another_version_is_another_run(model, images, tmp_path, monkeypatch):
    evaluate(model, images, PREDICTED, tmp_path / "out")
    monkeypatch.setattr("headwater.evaluation.run.__version__", "99.0")
    with pytest.raises(DataError, match=rf"headwater: {hw.__version__} there, 99.0 asked"):
        evaluate(model, images, PREDICTED, tmp_path / "out")


def test_other_labels_in_the_same_table_are_another_run(model, images, tmp_path):
    file = tmp_path / "labels.csv"
    settings = Settings(("random",), 1, step=60, labels=str(file))
    file.write_text("image,label\n0.png,1\n")
    evaluate(model, images, settings, tmp_path / "out")
    file.write_text("image,label\n0.png,2\n")
    with pytest.raises(DataError, match="images and labels: 1"):
        evaluate(model, images, settings, tmp_path / "out")


def test_other_weights_are_another_run(model, images, tmp_path):
    evaluate(model, images, PREDICTED, tmp_path / "out")
    with torch.no_grad():
        model.stem.weight[0, 0, 0, 0] += 1
    with pytest.raises(DataError, match="weights: "):
        evaluate(model, images, PREDICTED, tmp_path / "out")


@pytest.mark.parametrize("content", [b"[]", b"7", b"\xff\xfe\x00", b"{", b""])
def test_settings_that_are_something_else_are_one_clear_line(model, images, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_bytes(content)
    with pytest.raises(DataError, match=r"settings\.json .*choose another --out"):
        evaluate(model, images, PREDICTED, tmp_path / "out")


@pytest.mark.parametrize("change", ["flipped bits", "a row twice", "no checksum"])
def test_rows_that_are_not_as_they_were_written_are_measured_again(model, images, tmp_path, change):
    out, pandas = tmp_path / "out", pytest.importorskip("pandas")
    first = evaluate(model, images, PREDICTED, out)
    path = sorted((out / "rows").glob("*.parquet"))[0]
    if change == "flipped bits":
        content = bytearray(path.read_bytes())
        content[len(content) // 4] ^= 16
        path.write_bytes(content)
    elif change == "a row twice":
        rows = pandas.read_parquet(path)
        pandas.concat([rows, rows]).to_parquet(path, index=False)
    else:
        path.with_suffix(".sha256").unlink()
    with pytest.warns(UserWarning, match="1 damaged on disk"):
        again = evaluate(model, images, PREDICTED, out)
    pandas.testing.assert_frame_equal(first, again, check_exact=True)


def complaints(done):
    """The lines of stderr that are not those of the progress."""
    progress = re.compile(
        r"estimated: about .*|measuring up to \d+ images, \d+ at a time|\d+ of \d+ images, .* images/s, \d+ s left"
    )
    return [line for line in done.stderr.splitlines() if not progress.fullmatch(line)]


def test_the_command_says_in_one_line_what_is_measured_again_and_fails_when_no_image_can_be_read(images, tmp_path):
    options = ["--data", str(images), "--model", "tiny20", "--methods", "random", "--step", "2048"]
    options += ["--protocol", "budget", "--labels", "predicted", "--out", str(tmp_path / "out")]
    done = headwater("evaluate", *options)
    assert done.returncode == 0 and complaints(done) == [], done.stderr
    for path in (tmp_path / "out" / "rows").iterdir():
        path.write_bytes(b"PAR1 no more")
    done = headwater("evaluate", *options)
    assert done.returncode == 0
    rows = tmp_path / "out" / "rows"
    line = f"headwater: warning: 1 of 1 files of rows in {rows} are measured again: 1 damaged on disk"
    assert complaints(done) == [line]
    for path in images.iterdir():
        path.write_bytes(b"nothing")
    done = headwater("evaluate", *options[:-1], str(tmp_path / "other"))
    assert done.returncode == 1
    (line,) = complaints(done)
    assert "none of the 4 images could be read; the first: " in line
    assert not (tmp_path / "other" / "results.parquet").exists()


def test_rows_of_other_settings_do_not_count_though_the_settings_file_is_gone(model, images, tmp_path):
    from dataclasses import replace

    other = replace(PREDICTED, step=30)
    evaluate(model, images, other, tmp_path / "out")
    (tmp_path / "out" / "settings.json").unlink()
    with pytest.warns(UserWarning, match="2 of 2 files of rows .* measured again"):
        table = evaluate(model, images, PREDICTED, tmp_path / "out")
    assert table.equals(evaluate(model, images, PREDICTED, tmp_path / "fresh"))
