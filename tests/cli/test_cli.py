from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command import headwater
from helpers import EXAMPLES
from PIL import Image

TABBY, ESPRESSO = str(EXAMPLES / "tabby.jpg"), str(EXAMPLES / "espresso.jpg")


def test_explain_writes_images_map_and_numbers(tmp_path):
    done = headwater("explain", TABBY, ESPRESSO, "--model", "tiny20", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "espresso.jpg: espresso" in done.stdout and "conserved" in done.stdout
    result = json.loads((tmp_path / "tabby.tiny20.headwater.tabby.json").read_text())
    assert result["conservation"]["relative_error"] < 1e-5
    assert result["target"] == result["predicted"]
    heatmap = np.load(tmp_path / "tabby.tiny20.headwater.tabby.npy")
    assert heatmap.shape == tuple(result["map"]["shape"])
    assert heatmap.sum() == pytest.approx(result["conservation"]["seed"], rel=1e-4)
    with Image.open(tmp_path / "tabby.tiny20.headwater.tabby.overlay.png") as overlay, Image.open(TABBY) as photo:
        assert overlay.size == photo.size
    assert (tmp_path / "tabby.tiny20.headwater.tabby.figure.png").stat().st_size > 10_000
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_options(tmp_path):
    done = headwater(
        *("explain", TABBY, "--model", "tiny20", "--out", str(tmp_path), "--method", "otsuki2024-published"),
        *("--target", "lion", "--quantize", "8", "--colormap", "jet", "--sign", "positive"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "tabby.tiny20.otsuki2024-published+hq8.lion.json").read_text())
    assert result["target"]["name"] == "lion"
    assert result["map"]["quantized_levels"] == 8


def test_good_images_among_bad_ones_are_done(tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    out = tmp_path / "maps"
    done = headwater("explain", "none.jpg", TABBY, str(bad), str(tmp_path), "--model", "tiny20", "--out", str(out))
    assert done.returncode == 1
    assert len(list(out.iterdir())) == 4
    for part in ("none.jpg does not exist", "bad.jpg is not an image", "is a folder", "3 of 4 images"):
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_bytes(Path(TABBY).read_bytes())
    out = tmp_path / "maps"
    headwater("explain", str(tmp_path / "a/x.jpg"), str(tmp_path / "b/x.jpg"), "--model", "tiny20", "--out", str(out))
    assert {p.name for p in out.glob("*.npy")} == {"x.tiny20.headwater.tabby.npy", "x.tiny20.headwater.tabby-2.npy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", TABBY, "--model", "tiny20", "--target", "tabbi"), "did you mean tabby"),
        (("explain", TABBY, "--model", "resnet5"), "no model is called"),
        (("explain", TABBY, "--model", "tiny20", "--method", "lrp"), "no method is called"),
        (("explain", TABBY, "--model", "none.pth", "--arch", "resnet18"), "none.pth does not exist"),
        (("explain", TABBY, "--model", "tiny20", "--device", "cuda:99"), "not available here"),
        (("explain", TABBY, "--model", "tiny20", "--colormap", "nice"), "no colour map"),
        (("explain", TABBY, "--model", "tiny20", "--out", TABBY), "cannot write"),
        (("train", "nothing", "--data", "x", "--out", "y"), "no training is called"),
        (("train", "tiny20", "--data", "nowhere", "--out", "OUT"), "no classes.csv"),
    ],
)
def test_errors_are_one_line_and_a_status(tmp_path, arguments, message):
    arguments = tuple(str(tmp_path / "run") if a == "OUT" else a for a in arguments)
    done = headwater(*arguments)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("headwater: error:")]
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in done.stderr
    assert "Traceback" in headwater("--debug", *arguments).stderr


def test_without_a_model_and_without_network_the_extras_network_is_taken_and_named(tmp_path):
    done = headwater("explain", ESPRESSO, "--out", str(tmp_path / "maps"), TORCH_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "headwater: model efficientnet-lite0: ImageNet's 1,000 classes; ResNet-50's weights are not in torch's cache"
    ]
    assert "espresso.jpg: espresso" in done.stdout and "(efficientnet-lite0)" in done.stdout


def test_a_checkpoint_with_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("executed",))

    path = tmp_path / "evil.pth"
    torch.save({"x": Payload()}, path)
    done = headwater("explain", TABBY, "--model", str(path), "--arch", "resnet18")
    assert done.returncode == 1
    assert "never run" in done.stderr
    assert "executed" not in done.stdout + done.stderr


def test_lists():
    done = subprocess.run([sys.executable, "-m", "headwater", "models"], capture_output=True, text=True, check=True)
    assert "resnet50" in done.stdout.split()
    assert "otsuki2024-mixture" in headwater("methods").stdout


def test_import_brings_neither_torchvision_nor_matplotlib():
    heavy = ("torchvision", "matplotlib", "lightning", "rich")
    code = f"import sys, headwater; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_method_that_does_not_conserve_says_so(tmp_path):
    done = headwater(
        "explain", str(EXAMPLES / "tabby.jpg"), "--model", "tiny20", "--method", "c3-lrp", "--out", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    account = json.loads((tmp_path / "tabby.tiny20.c3-lrp.tabby.json").read_text())["conservation"]
    assert f"NOT conserved by this method: {account['input']:.4g} of {account['seed']:.4g} arrived" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "cub-vgg"],
            "no training is called 'cub-vgg'; there are cub-resnet50, cub-abn, cub-abn-published, tiny20",
        ),
        (
            ["train", "cub-abn", "--recipe", "mine"],
            "no recipe is called 'mine'; there are otsuki2024, otsuki2024-published, doublet2024",
        ),
        (["train", "cub-abn", "--seeds", "one"], "a whole number was expected, got 'one'"),
        (["train", "tiny20", "--lr", "1"], "tiny20 is trained by its own recipe"),
        (["reproduce", "otsuki2024-table9", "--model", "tiny20"], "did you mean otsuki2024-table"),
        (["reproduce", "otsuki2024-fig7", "--model", str(EXAMPLES)], "holds no finished run of headwater train"),
    ],
)
def test_training_and_experiments_say_what_there_is(tmp_path, arguments, message):
    done = headwater(*arguments, "--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
