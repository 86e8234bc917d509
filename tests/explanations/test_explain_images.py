from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import EXAMPLES
from PIL import Image

import headwater as hw
from headwater.errors import ImageError, InputError

TABBY, ESPRESSO = EXAMPLES / "tabby.jpg", EXAMPLES / "espresso.jpg"


@pytest.fixture(scope="module")
def model():
    return hw.load_model("tiny20")


def test_an_image_in_memory_has_the_map_of_its_file(model):
    from_file = hw.explain(TABBY, model)
    with Image.open(TABBY) as image:
        pixels = np.array(image)
    for given in (pixels, Image.fromarray(pixels), TABBY.read_bytes(), torch.from_numpy(pixels).permute(2, 0, 1) / 255):
        e = hw.explain(given, model)
        assert torch.equal(e.heatmap, from_file.heatmap)
        assert e.path is None and e.name == "image" and e.image.size == from_file.image.size
    assert from_file.path == TABBY and from_file.name == "tabby.jpg"


def test_a_list_gives_a_list_in_its_order(model):
    grey = np.full((70, 90), 0.5)
    found = hw.explain([TABBY, grey, str(ESPRESSO)], model)
    assert [e.name for e in found] == ["tabby.jpg", "image-2", "espresso.jpg"]
    assert [e.card.class_name(e.predicted) for e in found[::2]] == ["tabby", "espresso"]
    assert torch.allclose(found[2].heatmap, hw.explain(ESPRESSO, model).heatmap, atol=1e-6)
    assert len(hw.explain((TABBY,), model)) == 1


def test_a_list_is_checked_before_any_work(model):
    with pytest.raises(InputError, match=r"image 2 of 3 must be .*got int"):
        hw.explain([TABBY, 5, TABBY], "no such model")
    with pytest.raises(InputError, match="the list of images is empty"):
        hw.explain([], model)
    with pytest.raises(ImageError, match="image-2 holds floating-point values"):
        hw.explain([TABBY, np.full((8, 8), 7.0)], model)


def test_images_in_memory_are_saved_by_their_name_and_never_over_each_other(model, tmp_path):
    first, second = (hw.explain(np.full((64, 64, 3), value, np.uint8), model, "otsuki2024") for value in (40, 41))
    target = first.card.class_name(first.predicted)
    assert first.stem == f"image.tiny20.otsuki2024.{target}"
    for e in (first, second, first):
        e.save(tmp_path, stem="map")
    assert {path.name for path in tmp_path.glob("*.json")} == {"map.json", "map-2.json"}
    record = json.loads((tmp_path / "map.json").read_text())
    assert record["image"] == "image" and record["made_from"]["image"].startswith("image (64 x 64, ")


def test_an_image_that_pillow_opened_keeps_its_files_name(model):
    with Image.open(ESPRESSO) as image:
        assert hw.explain(image, model).stem == "espresso.tiny20.headwater.espresso"


def test_an_explanation_may_be_made_by_hand_from_a_path_alone(model):
    e = hw.explain(TABBY, model)
    again = hw.ImageExplanation(**{**vars(e), "name": ""})
    assert again.name == "tabby.jpg"
    assert hw.ImageExplanation(**{**vars(e), "name": "", "path": None}).name == "image"


def test_the_old_module_has_the_names_still():
    from headwater import explanations, image_explanation

    assert image_explanation.explain is explanations.explain is hw.explain
