from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import EXAMPLES
from PIL import Image
from torchvision.models import ResNet18_Weights

from headwater.data import Box, Preprocessing, open_image
from headwater.data.preprocessing import to_image
from headwater.errors import ImageError


def gradient(mode: str = "RGB") -> Image.Image:
    """An image whose left half is dark and right half bright."""
    values = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "1", "YCbCr"])
def test_colour_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("p.jpg" if mode in ("CMYK", "YCbCr") else "p.png")
    gradient(mode).save(path)
    image = open_image(path)
    assert image.mode == "RGB"
    values = np.asarray(image, dtype=float).mean(2)
    assert values[:, -5:].mean() > 200 > 60 > values[:, :5].mean()


def test_sixteen_bits_are_scaled(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((5, 5), 32896, dtype=np.uint16)).save(path)
    assert np.asarray(open_image(path)).tolist() == np.full((5, 5, 3), 128).tolist()


def test_transparency_becomes_white(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    assert np.asarray(open_image(path)).min() == 255


def test_exif_orientation_is_applied(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    gradient().save(path, exif=exif)
    image = open_image(path)
    assert image.size == (30, 40)
    assert np.asarray(image, dtype=float)[-5:].mean() > 200


def test_files_that_are_no_images(tmp_path):
    empty, text, cut = tmp_path / "empty.jpg", tmp_path / "text.jpg", tmp_path / "cut.jpg"
    empty.touch()
    text.write_text("not an image")
    whole = (EXAMPLES / "tabby.jpg").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    for path, message in (
        (empty, "0 bytes"),
        (text, "not an image"),
        (cut, "cannot be read"),
        (tmp_path, "is a folder"),
        (tmp_path / "none.jpg", "does not exist"),
    ):
        with pytest.raises(ImageError, match=message):
            open_image(path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(path)
    with pytest.raises(ImageError, match=r"too large|30000 x 30000"):
        open_image(path)
    path = tmp_path / "large.png"
    Image.new("1", (11_000, 11_000)).save(path)
    with pytest.raises(ImageError, match="11000 x 11000 pixels"):
        open_image(path)


@pytest.mark.parametrize("size", [(640, 480), (300, 451), (97, 231), (256, 256)])
def test_preprocessing_equals_torchvisions(size):
    image = Image.fromarray(np.random.RandomState(0).randint(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    theirs = ResNet18_Weights.IMAGENET1K_V1.transforms()(image)
    torch.testing.assert_close(Preprocessing(256, 224)(image), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (511, 257), (64, 64)])
def test_a_spot_in_the_network_lies_on_the_same_spot_of_the_image(size):
    """A bright square in the image, found in the network's input, comes back to where it was."""
    width, height = size
    x0, y0, side = round(width * 0.55), round(height * 0.4), max(4, min(size) // 8)
    values = np.zeros((height, width, 3), dtype=np.uint8)
    values[y0 : y0 + side, x0 : x0 + side] = 255
    prepare = Preprocessing(128, 112, mean=(0.0,) * 3, std=(1.0,) * 3)
    laid = to_image(prepare(Image.fromarray(values)).mean(0), prepare.box(width, height), width, height)
    mass = np.nan_to_num(laid)
    rows, columns = np.indices(mass.shape)
    centre = (mass * columns).sum() / mass.sum(), (mass * rows).sum() / mass.sum()
    expected = x0 + (side - 1) / 2, y0 + (side - 1) / 2
    tolerance = 0.3 * min(size) / 128 + 0.05  # less than a third of a pixel of the network's input
    assert abs(centre[0] - expected[0]) < tolerance
    assert abs(centre[1] - expected[1]) < tolerance


def test_what_the_network_did_not_see_is_nan():
    prepare = Preprocessing(64, 64)
    laid = to_image(torch.ones(64, 64), prepare.box(600, 400), 600, 400)
    assert np.isnan(laid[:, :99]).all() and np.isnan(laid[:, 501:]).all()
    assert np.allclose(laid[:, 101:499], (64 / 400) ** 2), "relevance per image pixel"


def test_stretching_shows_the_network_all_of_the_image():
    stretched = Preprocessing(32, 32, stretch=True)
    image = Image.fromarray(np.linspace(0, 255, 60 * 20).reshape(20, 60).astype(np.uint8)).convert("RGB")
    assert stretched(image).shape == (3, 32, 32)
    assert stretched.box(60, 20) == Box(0, 0, 60, 20)
    laid = to_image(torch.arange(32.0).expand(32, 32), stretched.box(60, 20), 60, 20)
    assert laid.shape == (20, 60) and np.isfinite(laid).all()
    # Pixels are 32 / 60 by 32 / 20 of the map's; the first reaches a thirtieth into the rise from 0 to 1.
    first, last = 32 / 20 * (1 / 30) ** 2 / 2, 32 / 20 * (32 / 60 * 31 - (1 / 30) ** 2 / 2)
    assert laid[0, 0] == pytest.approx(first) and laid[0, -1] == pytest.approx(last)
    assert (np.diff(laid[0]) >= 0).all()
