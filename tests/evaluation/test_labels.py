"""Labels are the network's classes, found by name or WordNet number, or refused; never by position in silence."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from command import headwater
from helpers import EXAMPLES, TinyResidual, settle
from PIL import Image

import headwater as hw
from headwater.data.classes import match_classes
from headwater.errors import DataError, HeadwaterError, InputError
from headwater.evaluation import Settings, evaluate
from headwater.evaluation.labels import label_for
from headwater.experiments import reproduce
from headwater.report.tables import SummaryTable

pytest.importorskip("pandas")
PREPROCESSING = hw.Preprocessing(16, 16)
CLASSES = ("Ping-Pong Ball", "tabby", "lion", "bee")


def network(classes=CLASSES, wnids=None):
    torch.manual_seed(0)
    model = settle(TinyResidual(classes=4))
    model.card = hw.ModelCard("tiny-residual", "random", PREPROCESSING, classes, wnids)
    return model


def noise(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def own(tmp_path):
    """Four images in one folder, without labels."""
    for k in range(4):
        noise(tmp_path / "own" / f"{k}.png", k)
    return tmp_path / "own"


def settings(**options):
    return Settings(("random",), samples=4, step=60, batch_size=2, **options)


def test_names_are_compared_without_case_punctuation_and_numbers():
    names = ["001.Lion", "n02123045_Tabby", "ping_pong_ball", "BEE"]
    assert match_classes(names, CLASSES, None, "it") == (2, 1, 0, 3)


def test_wordnet_numbers_are_compared_with_the_networks():
    wnids = ("n00000004", "n00000003", "n00000002", "n00000001")
    assert match_classes(["n00000001", "n00000004"], None, wnids, "it") == (3, 0)
    assert match_classes(["n00000001_lion"], CLASSES, wnids, "it") == (3,), "the number counts, not the name"


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["lyon"], CLASSES, r"it does not know 1 of the data's 1 classes: lyon; did you mean 'lion'\?"),
        (["lion", "Lion"], CLASSES, "several classes of the data are one class of it"),
        (["crane"], ("crane", "bee", "crane"), r"it has 2 classes called 'crane': \[0, 2\]"),
        (["lion"], None, "the classes of it have no names.*labels as a CSV file.*predicted.*positions"),
        (["n00000001"], CLASSES, r"WordNet numbers are not known.*headwater\[timm\]"),
    ],
)
def test_what_does_not_fit_is_refused(names, classes, message):
    with pytest.raises(DataError, match=message):
        match_classes(names, classes, None, "it")


def test_a_folder_of_a_class_is_that_class_of_the_network_whatever_else_is_there(tmp_path):
    for name in ("tabby", "lion", "bee"):
        noise(tmp_path / "data" / name / "1.png")
    table = evaluate(network(), tmp_path / "data", Settings(("random",), 3, step=60), tmp_path / "out")
    assert dict(zip(table["image"], table["label"], strict=True)) == {
        "bee/1.png": 3,
        "lion/1.png": 2,
        "tabby/1.png": 1,
    }


def test_tabby_is_class_5_of_tiny20_and_twenty_other_wnids_are_refused(tmp_path):
    (tmp_path / "data" / "tabby").mkdir(parents=True)
    shutil.copy(EXAMPLES / "tabby.jpg", tmp_path / "data" / "tabby")
    model = hw.load_model("tiny20")
    found = label_for(model, tmp_path / "data", Settings(("random",))).data
    assert [image.label for image in found.images] == [5]
    for k in range(20):
        noise(tmp_path / "other" / f"n{k:08d}" / "1.png")
    with pytest.raises(DataError, match="tiny20 does not know 20 of the data's 20 classes"):
        label_for(model, tmp_path / "other", Settings(("random",)))


def test_wordnet_folders_of_tiny20_find_their_classes(tmp_path, shared):
    import csv

    with (shared / "data" / "tiny20" / "classes.csv").open() as file:
        wnids = {row["wnid"]: int(row["index"]) for row in csv.DictReader(file)}
    for wnid in wnids:
        noise(tmp_path / wnid / "1.png")
    found = label_for(hw.load_model("tiny20"), tmp_path, Settings(("random",))).data
    assert {image.name.split("/")[0]: image.label for image in found.images} == wnids


def test_timm_and_torchvision_know_the_same_1000_classes():
    pytest.importorskip("timm")
    from headwater.models.card import imagenet_wnids
    from headwater.models.registry import timm_classes

    class Any1000(torch.nn.Module):
        num_classes, pretrained_cfg = 1000, {"num_classes": 1000}

    _, wnids = timm_classes(Any1000())
    import torchvision

    categories = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert wnids == imagenet_wnids(categories) and wnids == tuple(sorted(wnids)) and len(set(wnids)) == 1000
    assert imagenet_wnids(categories[::-1]) is None


def test_positions_must_be_asked_for(tmp_path):
    for k in range(4):
        noise(tmp_path / "data" / f"class{k}" / "1.png")
    model = network(classes=None)
    with pytest.raises(DataError, match="have no names"):
        evaluate(model, tmp_path / "data", settings(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    table = evaluate(model, tmp_path / "data", settings(labels="positions"), tmp_path / "out")
    assert sorted(table["label"]) == [0, 1, 2, 3]


def test_images_of_ones_own_with_a_csv_file_or_the_predicted_classes(own, tmp_path):
    (tmp_path / "labels.csv").write_text("image,label\n0.png,lion\n1.png,TABBY\n2.png,3\n")
    listed = Settings(("random",), 3, step=60, labels=str(tmp_path / "labels.csv"))
    table = evaluate(network(), own, listed, tmp_path / "listed")
    assert dict(zip(table["image"], table["label"], strict=True)) == {"0.png": 2, "1.png": 1, "2.png": 3}
    table = evaluate(network(), own, settings(labels="predicted"), tmp_path / "predicted")
    assert (table["label"] == table["predicted"]).all() and len(table) == 4
    assert "Labels are the network's own predictions." in SummaryTable.of(table, []).note()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,label\n0.png,cat\n", "does not know 1"),
        (b"image,label\n0.png,4\n", "classes 0 to 3"),
        (b"image,label\n9.png,1\n", "9.png does not exist"),
        (b"image,label\n0.png,1\n0.png,2\n", "more than once"),
        (b"image\n0.png\n", "needs columns image,label or folder,label"),
        (b"image,label\n0.png\n", "line 2: a value is missing"),
        (b"image,label\n", "lists no images"),
        ("image,label\n0.png,1\n".encode("utf-16"), "not a CSV file in UTF-8"),
        (bytes(range(256)), "not a CSV file|needs columns"),
    ],
)
def test_a_wrong_file_of_labels_says_what_is_wrong(own, tmp_path, content, message):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        label_for(network(), own, Settings(("random",), labels=str(tmp_path / "labels.csv")))


def test_a_missing_file_of_labels_is_said(own):
    with pytest.raises(DataError, match=r"nowhere.csv cannot be read \(No such file"):
        label_for(network(), own, Settings(("random",), labels="nowhere.csv"))


def test_figures_need_labels(own, tmp_path):
    with pytest.raises(InputError, match="do not give any"):
        reproduce("otsuki2024-figE", own, [network()], tmp_path, settings(labels="predicted"))


def test_the_summary_shows_the_accuracy_and_warns_near_chance():
    import pandas as pd

    def note(right):
        rows = [
            {"image": str(k), "predicted": 1, "label": int(k < right), "method": "m", "error": None} for k in range(20)
        ]
        table = pd.DataFrame(rows).assign(label_source="names", classes=20)
        return SummaryTable.of(table, []).note()

    assert "right on 18 of 20 images (90.0%; labels matched by name)" in note(18) and "WARNING" not in note(18)
    assert "right on 1 of 20 images (5.0%; labels matched by name). WARNING: no better than guessing" in note(1)


def test_the_command_measures_ones_own_images(tmp_path):
    for name in ("tabby", "espresso"):
        shutil.copy(EXAMPLES / f"{name}.jpg", tmp_path)
    options = ["--data", str(tmp_path), "--model", "tiny20", "--methods", "random", "--samples", "2", "--step", "2048"]
    done = headwater("evaluate", *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 1 and "labels: a CSV file with columns image,label, or 'predicted'" in done.stderr
    done = headwater("evaluate", *options, "--out", str(tmp_path / "out"), "--labels", "predicted")
    assert done.returncode == 0, done.stderr
    assert "Labels are the network's own predictions." in done.stdout
    done = headwater("evaluate", *options[:-2], "--step", "4096", "--out", str(tmp_path / "out2"))
    assert done.returncode == 1 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("step", [1.5, 0, -3, True, "7"])
def test_steps_are_whole_numbers(step):
    with pytest.raises(InputError, match="step must be a whole number of at least 1"):
        Settings(("random",), step=step)
    with pytest.raises(InputError, match="step must be a whole number of at least 1"):
        hw.insertion_deletion(network(), torch.rand(1, 3, 16, 16), torch.rand(1, 16, 16), 1, step=step)


@pytest.mark.parametrize("protocol", ["published", "budget"])
def test_a_step_over_the_whole_image_is_refused(own, tmp_path, protocol):
    with pytest.raises(InputError, match=r"a step of 256 .*images of 256 pixels"):
        hw.insertion_deletion(network(), torch.rand(1, 3, 16, 16), torch.rand(1, 16, 16), 1, protocol, step=256)
    with pytest.raises(InputError, match="a step of 256 pixels leaves no curve on images of 256 pixels"):
        evaluate(network(), own, Settings(("random",), 4, step=256, labels="predicted"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- resuming ---------------------------------------------------------------------------------------------------------


def test_a_changed_image_is_measured_again_and_the_others_are_not(own, tmp_path):
    asked, seen = settings(labels="predicted"), []
    before = evaluate(network(), own, asked, tmp_path / "out")
    evaluate(network(), own, asked, tmp_path / "out", progress=lambda done, *_: seen.append(done))
    assert seen == [], "nothing to do"
    noise(own / "2.png", 99)
    after = evaluate(network(), own, asked, tmp_path / "out", progress=lambda done, *_: seen.append(done))
    assert seen == [4], "one of two chunks"
    changed = before["image"] == "2.png"
    assert before[~changed].equals(after[~changed])
    assert not before[changed].equals(after[changed])
    assert after.equals(evaluate(network(), own, asked, tmp_path / "fresh"))


def test_images_that_failed_are_tried_again(own, tmp_path):
    good = (own / "1.png").read_bytes()
    (own / "1.png").write_bytes(good[:50])
    table = evaluate(network(), own, settings(labels="predicted"), tmp_path / "out")
    assert table["error"].notna().sum() == 1
    (own / "1.png").write_bytes(good)
    table = evaluate(network(), own, settings(labels="predicted"), tmp_path / "out")
    assert table["error"].isna().all()


def test_damaged_rows_are_made_again_and_damaged_settings_refused(own, tmp_path):
    asked = settings(labels="predicted")
    table = evaluate(network(), own, asked, tmp_path / "out")
    for k, path in enumerate(sorted((tmp_path / "out" / "rows").iterdir())):
        path.write_bytes(b"" if k else path.read_bytes()[:100])
    assert table.equals(evaluate(network(), own, asked, tmp_path / "out"))
    (tmp_path / "out" / "settings.json").write_text("[]")
    with pytest.raises(DataError, match="does not hold the settings of a run"):
        evaluate(network(), own, asked, tmp_path / "out")


def test_when_no_image_can_be_read_that_is_the_error(own, tmp_path):
    for path in own.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"none of the 4 images could be read; the first: .*is not an image"):
        evaluate(network(), own, settings(labels="predicted"), tmp_path / "out")


# -- files that are something else ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [bytes(range(256)), "index,wnid,name\n0,n1,a\n".encode("utf-16"), b"index,wnid,name\nzero,n1,a\n", b"a\n", b""],
)
def test_a_wrong_list_of_classes_is_one_clear_line(tmp_path, content):
    (tmp_path / "classes.csv").write_bytes(content)
    noise(tmp_path / "val" / "n1" / "1.png")
    with pytest.raises(DataError, match=r"classes\.csv"):
        label_for(network(), tmp_path, Settings(("random",)))


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": [1, 2, 3, 4]},
        {"classes": "abcd"},
        {"arch": 5},
        {"preprocessing": {"resize": 16, "crop": 16, "std": [0.0, 1.0, 1.0]}},
        {"preprocessing": {"resize": "16", "crop": 16}},
        {"preprocessing": {"resize": 16, "crop": 16, "mean": ["a", 0, 0]}},
        {"preprocessing": [1]},
        {"attention_after": 3},
    ],
)
def test_a_wrong_card_is_one_clear_line(tmp_path, changes):
    import json

    card = {
        "arch": "resnet18",
        "attention_after": None,
        "classes": list("abcd"),
        "preprocessing": {"resize": 16, "crop": 16},
    }
    (tmp_path / "card.json").write_text(json.dumps(card | changes))
    with pytest.raises(hw.errors.CheckpointError, match="not the card of a run"):
        hw.load_model(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({0: torch.zeros(2)}, "keys must be names, one is 0"),
        ({"fc.weight": torch.eye(3).to_sparse()}, "fc.weight is sparse"),
        ({"fc.weight": torch.empty(3, device="meta")}, "fc.weight is meta"),
        ({"fc.weight": torch.ones(3, dtype=torch.complex64)}, "fc.weight is complex"),
    ],
)
def test_checkpoints_of_other_tensors_are_one_clear_line(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(HeadwaterError, match=message):
        hw.load_model(tmp_path / "weights.pth", arch="resnet18")
