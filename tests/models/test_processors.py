from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import transformers
from helpers import EXAMPLES
from PIL import Image

import headwater as hw
from headwater.data.preprocessing import NoImages, Preprocessing, seen, with_pipeline
from headwater.errors import InputError
from headwater.models.processors import ByProcessor, from_processor

STATED = [
    (transformers.ViTImageProcessor, {"size": {"height": 40, "width": 56}}),
    (transformers.ViTImageProcessorPil, {"size": {"height": 40, "width": 56}}),
    (transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 57}, "crop_pct": 0.9}),
    (transformers.ConvNextImageProcessor, {"size": {"shortest_edge": 384}}),
    (transformers.BitImageProcessor, {"size": {"shortest_edge": 60}, "crop_size": {"height": 48, "width": 52}}),
    (transformers.DeiTImageProcessor, {"size": {"height": 64, "width": 64}, "crop_size": {"height": 56, "width": 56}}),
    (transformers.MobileNetV2ImageProcessor, {"size": {"shortest_edge": 40}, "crop_size": {"height": 64, "width": 64}}),
    (transformers.ViTImageProcessor, {"size": {"height": 32, "width": 32}, "do_normalize": False}),
    (transformers.ViTImageProcessor, {"size": {"height": 32, "width": 32}, "do_rescale": False}),
    (transformers.ViTImageProcessor, {"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5}),
    (transformers.BitImageProcessor, {"do_resize": False, "crop_size": {"height": 96, "width": 96}}),
]
WRAPPED = [
    (transformers.LevitImageProcessor, {}),
    (transformers.PoolFormerImageProcessor, {}),
    (transformers.PerceiverImageProcessor, {}),
    (transformers.EfficientNetImageProcessor, {"size": {"height": 64, "width": 64}}),
    (transformers.MobileViTImageProcessor, {}),
    (transformers.DonutImageProcessor, {"size": {"height": 64, "width": 48}}),
]
IDS = [kind.__name__ for kind, _ in WRAPPED]


@pytest.mark.parametrize(("kind", "settings"), STATED)
@pytest.mark.parametrize("name", ["tabby.jpg", "espresso.jpg"])
def test_settings_become_a_preprocessing_that_prepares_photographs_alike(kind, settings, name):
    """As the processor to rounding in 8 bits; a processor of Pillow's resizes as we do."""
    processor = kind(**settings)
    prepare = from_processor(processor)
    assert type(prepare) is Preprocessing
    image = Image.open(EXAMPLES / name)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0].float()
    levels = (prepare(image) - theirs).abs() * torch.tensor(prepare.std)[:, None, None] * 255
    assert prepare.size == tuple(theirs.shape[1:])
    assert levels.max() < (0.01 if kind.__name__.endswith("Pil") else 8) and levels.mean() < 0.5


@pytest.mark.parametrize(("kind", "settings"), WRAPPED, ids=IDS)
def test_a_processor_with_other_steps_is_called_itself(kind, settings):
    processor = kind(**settings)
    prepare = from_processor(processor)
    assert isinstance(prepare, ByProcessor) and prepare.described() == f"by transformers' {kind.__name__}"
    image = Image.open(EXAMPLES / "tabby.jpg")
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0].float()
    assert torch.equal(prepare(image), theirs) and prepare.size == tuple(theirs.shape[1:])
    assert pickle.loads(pickle.dumps(prepare)) == prepare != from_processor(kind(**settings, do_normalize=False))


@pytest.mark.parametrize(("kind", "settings"), WRAPPED + STATED[:5])
@pytest.mark.parametrize("size", [(301, 411), (640, 200)])
def test_a_spot_in_the_input_lies_on_the_same_spot_of_the_image(kind, settings, size):
    """A bright square far from the middle, where the box says that the network sees it."""
    prepare = from_processor(kind(**settings))
    width, height = size
    box = prepare.box(width, height)
    across, down = (box.left + 2 * box.right) / 3, (box.top + 2 * box.bottom) / 3
    left, top = min(round(across), width - 40), min(round(down), height - 40)
    image = Image.new("RGB", size)
    dark = prepare(image)
    image.paste((255, 255, 255), (left, top, left + 30, top + 30))
    square = (prepare(image) - dark).mean(0).numpy()
    rows, columns = square.shape
    y = (np.arange(rows) + 0.5) @ square.sum(1) / square.sum() * (box.bottom - box.top) / rows + box.top
    x = (np.arange(columns) + 0.5) @ square.sum(0) / square.sum() * (box.right - box.left) / columns + box.left
    fine = [0.1 * side for side in ((box.right - box.left) / columns, (box.bottom - box.top) / rows)]  # of a pixel
    assert x == pytest.approx(left + 15, abs=fine[0]) and y == pytest.approx(top + 15, abs=fine[1])


@pytest.mark.parametrize("kind", [transformers.MobileViTImageProcessor, transformers.LevitImageProcessor])
def test_the_colours_that_the_network_sees_are_the_images(kind):
    prepare = from_processor(kind())
    image = Image.new("RGB", (256, 256), (200, 100, 30))
    assert seen(prepare(image), prepare).getpixel((120, 120)) == pytest.approx((200, 100, 30), abs=1)


def test_what_is_no_image_in_rows_and_columns_says_what_to_do():
    prepare = from_processor(transformers.Siglip2ImageProcessor())
    assert isinstance(prepare, NoImages)
    with pytest.raises(InputError, match=r"makes \(1, 256, 768\) of an image.*headwater\.LRP\(model\)"):
        prepare(Image.new("RGB", (64, 64)))


def test_inputs_of_many_sizes_are_explained_one_by_one(tiny):
    prepare = from_processor(transformers.TextNetImageProcessor(size={"shortest_edge": 32}))
    assert not prepare.is_sized
    wide, high = Image.new("RGB", (90, 45), "red"), Image.new("RGB", (45, 90), "blue")
    maps = [e.heatmap.shape for e in hw.explain([wide, high], tiny, "otsuki2024", preprocessing=prepare)]
    assert maps == [(1, 32, 64), (1, 64, 32)]
    with pytest.raises(InputError, match="sizes that depend on their own"):
        _ = prepare.size


def test_the_papers_pipelines_are_not_for_other_processors():
    assert with_pipeline(Preprocessing((48, 64), None), "stretch").size == (48, 64)
    with pytest.raises(InputError, match="resized, cropped and normalised alone"):
        with_pipeline(from_processor(transformers.LevitImageProcessor()), "crop")
