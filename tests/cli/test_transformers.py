"""The commands on networks that ``save_pretrained`` wrote."""

from __future__ import annotations

import json
import shutil

import pytest
from command import headwater
from helpers import EXAMPLES
from saved_models import save_bert, save_resnet, save_vit
from typer.testing import CliRunner

from headwater.cli.app import app

TABBY, ESPRESSO = str(EXAMPLES / "tabby.jpg"), str(EXAMPLES / "espresso.jpg")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    (root / "empty").mkdir()
    pickled = save_resnet(root / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    save_resnet(root / "resnet"), save_vit(root / "vit"), save_bert(root / "bert")
    return root


def test_photographs_are_explained_by_a_folder(folders, tmp_path):
    done = headwater("explain", TABBY, ESPRESSO, "--model", str(folders / "vit"), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("conserved") == 2 and "Writing" not in done.stderr + done.stdout
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert [record["map"]["shape"] for record in records] == [[32, 48]] * 2
    assert all(record["conservation"]["relative_error"] < 1e-5 for record in records)


def test_a_text_is_explained_by_a_folder(folders, tmp_path):
    arguments = ("explain-text", "the film was great", "--model", str(folders / "bert"), "--out", str(tmp_path))
    done = headwater(*arguments, "--target", "positive", "--method", "otsuki2024")
    assert done.returncode == 0, done.stderr
    assert "positive" in done.stdout and "conserved" in done.stdout and "[CLS]" in done.stdout
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert record["target"]["name"] == "positive" and len(record["tokens"]) == 6


def test_methods_are_measured_on_a_folder(folders, tmp_path):
    for name, photo in (("tabby", TABBY), ("cup", ESPRESSO)):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(photo, tmp_path / "data" / name)
    done = headwater(
        *(
            "evaluate",
            "--model",
            str(folders / "vit"),
            "--data",
            str(tmp_path / "data"),
            "--methods",
            "otsuki2024,random",
        ),
        *("--samples", "2", "--out", str(tmp_path / "run")),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "run.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", TABBY, "--model", "empty"), "no network of save_pretrained (no config.json)"),
        (("explain", TABBY, "--model", "pickled"), "pytorch_model.bin, which may hold code and is never loaded"),
        (("explain", TABBY, "--model", "bert"), "takes text, not images"),
        (("explain", TABBY, "--model", "hf:someone/tiny"), "hf download someone/tiny"),
        (("explain", TABBY, "--model", "hf:tiny"), "hf:OWNER/NAME"),
        (("explain-text", "good", "--model", "resnet"), "takes images, not text"),
        (("explain-text", "", "--model", "bert"), "at least one word"),
        (("serve", "--model", "bert", "--port", "0"), "takes text, not images"),
        (
            ("evaluate", "--model", "bert", "--data", str(EXAMPLES), "--methods", "random", "--out", "OUT"),
            "takes text, not images",
        ),
    ],
)
def test_errors_are_one_line_and_a_status(folders, tmp_path, arguments, message):
    names = {path.name: str(path) for path in folders.iterdir()} | {"OUT": str(tmp_path / "run")}
    done = headwater(*(names.get(word, word) for word in arguments), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("headwater: error:")]
    assert message in line and "Traceback" not in done.stderr


def test_the_page_offers_a_folder(folders, monkeypatch):
    offered = []
    monkeypatch.setattr("headwater.serve.server.serve", lambda models, *rest: offered.extend(models))
    done = CliRunner().invoke(app, ["serve", "--model", str(folders / "resnet"), "--port", "0"])
    assert done.exit_code == 0, done.output
    assert [model.card.name for model in offered] == [str(folders / "resnet")]
