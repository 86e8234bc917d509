"""What labels are matched with: the very same name first, WordNet numbers, tables of images or folders, positions."""

from __future__ import annotations

import csv
import io
import tarfile

import numpy as np
import pytest
import torch
from helpers import TinyResidual, settle
from PIL import Image

import headwater as hw
from headwater.data.classes import match_classes
from headwater.data.labelled import LabelledImage, LabelledImages
from headwater.errors import DataError, InputError
from headwater.evaluation import Settings, evaluate
from headwater.evaluation.labels import label_for
from headwater.experiments import reproduce
from headwater.experiments.grid import find_classes
from headwater.models.card import wnids_among
from headwater.report.accuracy import Accuracy
from headwater.report.tables import SummaryTable

pd = pytest.importorskip("pandas")
PREPROCESSING = hw.Preprocessing(16, 16)
CLASSES = ("lion", "tabby", "bee", "ram")


def network(classes=CLASSES, wnids=None, count=4):
    torch.manual_seed(0)
    model = settle(TinyResidual(classes=count))
    model.card = hw.ModelCard("tiny-residual", "random", PREPROCESSING, classes, wnids)
    return model


def noise(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def settings(**options):
    return Settings(("random",), samples=3, step=60, **options)


def labels(model, data, **options):
    return {image.name: image.label for image in label_for(model, data, settings(**options)).data.images}


@pytest.fixture
def folders(tmp_path):
    """Three folders whose names are no classes of the network."""
    for k, name in enumerate(("a", "b", "c")):
        noise(tmp_path / "data" / name / "1.png", k)
    return tmp_path / "data"


def table_of(tmp_path, text):
    (tmp_path / "labels.csv").write_text(text)
    return str(tmp_path / "labels.csv")


def test_the_very_same_name_comes_before_a_similar_one():
    """ImageNet has a Cardigan (a dog) and a cardigan (a garment)."""
    assert match_classes(["cardigan", "Cardigan"], ("Cardigan", "cardigan"), None, "it") == (1, 0)
    with pytest.raises(DataError, match="2 classes called 'CARDIGAN'"):
        match_classes(["CARDIGAN"], ("Cardigan", "cardigan"), None, "it")


def test_where_wordnet_numbers_are_known_a_name_does_not_help_another_synset():
    with pytest.raises(DataError, match="does not know 1 of the data's 1 classes: n00000009_crane"):
        match_classes(["n00000009_crane"], ("crane",), ("n00000001",), "it")


def test_a_network_whose_classes_are_called_by_their_numbers_knows_them():
    assert match_classes(["n00000002_lion", "n00000001"], ("n00000001", "n00000002"), None, "it") == (1, 0)


def test_all_of_imagenets_numbers_tell_their_order_and_a_part_of_them_does_not(shared):
    numbers = sorted({p.name.split("_")[0] for p in (shared / "data" / "imagenet-sample").glob("*.jpg")})
    nameless = hw.ModelCard("it", "random", PREPROCESSING)
    assert wnids_among(numbers[::-1], nameless, 1000) == tuple(numbers)
    assert wnids_among(numbers[:-1], nameless, 1000) is None
    assert wnids_among(numbers, nameless, 999) is None
    own = hw.ModelCard("it", "random", PREPROCESSING, tuple(f"class {k}" for k in range(1000)))
    assert wnids_among(numbers, own, 1000) is None, "a thousand classes that are not ImageNet's"


def test_a_part_of_imagenet_is_refused_by_a_network_without_names(folders, shared):
    for path in folders.iterdir():
        path.rename(path.with_name({"a": "n01440764", "b": "n01443537", "c": "n01484850"}[path.name]))
    with pytest.raises(DataError, match="have no names"):
        labels(network(None, count=1000), folders)
    with pytest.raises(DataError, match=r"has 1000 classes, the data .* have 3; positions cannot be the same"):
        labels(network(None, count=1000), folders, labels="positions")


def test_a_folder_without_images_needs_no_class(folders):
    (folders / "notes").mkdir()
    assert labels(network(("b", "a", "c", "d")), folders) == {"a/1.png": 1, "b/1.png": 0, "c/1.png": 2}


def test_folders_are_mapped_by_a_table(folders, tmp_path):
    file = table_of(tmp_path, "folder,label\na,Tabby\nb,3\nc,tabby\n")
    assert labels(network(), folders, labels=file) == {"a/1.png": 1, "b/1.png": 3, "c/1.png": 1}
    assert labels(network(None), folders, labels=table_of(tmp_path, "folder,label\na,0\nb,3\nc,1\n"))["b/1.png"] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("folder,label\na,0\nb,1\n", "does not know 1 of the data's 1 classes: c"),
        ("folder,label\na,0\nb,1\nc,2\nd,3\n", "the data have no folder d; they have a, b, c"),
        ("folder,label\na,0\na,1\n", "a folder more than once"),
        ("folder,label\na,0\nb,1\nc,4\n", "label 4 is out of range; tiny-residual has classes 0 to 3"),
        (
            "folder;label\na;0\n",
            "needs columns image,label or folder,label, separated by commas; it has 'folder;label'",
        ),
    ],
)
def test_a_wrong_table_of_folders_says_what_is_wrong(folders, tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        labels(network(), folders, labels=table_of(tmp_path, text))


def test_a_class_whose_name_is_a_number_goes_by_its_name(folders, tmp_path):
    file = table_of(tmp_path, "image,label\na/1.png,3\nb/1.png,0\n")
    assert labels(network(("3", "2", "1", "0")), folders, labels=file) == {"a/1.png": 0, "b/1.png": 3}


def test_labels_of_a_network_without_names_are_its_indices(folders, tmp_path):
    with pytest.raises(DataError, match="label 4 is out of range"):
        labels(network(None), folders, labels=table_of(tmp_path, "image,label\na/1.png,4\n"))
    with pytest.raises(DataError, match="have no names"):
        labels(network(None), folders, labels=table_of(tmp_path, "image,label\na/1.png,lion\n"))


def tiny20_like(root, members=("val/n00000002/1.png", "val/n00000001/1.png")):
    root.mkdir()
    (root / "classes.csv").write_text("index,wnid,name\n0,n00000001,lion\n1,n00000002,bee\n")
    noise(root.parent / "1.png")
    with tarfile.open(root / "val.tar", "w") as tar:
        for name in members:
            tar.add(root.parent / "1.png", name)
    return root


def test_images_in_an_archive_are_labelled_like_others(tmp_path):
    root = tiny20_like(tmp_path / "data")
    assert list(labels(network(), root).values()) == [0, 2]
    numbers = ("n00000003", "n00000002", "n00000001", "n00000004")
    assert list(labels(network(CLASSES, numbers), root).values()) == [2, 1], "numbers decide, not the names"
    assert list(labels(network(), root, labels="predicted").values()) == [-1, -1]
    file = table_of(tmp_path, "image,label\nval/n00000002/1.png,ram\n")
    assert labels(network(), root, labels=file) == {"val/n00000002/1.png": 3}
    file = table_of(tmp_path, "folder,label\nbee,ram\nn00000001,tabby\n")
    assert list(labels(network(), root, labels=file).values()) == [1, 3]
    with pytest.raises(DataError, match=r"there is no image '1\.png'"):
        labels(network(), root, labels=table_of(tmp_path, "image,label\n1.png,ram\n"))


def test_an_archive_without_folders_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"image 1\.png does not lie in a folder that classes\.csv lists"):
        labels(network(), tiny20_like(tmp_path / "data", ["1.png"]))


def test_a_class_without_a_name_is_refused(tmp_path):
    root = tiny20_like(tmp_path / "data")
    (root / "classes.csv").write_text("index,wnid,name\n0,n00000001,lion\n1,n00000002, \n")
    with pytest.raises(DataError, match=r"classes\.csv, line 3: the class has no name"):
        labels(network(), root)


def test_classes_listed_twice_are_refused(tmp_path):
    root = tiny20_like(tmp_path / "data")
    (root / "classes.csv").write_text("index,wnid,name\n0,n00000001,lion\n1,n00000001,bee\n")
    with pytest.raises(DataError, match=r"classes\.csv.*each with a wnid of its own"):
        labels(network(), root)


def test_predicted_labels_of_one_split(tmp_path):
    for split in ("train", "val"):
        noise(tmp_path / "data" / split / "deep" / "1.png")
    assert list(labels(network(), tmp_path / "data", labels="predicted")) == ["deep/1.png"]


def test_a_word_that_is_neither_a_way_nor_a_file_is_refused():
    with pytest.raises(InputError, match="one of names, positions, predicted, or a CSV file; there is no 'predict'"):
        settings(labels="predict")


def test_every_table_says_that_labels_are_predicted(folders, tmp_path):
    said = "Labels are the network's own predictions"
    asked = Settings(("random", "random+hq"), 3, step=60, labels="predicted")
    table = evaluate(network(), folders, asked, tmp_path / "out")
    assert set(table["label_source"]) == {"predicted"} and set(table["classes"]) == {4}
    summary = SummaryTable.of(table, ["random"])
    assert said in summary.markdown()
    visible = [line for line in summary.latex().splitlines() if not line.startswith("%")]
    assert any(said in line for line in visible)
    rows = list(csv.DictReader(io.StringIO(summary.csv())))
    assert {(row["label_source"], row["accuracy"]) for row in rows} == {("predicted", "")}
    for name in ("otsuki2024-table3", "otsuki2024-tableD"):
        done = reproduce(name, folders, [network()], tmp_path / name, settings(labels="predicted"), threshold=2.0)
        assert f"- labels: {said}" in done.report, name
    rows = list(csv.DictReader((tmp_path / "otsuki2024-tableD" / "failures.csv").open()))
    assert all(int(row["label"]) >= 0 for row in rows), "the class that was followed, not its absence"


def test_the_report_of_an_experiment_warns_of_labels_near_chance(tmp_path):
    for k in range(6):
        noise(tmp_path / "data" / f"{k}.png", k)
    model = network()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
    rows = "".join(f"{k}.png,{1 + k % 3}\n" for k in range(6))
    asked = Settings(("random",), 6, step=60, labels=table_of(tmp_path, "image,label\n" + rows))
    table = evaluate(model, tmp_path / "data", asked, tmp_path / "out")
    accuracy = Accuracy.of(table)
    assert accuracy is not None and (accuracy.right, accuracy.count) == (0, 6) and accuracy.is_near_chance
    assert "right on 0 of 6 images (0.0%; labels from labels.csv). WARNING" in SummaryTable.of(table, []).latex()
    done = reproduce("otsuki2024-table3", tmp_path / "data", [model], tmp_path / "table3", asked)
    assert "WARNING: no better than guessing among 4 classes" in done.report


@pytest.mark.parametrize(("right", "warned"), [(2, True), (9, False)])
def test_near_chance_is_a_binomial_test(right, warned):
    """Of 20 images and 10 classes a guess is right on 2 on average, on 9 or more hardly ever."""
    assert Accuracy(right, 20, 10, "names").is_near_chance is warned
    assert not Accuracy(0, 4, 10, "names").is_near_chance, "too few to say"


def test_a_figures_class_is_the_networks_whatever_the_file_is_called():
    card = hw.ModelCard("m", "random", PREPROCESSING, ("lemon", "beacon"))
    images = (LabelledImage("beacon.jpg", 0, "beacon.jpg"), LabelledImage("x.jpg", 1, "x.jpg"))
    assert find_classes(LabelledImages("images", images), card, ("Beacon",)) == [images[1]]


def test_a_figure_of_networks_with_other_orders_of_classes_is_refused(folders, tmp_path):
    networks = [network(("a", "b", "c", "d")), network(("d", "c", "b", "a"))]
    with pytest.raises(InputError, match="same classes in the same order"):
        reproduce("otsuki2024-figB", folders, networks, tmp_path)


def test_conservation_needs_no_names_of_classes(folders, tmp_path):
    done = reproduce("otsuki2024-fig7", folders, [network(None)], tmp_path, settings())
    assert "| `otsuki2024` | 1.0000 | 1.0000 | 1.0000 |" in done.report


def test_imagenets_devkit_tells_the_order_though_few_of_its_classes_have_images(shared, tmp_path):
    numbers = sorted({p.name.split("_")[0] for p in (shared / "data" / "imagenet-sample").glob("*.jpg")})
    noise(tmp_path / "data" / "1.png")
    (tmp_path / "data" / "1.png").rename(tmp_path / "data" / "ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "data" / "synsets.txt").write_text("\n".join(numbers[::-1]))
    (tmp_path / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    assert list(labels(network(None, count=1000), tmp_path / "data").values()) == [999]


def test_an_image_listed_under_two_spellings_of_its_path_is_listed_twice(folders, tmp_path):
    with pytest.raises(DataError, match=r"lists a/1\.png more than once"):
        labels(network(), folders, labels=table_of(tmp_path, "image,label\na/1.png,lion\n./a/1.png,ram\n"))


@pytest.mark.parametrize("corner", ["nan", "inf", "", "two"])
def test_boxes_that_are_no_numbers_are_refused(tmp_path, corner):
    root = tiny20_like(tmp_path / "data")
    (root / "boxes.csv").write_text(f"file,x_min,y_min,x_max,y_max\n1.png,0,{corner},5,5\n")
    with pytest.raises(DataError, match=r"boxes\.csv, line 2: "):
        labels(network(), root)


@pytest.mark.parametrize(
    "wrong", [{"std": (1e-50, 1.0, 1.0)}, {"std": (0.0, 1.0, 1.0)}, {"crop": 10**30}, {"resize": True}, {"crop": 0}]
)
def test_preprocessing_that_no_image_survives_is_refused(wrong):
    with pytest.raises(InputError, match=r"std must be positive|must be numbers of pixels from 1"):
        hw.Preprocessing(**{"resize": 16, "crop": 16, **wrong})
