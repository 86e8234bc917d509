"""Training on a handful of generated images: what it draws, what it leaves, and that a killed run ends the same."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from headwater.data.tiny20 import load_tiny20
from headwater.errors import DataError
from headwater.models.tiny20 import CLASSES, Tiny20
from headwater.training.tiny20 import AugmentedImages, EpochOrder, Recipe, Tiny20Training, train_tiny20

RECIPE = Recipe(
    epochs=3, full_size_epochs=1, small_size=16, full_size=24, batch_size=8, widths=(4, 4, 4, 4), depths=(1, 1, 1, 2)
)


@pytest.fixture
def data(tmp_path):
    """Two images a class for training, in a tar file, and one for validation, in folders."""
    root, random = tmp_path / "data", np.random.RandomState(0)
    root.mkdir()
    rows = ["index,wnid,name"] + [f"{k},n{k:03d},{name}" for k, name in enumerate(CLASSES)]
    (root / "classes.csv").write_text("\n".join(rows))

    def jpeg(k: int) -> bytes:
        stream = io.BytesIO()
        values = (random.rand(64, 64, 3) * 100 + 7 * k).astype(np.uint8)
        Image.fromarray(values).save(stream, format="jpeg")
        return stream.getvalue()

    with tarfile.open(root / "train.tar", "w") as tar:
        for k in range(20):
            for i in range(2):
                member, content = tarfile.TarInfo(f"train/n{k:03d}/{i}.JPEG"), jpeg(k)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for k in range(20):
        (root / "val" / f"n{k:03d}").mkdir(parents=True)
        (root / "val" / f"n{k:03d}" / "0.JPEG").write_bytes(jpeg(k))
    return root


def test_data_from_tar_and_folders(data):
    train, val = load_tiny20(data, "train"), load_tiny20(data, "val")
    assert train.images.shape == (40, 3, 64, 64)
    assert train.labels.tolist() == sorted([*range(20), *range(20)])
    assert val.labels.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "classes.csv").unlink(), "no classes.csv"),
        (lambda root: (root / "train.tar").unlink(), "neither train/ nor train.tar"),
        (lambda root: (root / "val/n000/0.JPEG").write_text("x"), "is not an image"),
        (
            lambda root: (root / "val/n000").rename(root / "val/other"),
            "val/other/0.JPEG does not lie in a folder that classes.csv lists",
        ),
    ],
)
def test_incomplete_data_say_what_is_wrong(data, tmp_path, damage, message):
    damage(data)
    with pytest.raises(DataError, match=message):
        train_tiny20(data, tmp_path / "run", RECIPE)


def test_every_epoch_draws_anew_and_always_the_same(data):
    images = AugmentedImages(load_tiny20(data, "train"), RECIPE)
    first, second = images[0, 5][0], images[1, 5][0]
    assert not torch.equal(first, second)
    assert torch.equal(first, images[0, 5][0])
    assert first.shape == (3, 16, 16) and images[2, 5][0].shape == (3, 24, 24)
    order = EpochOrder(40, seed=0)
    zero = list(order)
    order.set_epoch(1)
    one = list(order)
    assert sorted(index for _, index in one) == list(range(40))
    assert [index for _, index in zero] != [index for _, index in one]


def test_lightning_announces_the_epoch_to_the_order(data, tmp_path, monkeypatch):
    seen = []
    original = AugmentedImages.__getitem__
    monkeypatch.setattr(AugmentedImages, "__getitem__", lambda s, k: (seen.append(k[0]), original(s, k))[1])
    train_tiny20(data, tmp_path / "run", RECIPE)
    assert sorted(set(seen)) == [0, 1, 2]


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


def test_a_killed_run_ends_in_the_same_weights(data, tmp_path, monkeypatch):
    alone = train_tiny20(data, tmp_path / "alone", RECIPE)
    step, steps = Tiny20Training.training_step, []

    def dies(self, batch, index):
        steps.append(index)
        if len(steps) == 8:  # in the middle of the second epoch
            raise Killed
        return step(self, batch, index)

    monkeypatch.setattr(Tiny20Training, "training_step", dies)
    with pytest.raises(Killed):
        train_tiny20(data, tmp_path / "killed", RECIPE)
    assert not (tmp_path / "killed" / "tiny20.safetensors").exists()
    monkeypatch.setattr(Tiny20Training, "training_step", step)
    resumed = train_tiny20(data, tmp_path / "killed", RECIPE)
    for (name, a), b in zip(load_file(alone.weights).items(), load_file(resumed.weights).values(), strict=True):
        assert torch.equal(a, b), name
    assert alone.accuracy == resumed.accuracy


def test_a_run_leaves_weights_that_load_and_numbers(data, tmp_path):
    trained = train_tiny20(data, tmp_path / "run", RECIPE)
    network = Tiny20(RECIPE.widths, RECIPE.depths)
    network.load_state_dict(load_file(trained.weights))
    numbers = json.loads((tmp_path / "run" / "accuracy.json").read_text())
    assert numbers["accuracy"] == trained.accuracy
    assert set(numbers["per_class"]) == set(CLASSES)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["epochs"] == 3


def test_a_folder_of_another_recipe_is_refused(data, tmp_path):
    train_tiny20(data, tmp_path / "run", RECIPE)
    from dataclasses import replace

    with pytest.raises(DataError, match=r"max_lr: 0.002 there, 0.5 asked"):
        train_tiny20(data, tmp_path / "run", replace(RECIPE, max_lr=0.5))
