from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from helpers import EXAMPLES
from PIL import Image

from headwater.data.given import check_image, name_of, open_given, path_of
from headwater.errors import ImageError, InputError

TABBY = EXAMPLES / "tabby.jpg"


def opened(image, name="image"):
    check_image(image, name)
    return open_given(image, name)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    with Image.open(TABBY) as image:
        return np.array(image)


def test_every_kind_of_image_is_the_same_image(pixels):
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [
        TABBY,
        str(TABBY),
        TABBY.read_bytes(),
        memoryview(TABBY.read_bytes()),
        Image.fromarray(pixels),
        pixels,
        pixels / 255,
        (pixels / 255).astype(np.float32),
        pixels[::-1][::-1],
        tensor,
        (tensor / 255).requires_grad_(),
        (tensor / 255).double(),
    ]
    for kind in kinds:
        assert np.array_equal(np.asarray(opened(kind)), pixels), type(kind)


def test_grey_images_become_three_equal_channels(pixels):
    grey = pixels[..., 0]
    for given in (grey, grey[..., None], grey / 255, torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert np.array_equal(np.asarray(opened(given)), np.repeat(grey[..., None], 3, 2))


def test_transparent_parts_become_white(pixels):
    layered = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    for given in (layered, Image.fromarray(layered), torch.from_numpy(layered).permute(2, 0, 1)):
        assert (np.asarray(opened(given)) == 255).all()


def test_an_image_of_pillows_is_turned_upright_and_left_as_it_was():
    image, exif = Image.new("RGB", (30, 20)), Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image.save(stream, "jpeg", exif=exif)
    given = Image.open(stream)
    assert opened(given).size == (20, 30) and given.size == (30, 20)


def test_arrays_and_tensors_are_left_as_they_were(pixels):
    copy = pixels.copy()
    image = opened(pixels)
    image.paste((0, 0, 0), (0, 0, 50, 50))
    assert np.array_equal(pixels, copy)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 8, 9)), r"an array of shape \(3, 8, 9\).*Channels are last in arrays: give array\.transpose"),
        (torch.zeros(8, 9, 3), r"a tensor of shape \(8, 9, 3\).*Channels are first in tensors: give tensor\.permute"),
        (np.zeros((2, 8, 9, 3)), r"Several images are given as a list: list\(images\)"),
        (torch.zeros(2, 3, 8, 9), r"Several images are given as a list: list\(images\)"),
        (np.zeros(9), r"of shape \(9,\), not \(H, W\)"),
        (np.zeros((0, 9)), r"of shape \(0, 9\)"),
        (np.zeros((8, 9), np.int64), "holds int64, whose white value is unknown"),
        (np.zeros((8, 9), bool), "holds bool"),
        (torch.zeros(3, 8, 9, dtype=torch.int16), "holds int16"),
        ({"image": 1}, r"must be a file's path or bytes.*got dict.*headwater\.LRP\(model\)\(x\)"),
        (None, "got NoneType"),
        (3, "got int"),
    ],
)
def test_what_is_no_image_is_refused_with_what_is_accepted(image, message):
    with pytest.raises(InputError, match=message):
        check_image(image, "the image")


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_values_outside_0_to_1_are_refused_with_their_range(convert):
    values = np.full((8, 9), 2.5)
    with pytest.raises(ImageError, match=r"from 2\.5 to 2\.5, outside 0 to 1.*normalised for a network already"):
        opened(convert(values))
    values[0, 0] = np.nan
    with pytest.raises(ImageError, match="not finite"):
        opened(convert(values))


def test_broken_bytes_and_images_are_refused():
    with pytest.raises(ImageError, match="photo is not an image that can be read"):
        opened(b"no image", "photo")
    with pytest.raises(ImageError, match=r"photo is empty \(0 bytes\)"):
        opened(b"", "photo")
    with pytest.raises(ImageError, match="photo cannot be read"):
        opened(Image.open(io.BytesIO(TABBY.read_bytes()[:5000])), "photo")


def test_names_are_those_of_files_where_there_are_any():
    with Image.open(TABBY) as image:
        assert name_of(image) == name_of(TABBY) == name_of(str(TABBY), 3) == "tabby.jpg"
    assert name_of(b"") == "image" and name_of(Image.new("L", (2, 2)), 0) == "image-1"
    assert path_of(str(TABBY)) == TABBY and path_of(b"") is None
