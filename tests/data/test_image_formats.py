"""Images of more than 8 bits are scaled by what their files say, never by the values that happen to be in them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights

from headwater.data import Preprocessing, open_image
from headwater.errors import ImageError

UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # TIFF's SampleFormat
_S_MIN, _S_MAX = 340, 341


def tiff(
    path: Path, values: np.ndarray, bits: int, kind: int, photometric: int = 1, ranges: dict[int, float] | None = None
) -> Path:
    """A greyscale TIFF, uncompressed and little-endian, with the tags that the test is about."""
    height, width = values.shape
    if bits == 12:  # two values in three bytes
        pairs = values.reshape(-1, 2).astype(int)
        pixels = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    else:
        pixels = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags: dict[int, tuple[int, int | float]] = {
        256: (4, width),
        257: (4, height),
        258: (3, bits),
        259: (3, 1),
        262: (3, photometric),
        273: (4, 8),  # where the pixels begin
        277: (3, 1),
        278: (4, height),
        279: (4, len(pixels)),
        339: (3, kind),
        **{tag: (11, value) for tag, value in (ranges or {}).items()},
    }
    directory = struct.pack("<H", len(tags))
    for tag, (form, value) in sorted(tags.items()):
        directory += struct.pack("<HHI", tag, form, 1) + struct.pack({3: "<Hxx", 4: "<I", 11: "<f"}[form], value)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4))
    return path


def grey(path: Path) -> list[int]:
    image = np.asarray(open_image(path))
    assert (image == image[..., :1]).all()
    return image[..., 0].ravel().tolist()


@pytest.mark.parametrize("top", [0.2, 1.0])
def test_floating_point_from_0_to_1_is_black_to_white(tmp_path, top):
    values = np.linspace(0, top, 12, dtype=np.float32).reshape(3, 4)
    expected = (values.astype(np.float64) * 255).round().astype(int).ravel().tolist()
    assert grey(tiff(tmp_path / "f.tif", values, 32, FLOAT)) == expected
    Image.fromarray(values).save(tmp_path / "pillow.tiff")
    assert grey(tmp_path / "pillow.tiff") == expected


def test_floating_point_outside_0_to_1_is_refused_with_its_range(tmp_path):
    values = np.array([[-3.5, 0.0, 211.0, 7.0]], dtype=np.float32)
    with pytest.raises(ImageError, match=r"f\.tif holds floating-point values from -3\.5 to 211, outside 0 to 1"):
        open_image(tiff(tmp_path / "f.tif", values, 32, FLOAT))


def test_a_range_that_the_file_states_is_taken(tmp_path):
    values = np.array([[0.0, 51.0, 255.0, 1.0]], dtype=np.float32)
    assert grey(tiff(tmp_path / "f.tif", values, 32, FLOAT, ranges={_S_MAX: 255.0})) == [0, 51, 255, 1]
    dark = values / 255  # within 0 to 1, and still dark by what the file says
    assert grey(tiff(tmp_path / "d.tif", dark, 32, FLOAT, ranges={_S_MIN: 0.0, _S_MAX: 255.0})) == [0, 0, 1, 0]
    both = {_S_MIN: -100.0, _S_MAX: 155.0}
    signed = np.array([[-100, 0, 155, 55]], dtype=np.int16)
    assert grey(tiff(tmp_path / "s.tif", signed, 16, SIGNED, ranges=both)) == [0, 100, 255, 155]
    with pytest.raises(ImageError, match="outside 0 to 200"):
        open_image(tiff(tmp_path / "o.tif", values, 32, FLOAT, ranges={_S_MAX: 200.0}))
    with pytest.raises(ImageError, match="that is no range"):
        open_image(tiff(tmp_path / "n.tif", values, 32, FLOAT, ranges={_S_MIN: 3.0, _S_MAX: 3.0}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    values = np.full((3, 4), 0.5, dtype=np.float32)
    values[1] = bad
    with pytest.raises(ImageError, match="holds 4 values that are not finite"):
        open_image(tiff(tmp_path / "f.tif", values, 32, FLOAT))


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
@pytest.mark.parametrize("top", [200, 255, 256, 65535])
def test_sixteen_bits_are_sixteen_bits_whatever_their_maximum(tmp_path, ending, top):
    values = np.array([[0, top // 3], [top // 2, top]], dtype=np.uint16)
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(values).save(path)
    assert grey(path) == (values / 65535 * 255).round().astype(int).ravel().tolist()


def test_twelve_bits_and_inverted_greys_follow_the_files_tags(tmp_path):
    twelve = np.array([[0, 2048], [1365, 4095]], dtype=np.uint16)
    assert grey(tiff(tmp_path / "12.tif", twelve, 12, UNSIGNED)) == [0, 128, 85, 255]
    deep = np.array([[0, 13107, 65535, 100]], dtype=np.uint16)
    assert grey(tiff(tmp_path / "w16.tif", deep, 16, UNSIGNED, photometric=0)) == [255, 204, 0, 255]
    floats = np.array([[0.0, 0.2, 1.0, 1.0]], dtype=np.float32)
    assert grey(tiff(tmp_path / "wf.tif", floats, 32, FLOAT, photometric=0)) == [255, 204, 0, 0]


@pytest.mark.parametrize(("kind", "bits", "dtype"), [(SIGNED, 16, "i2"), (UNSIGNED, 32, "u4"), (SIGNED, 32, "i4")])
@pytest.mark.parametrize("top", [100, 30_000])
def test_integers_for_which_no_file_says_what_is_white_are_refused(tmp_path, kind, bits, dtype, top):
    values = np.array([[0, top]], dtype=dtype)
    with pytest.raises(ImageError, match=rf"signed or 32-bit integers \(0 to {top}\), and does not say .* is white"):
        open_image(tiff(tmp_path / "i.tif", values, bits, kind))


def test_signed_bytes_are_refused(tmp_path):
    """Pillow reads them as unsigned: -1 would be white."""
    with pytest.raises(ImageError, match="signed 8-bit integers"):
        open_image(tiff(tmp_path / "s.tif", np.array([[-1, 1]], dtype=np.int8), 8, SIGNED))


def test_the_orientation_of_a_deep_image_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(np.array([[0, 65535, 65535]], dtype=np.uint16)).save(tmp_path / "t.png", exif=exif)
    image = open_image(tmp_path / "t.png")
    assert image.size == (1, 3)
    assert np.asarray(image)[:, 0, 0].tolist() == [0, 255, 255]


def test_a_tiff_of_several_floating_point_channels_says_what_is_accepted(tmp_path):
    path = tiff(tmp_path / "f.tif", np.zeros((2, 6), dtype=np.float32), 32, FLOAT, photometric=2)
    with pytest.raises(ImageError, match="one channel of 32-bit floating point"):
        open_image(path)


@pytest.mark.parametrize("size", [(400, 10), (10, 400), (7, 171), (999, 60)])
def test_a_very_long_image_gives_torchvisions_input(size):
    """Only the part that is cropped is resized; positions are float32 there, so a value may round to its neighbour."""
    noise = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    theirs = ResNet18_Weights.IMAGENET1K_V1.transforms()(Image.fromarray(noise))
    ours = Preprocessing(256, 224)(Image.fromarray(noise))
    assert (ours - theirs).abs().max() <= 1.01 / 255 / 0.224


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
def test_the_longest_image_takes_no_more_than_its_crop(size):
    """Resized as a whole it would have 256 x 51,200,000 pixels, 39 GB."""
    x = Preprocessing(256, 224)(Image.new("RGB", size, (124, 116, 104)))
    assert x.shape == (3, 224, 224)
    assert x.abs().max() < 0.02, "ImageNet's mean everywhere"
    assert torch.equal(x, x[:, :1, :1].expand_as(x))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["tiff", "png"])
def test_an_orientation_turns_the_image_upright_whatever_its_format(tmp_path, suffix, orientation):
    values = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(values).save(tmp_path / f"x.{suffix}", exif=exif)
    turned = values[:, ::-1] if orientation in (2, 3, 5, 8) else values  # EXIF 2.3, tag Orientation
    turned = turned[::-1] if orientation in (3, 4, 7, 8) else turned
    upright = {5: values.T, 6: values[::-1].T, 7: values[::-1, ::-1].T, 8: values[:, ::-1].T}.get(orientation, turned)
    assert np.array_equal(np.asarray(open_image(tmp_path / f"x.{suffix}"))[..., 0], upright)
