"""The papers' trainings on generated images: the split, what a run leaves, and that a kill changes nothing."""

from __future__ import annotations

import json
import re
import time
import warnings
from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch
import torchvision
from command import headwater, started
from helpers import fill_disk
from PIL import Image
from safetensors.torch import load_file

import headwater as hw
from headwater.data.labelled import load_labelled
from headwater.errors import CheckpointError, DataError, InputError, OutputError
from headwater.methods.abn import has_attention
from headwater.models import find_runs
from headwater.training.classifier import ClassifierTraining, TrainingImages, start_network, train_classifier
from headwater.training.loading import EpochOrder, WholeCheckpoints
from headwater.training.recipes import RECIPES, Recipe, split_images

TINY = Recipe(
    "otsuki2024", arch="resnet18", start="none", validation=4, size=32, batch_size=4, epochs=3, lr=0.01, patience=9
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four classes with six images for training and two for testing each, of a colour a class."""
    root, random = tmp_path_factory.mktemp("data"), np.random.RandomState(0)
    for split, count in (("train", 6), ("test", 2)):
        for k in range(4):
            folder = root / split / f"class{k}"
            folder.mkdir(parents=True)
            for i in range(count):
                values = random.rand(30, 40, 3) * 120 + 100 * np.eye(4, 3)[k]
                Image.fromarray(values.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train_classifier(data, tmp_path_factory.mktemp("runs") / "seed-0", TINY).folder


@pytest.fixture
def cub(shared, tmp_path):
    """The official lists with empty files for images."""
    root = tmp_path / "CUB_200_2011"
    root.mkdir()
    for path in (shared / "data" / "cub-200-2011").glob("*.txt"):
        (root / path.name).write_text(path.read_text())
    for line in (root / "images.txt").read_text().splitlines():
        path = root / "images" / line.split()[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize(("name", "counts"), [("otsuki2024", (5394, 600, 5794)), ("doublet2024", (5794, 200, 5794))])
def test_cub_is_split_as_the_papers_say(cub, name, counts):
    train, test = load_labelled(cub, "train"), load_labelled(cub, "test")
    split = split_images(train, test, RECIPES[name].validation, seed=0)
    assert (len(split.train), len(split.validation), len(split.test)) == counts
    names = split.names()
    assert len({n for part in names.values() for n in part}) == 11788
    per_class = np.bincount([p.label for p in split.validation], minlength=200)
    assert per_class.min() == per_class.max() == RECIPES[name].validation // 200
    assert split == split_images(train, test, RECIPES[name].validation, seed=0)
    assert split.validation != split_images(train, test, RECIPES[name].validation, seed=1).validation
    with pytest.raises(DataError, match="5994 validation images were asked for, of 5994"):
        split_images(train, test, 5994, 0)


def test_an_incomplete_cub_says_what_is_missing(cub, tmp_path):
    (cub / "images" / "001.Black_footed_Albatross" / "Black_Footed_Albatross_0046_18.jpg").unlink()
    with pytest.raises(DataError, match="1 of 5794 images of split 'test' are missing"):
        train_classifier(cub, tmp_path / "run", RECIPES["otsuki2024"])
    (cub / "classes.txt").write_text((cub / "classes.txt").read_text().replace("002.Laysan", "002.Other"))
    with pytest.raises(DataError, match=r"which is not its folder's class in classes\.txt"):
        train_classifier(cub, tmp_path / "run", RECIPES["otsuki2024"])


def test_recipes_are_table_a(shared):
    """What Otsuki et al. print in Table A and say in Sec. A, row by row."""
    text = (shared / "papers" / "otsuki2024-lrp-for-resnet.txt").read_text()
    table = dict(line.split("\t") for line in text.split("**Table A:**")[1].splitlines() if line.count("\t") == 1)
    printed = {name: re.sub(r"[$ ]", "", value) for name, value in table.items()}
    recipe = RECIPES["otsuki2024"]
    assert printed["Optimizer"] == f"SGDw/momentum{recipe.momentum}"
    assert printed["Learning rate"] == "1.0\\times10^{-3}" and recipe.lr == 1e-3
    assert printed["Weight decay"] == "1.0\\times10^{-4}" and recipe.weight_decay == 1e-4
    sizes = (recipe.epochs, recipe.batch_size, recipe.size)
    assert tuple(int(printed[row]) for row in ("#Epoch", "Batch size", "Image size")) == sizes
    assert "decreases by a factor of 10 every 30 epochs" in text and recipe.decay_every == 30
    assert "did not improve for six consecutive epochs" in text and recipe.patience == 6
    assert "resized to a uniform dimension" in text and recipe.preprocessing == hw.Preprocessing(224, 224, stretch=True)
    assert recipe.rotation == recipe.brightness == 0
    doublet = RECIPES["doublet2024"]
    assert (doublet.lr, doublet.batch_size, doublet.patience, doublet.decay_every) == (1e-3, 32, 6, None)
    assert doublet.rotation > 0 and doublet.brightness > 0


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_start_from_the_weights_that_the_authors_code_loads(name, monkeypatch):
    """Their code calls ``resnet50(pretrained=True)``; torchvision says which file that is."""
    asked = []

    def load(url, *_, **__):
        asked.append(url)
        return torchvision.models.resnet50().state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", load)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchvision.models.resnet50(pretrained=True)
    _, source = start_network(RECIPES[name], 200)
    assert asked[0] == asked[1] and asked[0].endswith("/resnet50-0676ba61.pth")
    assert source == "ResNet50_Weights.IMAGENET1K_V1"


def test_the_published_recipe_is_the_authors_code(data):
    recipe = RECIPES["otsuki2024-published"]
    assert recipe == replace(RECIPES["otsuki2024"], name=recipe.name, pipeline="crop", decay_every=None)
    assert recipe.preprocessing == hw.Preprocessing(256, 224)
    steps = TrainingImages(load_labelled(data, "train").images, recipe, recipe.preprocessing).transform.transforms
    names = [type(step).__name__ for step in steps]
    assert names == ["ToImage", "Resize", "RandomResizedCrop", "RandomHorizontalFlip", "ToDtype", "Normalize"]
    assert steps[1].size == [256] and steps[2].size == (224, 224)
    assert (tuple(steps[2].scale), tuple(steps[2].ratio)) == ((0.08, 1.0), (3 / 4, 4 / 3))
    with pytest.raises(InputError, match="pipeline must be one of crop, stretch, got 'pad'"):
        replace(recipe, pipeline="pad")


def test_every_image_is_trained_on_in_full_precision(data, tmp_path, monkeypatch):
    """Neither mixed precision nor dropped images: 20 images in batches of 8 are 8, 8 and 4."""
    sizes, precision, build = [], [], lightning.Trainer

    def recording(**options):
        precision.append(options["precision"])
        return build(**options)

    monkeypatch.setattr(lightning, "Trainer", recording)
    monkeypatch.setattr(
        ClassifierTraining,
        "on_train_batch_start",
        lambda self, batch, index: sizes.append((len(batch[0]), batch[0].dtype)),
    )
    run = train_classifier(data, tmp_path / "run", replace(TINY, batch_size=8, epochs=1, pipeline="crop")).folder
    assert sizes == [(8, torch.float32), (8, torch.float32), (4, torch.float32)] and precision == ["32-true"]
    card = hw.load_model(run).card
    assert card.preprocessing == hw.Preprocessing(36, 32)
    assert card.weights == f"{run / 'model.safetensors'}, trained from random" and card.version is None
    with pytest.raises(InputError, match="20 training images in batches of 19 leave a batch of one image"):
        train_classifier(data, tmp_path / "other", replace(TINY, batch_size=19))


def test_a_run_says_which_weights_it_began_with(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    card = json.loads((run / "card.json").read_text())
    assert card["start"] == "random"
    (folder / "card.json").write_text(json.dumps({**card, "start": "ResNet50_Weights.IMAGENET1K_V1"}))
    assert hw.load_model(folder).card.version == "ResNet50_Weights.IMAGENET1K_V1"
    (folder / "card.json").write_text(json.dumps({**card, "start": 1}))
    with pytest.raises(CheckpointError, match="start must be text or null"):
        hw.load_model(folder)
    with pytest.raises(InputError, match="has weights of its own; weights='v1' goes with the name of a network"):
        hw.load_model(run, weights="v1")


def test_images_are_augmented_by_epoch_and_index_alone(data):
    images = load_labelled(data, "train").images
    recipe = replace(TINY, rotation=15.0, brightness=0.2)
    items = TrainingImages(images, recipe, hw.Preprocessing(32, 32, stretch=True))
    assert items[0, 5][0].shape == (3, 32, 32)
    assert torch.equal(items[0, 5][0], items[0, 5][0])
    assert not torch.equal(items[0, 5][0], items[1, 5][0])
    assert items[0, 5][1] == images[5].label


def test_several_processes_share_one_order(monkeypatch):
    alone = list(EpochOrder(10, 0))
    shares = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
        shares.append(list(EpochOrder(10, 0)))
    assert [len(share) for share in shares] == [3, 3, 3]
    assert sorted(key for share in shares for key in share) == sorted(alone[:9])


def test_a_run_is_a_model(run, data):
    model = hw.load_model(run)
    assert model.card.classes == ("class0", "class1", "class2", "class3")
    assert model.card.preprocessing == hw.Preprocessing(32, 32, stretch=True)
    e = hw.explain(data / "test" / "class0" / "0.png", model=run)
    assert e.conservation.error.item() < 1e-5
    assert e.image_map.shape == (30, 40) and np.isfinite(e.image_map).all(), "the network sees all of the image"
    assert {p.name for p in run.iterdir()} >= {"recipe.json", "split.json", "logs", "checkpoints", "accuracy.json"}
    split = json.loads((run / "split.json").read_text())
    assert [len(split[part]) for part in ("train", "validation", "test")] == [20, 4, 8]
    assert hw.load_model(run.parent).card.name == str(run), "the folder of one run is that run"
    assert find_runs(run.parent) == [run]
    assert not torch.are_deterministic_algorithms_enabled(), "training leaves the process as it was"


def test_a_finished_run_is_returned_and_another_refused(run, data):
    began = (run / "model.safetensors").stat().st_mtime_ns
    assert train_classifier(data, run, TINY).folder == run
    assert (run / "model.safetensors").stat().st_mtime_ns == began
    with pytest.raises(DataError, match=r"lr: 0.01 there, 0.02 asked"):
        train_classifier(data, run, replace(TINY, lr=0.02))
    with pytest.raises(CheckpointError, match="is a run of resnet18, not of resnet50"):
        hw.load_model(run, arch="resnet50")


def test_another_split_is_refused(run, data, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "recipe.json").write_text((run / "recipe.json").read_text())
    split = json.loads((run / "split.json").read_text())
    (copy / "split.json").write_text(json.dumps({**split, "validation": split["validation"][::-1]}))
    with pytest.raises(DataError, match=r"another split \(validation differ\)"):
        train_classifier(data, copy, TINY)


def test_folders_without_a_run(tmp_path, run):
    with pytest.raises(CheckpointError, match="holds no finished run"):
        hw.load_model(tmp_path)
    for k in range(2):
        (tmp_path / f"seed-{k}").mkdir()
        for name in ("card.json", "model.safetensors"):
            (tmp_path / f"seed-{k}" / name).write_bytes((run / name).read_bytes())
    with pytest.raises(InputError, match=r"holds 2 runs \(seed-0, seed-1\); name one"):
        hw.load_model(tmp_path)
    (tmp_path / "seed-0" / "card.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not the card of a run"):
        hw.load_model(tmp_path / "seed-0")


def test_an_attention_branch_network_is_trained_by_both_losses(data, tmp_path):
    recipe = replace(TINY, attention_after="layer3", epochs=1)
    module = ClassifierTraining(recipe, 4)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    loss, logits = module.loss(images, labels)
    said = module.network.attend(images)
    entropy = torch.nn.functional.cross_entropy
    torch.testing.assert_close(loss, entropy(said.logits, labels) + entropy(said.branch_logits, labels))
    assert logits.shape == (4, 4)
    model = hw.load_model(train_classifier(data, tmp_path / "run", recipe).folder)
    assert has_attention(model)
    assert hw.load_method("abn", model)(torch.randn(1, 3, 32, 32)).heatmap.shape == (1, 32, 32)


def test_start_weights_from_a_file_but_for_the_last_layer(tmp_path):
    torch.manual_seed(3)
    trained = torchvision.models.resnet18(num_classes=10)
    torch.save(trained.state_dict(), tmp_path / "start.pth")
    network, source = start_network(replace(TINY, start=str(tmp_path / "start.pth")), 4)
    assert source == str(tmp_path / "start.pth")
    assert torch.equal(network.layer4[1].conv2.weight, trained.layer4[1].conv2.weight)
    assert network.fc.weight.shape == (4, 512)
    with pytest.raises(CheckpointError, match="does not fit resnet50"):
        start_network(replace(TINY, arch="resnet50", start=str(tmp_path / "start.pth")), 4)


def test_a_run_that_had_stopped_early_does_not_train_on(data, tmp_path):
    recipe = replace(TINY, epochs=20, patience=1, lr=0.5)
    whole = train_classifier(data, tmp_path / "whole", recipe)
    assert whole.epochs < 20
    # Killed after the last epoch, before the weights were exported.
    for name in ("accuracy.json", "card.json", "model.safetensors"):
        (whole.folder / name).rename(whole.folder / f"{name}.before")
    again = train_classifier(data, whole.folder, recipe)
    assert (again.epochs, again.accuracy) == (whole.epochs, whole.accuracy)
    before = whole.folder / "model.safetensors.before"
    assert (whole.folder / "model.safetensors").read_bytes() == before.read_bytes()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"epoch": 1}, path)
    fill_disk(monkeypatch)
    with pytest.raises(OutputError, match="No space left on device"):
        WholeCheckpoints().save_checkpoint({"epoch": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


class Killed(lightning.Callback):
    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == 8:
            raise KeyboardInterrupt


def test_stopped_in_the_middle_of_an_epoch_it_ends_in_the_same_weights(run, data, tmp_path, monkeypatch):
    build = lightning.Trainer

    def stopping(**options):
        return build(**{**options, "callbacks": [*options["callbacks"], Killed()]})

    monkeypatch.setattr(lightning, "Trainer", stopping)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_classifier(data, tmp_path / "killed", TINY)
    monkeypatch.undo()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    train_classifier(data, tmp_path / "killed", TINY)
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_command_trains_five_seeds_and_survives_a_kill(data, tmp_path):
    def arguments(out, seeds):
        options = "--weights none --arch resnet18 --size 32 --epochs 2 --validation 4 --batch-size 4"
        return ["train", "cub-resnet50", "--data", str(data), "--out", str(out), "--seeds", seeds, *options.split()]

    whole = headwater(*arguments(tmp_path / "whole", "0,1"))
    assert whole.returncode == 0, whole.stderr
    assert "over 2 seeds" in whole.stdout and "±" in whole.stdout
    process = started(*arguments(tmp_path / "killed", "0,1"))
    while not list(tmp_path.glob("killed/seed-1/checkpoints/last.ckpt")) and process.is_alive():
        time.sleep(0.01)
    assert process.is_alive()
    process.kill()
    process.join()
    resumed = headwater(*arguments(tmp_path / "killed", "0,1"))
    assert resumed.returncode == 0, resumed.stderr
    for seed in (0, 1):
        first, second = (tmp_path / name / f"seed-{seed}" / "model.safetensors" for name in ("whole", "killed"))
        assert first.read_bytes() == second.read_bytes()
    wrong = headwater(*arguments(tmp_path / "whole", "0,0"))
    assert wrong.returncode == 1 and "seeds must be different" in wrong.stderr
