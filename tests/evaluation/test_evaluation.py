"""Tables of measures: what is in them, what survives, and what they say."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from command import headwater, started
from helpers import TinyResidual, settle
from PIL import Image

import headwater as hw
from headwater.data.labelled import LabelledImage, LabelledImages, load_labelled
from headwater.data.preprocessing import Box
from headwater.errors import DataError, InputError
from headwater.evaluation import Settings, evaluate, measure_randomisation, object_mask
from headwater.report.tables import SummaryTable, curves_figure, randomisation_figure

pd = pytest.importorskip("pandas")
PREPROCESSING = hw.Preprocessing(24, 24)
SETTINGS = Settings(
    ("otsuki2024", "otsuki2024+hq", "gradient-x-input", "random"), samples=12, step=40, batch_size=4, labels="positions"
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return settle(TinyResidual(classes=4))


def noise(path, seed, size=(30, 26)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path):
    """Four classes with four images each, one of them with an annotation."""
    for label in range(4):
        for k in range(4):
            noise(tmp_path / "data" / f"class{label}" / f"{k}.png", 10 * label + k)
    (tmp_path / "data" / "class0" / "0.xml").write_text(
        "<annotation><object><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>20</xmax><ymax>15</ymax></bndbox></object></annotation>"
    )
    return tmp_path / "data"


def run(model, folder, out, settings=SETTINGS, **options):
    return evaluate(model, folder, settings, out, preprocessing=PREPROCESSING, **options)


def test_one_row_an_image_and_method(model, folder, tmp_path):
    table = run(model, folder, tmp_path / "out")
    assert len(table) == 12 * 4
    assert table["error"].isna().all()
    assert sorted(table.groupby("method")["image"].nunique()) == [12] * 4
    assert (table.groupby("label")["image"].nunique() == 3).all(), "balanced over the classes"
    for protocol in ("published", "budget"):
        difference = table[f"insertion_{protocol}"] - table[f"deletion_{protocol}"]
        np.testing.assert_allclose(table[f"id_{protocol}"], difference, atol=1e-6)
    exact = table["method"] == "otsuki2024"
    assert (table[exact]["conservation_error"] < 1e-5).all()
    assert (table[exact]["cut_error"] < 1e-5).all()
    assert table[table["method"] == "random"]["conservation_error"].isna().all()
    boxed = table["image"] == "class0/0.png"
    assert table[~boxed]["mass"].isna().all()
    assert table[boxed]["mass"].between(0, 1).all()
    assert pd.read_parquet(tmp_path / "out" / "results.parquet").equals(table)


def test_numbers_are_those_of_the_measures_themselves(model, folder, tmp_path):
    table = run(model, folder, tmp_path / "out")
    row = table[(table["method"] == "otsuki2024+hq")].iloc[5]
    data = load_labelled(folder)
    image = next(p for p in data.images if p.name == row["image"])
    x = PREPROCESSING(image.open())[None]
    e = hw.LRP(model)(x)
    result = hw.insertion_deletion(model, x, hw.heat_quantization(e.heatmap), image.label, "published", 40)
    assert row["predicted"] == e.target.item()
    assert row["label"] == image.label
    assert row["id_published"] == pytest.approx(result.id.item(), abs=1e-4)


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_run_that_was_stopped_goes_on_and_ends_in_the_same_table(model, folder, tmp_path, stop_after):
    class KillError(Exception):
        pass

    def kill(done, total, seconds):
        if done >= 4 * stop_after:
            raise KillError

    with pytest.raises(KillError):
        run(model, folder, tmp_path / "out", progress=kill)
    assert len(list((tmp_path / "out" / "rows").glob("*.parquet"))) == stop_after
    seen = []
    table = run(model, folder, tmp_path / "out", progress=lambda done, total, s: seen.append(done))
    assert seen[0] == 4 * (stop_after + 1)
    whole = run(model, folder, tmp_path / "whole")
    pd.testing.assert_frame_equal(table, whole, check_exact=True)
    assert (tmp_path / "out" / "results.parquet").read_bytes() == (tmp_path / "whole" / "results.parquet").read_bytes()


def test_a_broken_image_is_a_row_with_its_reason(model, folder, tmp_path):
    (folder / "class1" / "2.png").write_bytes(b"not an image")
    (folder / "class2" / "0.png").write_bytes(b"")
    table = run(
        model,
        folder,
        tmp_path / "out",
        Settings(("otsuki2024", "random"), 16, step=40, batch_size=4, labels="positions"),
    )
    failed = table[table["error"].notna()]
    assert sorted(failed["image"].unique()) == ["class1/2.png", "class2/0.png"]
    assert failed["error"].str.contains("not an image|empty").all()
    assert failed["id_budget"].isna().all()
    assert len(table) == 32
    summary = SummaryTable.of(table, ["random"])
    assert summary.cells["otsuki2024", "id_budget"].count == 14
    assert "2 images could not be read" in summary.markdown()


def test_a_method_whose_maps_are_not_finite_is_named(model, folder, tmp_path):
    class Overflowing:
        def __init__(self, model):
            self.lrp = hw.LRP(model)

        def __call__(self, x, target=None):
            return replace(self.lrp(x, target), heatmap=x.sum(1) * torch.inf)

    hw.register_method("overflowing", Overflowing)
    settings = replace(SETTINGS, methods=(*SETTINGS.methods, "overflowing"))
    with pytest.raises(InputError, match="the maps of overflowing hold NaN or infinity on this network; leave it out"):
        run(model, folder, tmp_path / "out", settings)


def test_another_run_in_the_folder_is_refused_with_the_difference(model, folder, tmp_path):
    run(model, folder, tmp_path / "out")
    with pytest.raises(DataError, match=r"step: 40 there, 50 asked"):
        run(model, folder, tmp_path / "out", replace(SETTINGS, step=50))
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(DataError, match="weights: given"):
        run(model, folder, tmp_path / "out")


def test_several_devices_share_the_chunks(model, folder, tmp_path):
    alone = run(model, folder, tmp_path / "alone")
    shared = run(model, folder, tmp_path / "shared", devices=["cpu", "cpu"])
    pd.testing.assert_frame_equal(alone, shared, check_exact=False, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ()}, "different names"),
        ({"methods": ("otsuki2024", "otsuki2024")}, "different names"),
        ({"methods": ("nothing+hq",)}, "'nothing'"),
        ({"methods": ("random",), "protocols": ("own",)}, "published, budget"),
        ({"methods": ("random",), "samples": 0}, "at least 1"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(InputError, match=message):
        Settings(**options)


def test_labels_outside_the_classes(folder, tmp_path):
    torch.manual_seed(0)
    images = LabelledImages("images", load_labelled(folder).images)
    with pytest.raises(DataError, match=r"label [23] is out of range; TinyResidual has classes 0 to 1"):
        run(settle(TinyResidual(classes=2)), images, tmp_path / "out")
    with pytest.raises(DataError, match=r"TinyResidual has 2 classes, the data \(folders\) have 4"):
        run(settle(TinyResidual(classes=2)), folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_steps_keep_the_papers_proportion():
    assert SETTINGS.step_for(99) == 40
    assert Settings(("random",)).step_for(224 * 224) == 500
    assert Settings(("random",)).step_for(64 * 64) == 41


def test_boxes_move_with_the_preprocessing(tmp_path):
    image = LabelledImage("p", 0, tmp_path, boxes=(Box(10, 0, 20, 40),))
    mask = object_mask(image, hw.Preprocessing(20, 20), (40, 40))
    assert mask.sum() == 5 * 20
    assert mask[:, 5:10].all()
    wide = LabelledImage("p", 0, tmp_path, boxes=(Box(12, 0, 20, 20),))
    stretched = object_mask(wide, hw.Preprocessing(20, 20, stretch=True), (80, 40))
    assert stretched.sum() == 2 * 10 and stretched[:10, 3:5].all(), "12 to 20 of 80 are 3 to 5 of 20"
    cropped = object_mask(image, hw.Preprocessing(40, 20), (40, 40))
    assert cropped[:, 0:10].all(), "the crop begins at 10"
    assert cropped.sum() == 200
    assert object_mask(LabelledImage("p", 0, tmp_path), hw.Preprocessing(20, 20), (40, 40)) is None
    outside = LabelledImage("p", 0, tmp_path, boxes=(Box(0, 0, 5, 5),))
    assert object_mask(outside, hw.Preprocessing(40, 20), (40, 40)) is None


# -- tables ---------------------------------------------------------------------------------------------------------


def test_tables_name_the_best_and_the_test(model, folder, tmp_path):
    table = run(model, folder, tmp_path / "out")
    summary = SummaryTable.of(table, ["gradient-x-input", "random"])
    best = max(summary.methods, key=lambda m: summary.cells[m, "id_budget"].mean)
    line = next(line for line in summary.markdown().splitlines() if line.startswith(f"| `{best}` |"))
    assert "**" in line
    assert "*" not in summary.markdown().replace("**", "").replace(r"\*", ""), "a lone star would be emphasis"
    against = {comparison.against for (_, measure), comparison in summary.comparisons.items() if measure == "id_budget"}
    assert len(against) == 1 and against <= {"gradient-x-input", "random"}
    assert summary.csv().count("\n") == 1 + len(summary.methods) * len(summary.measures)
    assert summary.latex().count(r"\\") == 1 + len(summary.methods)
    curves = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert set(curves) == set(summary.methods)
    assert curves_figure(curves).startswith(b"\x89PNG")


# -- data sets --------------------------------------------------------------------------------------------------------


def test_a_balanced_sample_is_fixed_by_its_seed(folder):
    data = load_labelled(folder)
    assert data.layout == "folders"
    assert data.classes == ("class0", "class1", "class2", "class3")
    assert data.sample(6, 1) == data.sample(6, 1)
    assert data.sample(6, 1) != data.sample(6, 2)
    assert len({p.label for p in data.sample(4)}) == 4
    for k in range(3):
        (folder / "class3" / f"{k}.png").unlink()
    with pytest.raises(DataError, match=r"needs 2 images of class 3, which has 1"):
        load_labelled(folder).sample(8)
    rest = load_labelled(folder)
    everything = rest.sample(len(rest.images))
    assert sorted(p.name for p in everything) == sorted(p.name for p in rest.images) and everything != rest.images


def test_flat_folder_of_wnids(tmp_path):
    for k, wnid in enumerate(("n00000002", "n00000001", "n00000001")):
        noise(tmp_path / f"{wnid}_{k}.jpg", k)
    data = load_labelled(tmp_path)
    assert data.layout == "flat"
    assert [(p.name, p.label) for p in data.images] == [
        ("n00000001_1.jpg", 0),
        ("n00000001_2.jpg", 0),
        ("n00000002_0.jpg", 1),
    ]


def test_imagenet_validation_with_the_devkits_ground_truth(tmp_path):
    for k in (1, 2):
        noise(tmp_path / f"ILSVRC2012_val_{k:08d}.JPEG", k)
    with pytest.raises(DataError, match="not ILSVRC2012_validation_ground_truth"):
        load_labelled(tmp_path)
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n")
    with pytest.raises(DataError, match="not synsets"):
        load_labelled(tmp_path)
    (tmp_path / "synsets.txt").write_text("n00000009 zebra\nn00000003 ant\n")
    assert [p.label for p in load_labelled(tmp_path).images] == [0, 1], "sorted wnids, devkit numbers"


def test_cub_against_the_official_lists(shared, tmp_path):
    lists = shared / "data" / "cub-200-2011"
    root = tmp_path / "CUB_200_2011"
    root.mkdir()
    for path in lists.glob("*.txt"):
        (root / path.name).write_text(path.read_text())
    with pytest.raises(DataError, match="5794 of 5794 images of split 'test' are missing"):
        load_labelled(root, "test")
    for line in (lists / "images.txt").read_text().splitlines():
        path = root / "images" / line.split()[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    train, test = load_labelled(root, "train"), load_labelled(root, "test")
    assert (len(train.images), len(test.images), len(train.classes)) == (5994, 5794, 200)
    assert train.classes[0] == "001.Black_footed_Albatross"
    assert len({p.name for p in (*train.images, *test.images)}) == 11788
    assert len(test.sample(1000)) == 1000
    assert test.images[0].boxes[0] == Box(60, 27, 385, 331)
    (root / "bounding_boxes.txt").unlink()
    with pytest.raises(DataError, match=r"bounding_boxes\.txt missing"):
        load_labelled(root, "test")


def test_tiny20_has_boxes(shared):
    data = load_labelled(shared / "data" / "tiny20", "val")
    assert (data.layout, len(data.images), data.classes[5]) == ("tiny20", 1000, "tabby")
    assert all(p.boxes for p in data.images)
    assert data.images[0].open().size == (64, 64)


def test_wrong_layouts_say_what_was_found_and_expected(tmp_path):
    with pytest.raises(DataError, match=r"found nothing; expected one folder per class"):
        load_labelled(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"found 1 entries \(notes.txt"):
        load_labelled(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        load_labelled(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        load_labelled(tmp_path)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_tables_and_curves(shared, tmp_path):
    options = "--model tiny20 --samples 4 --step 400 --methods otsuki2024,random --out"
    arguments = [*options.split(), str(tmp_path)]
    done = headwater("evaluate", "--data", str(shared / "data" / "tiny20"), *arguments, "--randomise", "1")
    assert done.returncode == 0, done.stderr
    assert "| `otsuki2024` |" in done.stdout
    assert "4 of 4 images" in done.stderr and "measuring up to" in done.stderr
    names = {
        "results.parquet",
        "summary.csv",
        "summary.md",
        "summary.tex",
        "curves.json",
        "curves.png",
        "randomisation.csv",
        "randomisation.png",
        "settings.json",
    }
    assert names <= {path.name for path in tmp_path.iterdir()}
    again = headwater("evaluate", "--data", str(shared / "data" / "tiny20"), *arguments, "--seed", "1")
    assert again.returncode == 1
    assert "seed: 42 there, 1 asked" in again.stderr


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.full)])
def test_killed_at_random_moments_the_table_is_the_same(shared, tmp_path, kills):
    options = "--model tiny20 --samples 20 --batch-size 1 --methods otsuki2024,random --protocol budget --step 256"
    arguments = ["evaluate", "--data", str(shared / "data" / "tiny20"), *options.split(), "--out"]
    began = time.monotonic()
    assert headwater(*arguments, str(tmp_path / "whole")).returncode == 0
    chunk = (time.monotonic() - began) / 20
    moments = random.Random(0)
    for chunks in range(kills):
        process = started(*arguments, str(tmp_path / "killed"))
        while len(list(tmp_path.glob("killed/rows/*.parquet"))) < chunks and process.is_alive():
            time.sleep(0.01)
        process.join(moments.uniform(0, chunk))
        assert process.is_alive()
        process.kill()
        process.join()
    assert headwater(*arguments, str(tmp_path / "killed")).returncode == 0
    for name in ("results.parquet", "curves.json", "summary.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


XML = "<annotation><object><bndbox>{}</bndbox></object></annotation>".format(
    "<xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax>"
)


@pytest.mark.parametrize("place", ["val/class0", "Annotations", "val/Annotations/class0", "bbox/val"])
def test_annotations_beside_the_images_or_in_a_folder_of_their_own(tmp_path, place):
    for k in range(2):
        noise(tmp_path / "val" / f"class{k}" / f"{k}.png", k)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / "0.xml").write_text(XML)
    data = load_labelled(tmp_path)
    assert data.classes == ("class0", "class1")
    assert [p.boxes for p in data.images] == [(Box(2, 3, 9, 8),), ()]
    (tmp_path / place / "0.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="is not an annotation in ImageNet's format"):
        load_labelled(tmp_path)


def test_annotations_of_flat_folders(tmp_path):
    noise(tmp_path / "images" / "n00000001_1.jpg", 0)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "n00000001_1.xml").write_text(XML)
    assert load_labelled(tmp_path / "images").images[0].boxes == (Box(2, 3, 9, 8),)


def test_randomisation_over_a_data_set(model, folder):
    settings = Settings(("otsuki2024", "random"), samples=12, step=40, labels="positions")
    table = measure_randomisation(model, folder, settings, count=3, comparisons=2)
    assert len(table) == 2 * 2 * 3
    assert table["layer"].iloc[-1] == "stem"
    random = table[table["method"] == "random"]["correlation"]
    assert (random > 0.999).all(), "it looks at the image alone: the test of sanity that it must fail"
    assert (table[table["method"] == "otsuki2024"]["correlation"] < 0.999).all()
    assert randomisation_figure(table).startswith(b"\x89PNG")
