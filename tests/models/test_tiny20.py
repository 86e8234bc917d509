"""What the bundled network must reach, and what its model card says it reaches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import EXAMPLES

import headwater as hw
from headwater.data.labelled import load_labelled
from headwater.data.tiny20 import load_tiny20
from headwater.models import network_input
from headwater.models.tiny20 import CLASSES
from headwater.training.tiny20 import evaluate

CARD = EXAMPLES.parent / "docs" / "model-card-tiny20.md"
WEIGHTS = Path(hw.__file__).parent / "models" / "tiny20.safetensors"


@pytest.fixture(scope="module")
def model():
    return hw.load_model("tiny20")


def test_it_fits_into_the_package():
    assert WEIGHTS.stat().st_size <= 8_000_000


def test_validation_accuracy_is_above_the_floor_and_as_the_card_says(shared, model):
    accuracy, per_class = evaluate(model, load_tiny20(shared / "data" / "tiny20", "val"))
    assert accuracy >= 0.80
    card = CARD.read_text()
    assert re.search(rf"\*\*{100 * accuracy:.1f} ?%\*\* of 1,000 images", card)
    for name, value in per_class.items():
        assert re.search(rf"^\| {name} \| {100 * value:.0f} ?% \|$", card, re.M), name


def test_full_size_photographs_are_above_the_floor_and_as_the_card_says(shared, model):
    images = load_labelled(shared / "data" / "imagenet-sample").images
    tiny = load_labelled(shared / "data" / "tiny20", "val").images
    wnid = {image.label: Path(image.name).parts[-2] for image in tiny}
    right = 0
    for label in range(20):
        (photo,) = (p for p in images if p.name.startswith(wnid[label]))
        with torch.no_grad():
            right += int(model(network_input(model, [photo.open()])).argmax()) == label
    assert right >= 15
    assert f"**{right} of 20**" in CARD.read_text()


@pytest.mark.parametrize("name", ["tabby", "espresso"])
def test_the_example_photographs_are_predicted_right(model, name):
    e = hw.explain(EXAMPLES / f"{name}.jpg", model=model)
    assert e.card.class_name(e.predicted) == name
    assert e.probability.item() > 0.5
    assert e.conservation.error.item() < 1e-5


def test_it_has_identity_and_projected_shortcuts(model):
    flow = hw.LRP(model)(torch.zeros(1, 3, 64, 64)).flow
    assert [join.module for join in flow.joins][:2] == ["layer1.0", "layer2.0"]
    projected = [name for name, module in model.named_modules() if name.endswith("downsample") and module is not None]
    assert 0 < len(projected) < len(flow.joins)
    assert len(CLASSES) == 20
