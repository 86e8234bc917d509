from __future__ import annotations

import pytest
import torch
from PIL import Image

from headwater.data.preprocessing import NoImages, Preprocessing, with_pipeline
from headwater.errors import InputError


@pytest.mark.parametrize(
    ("prepare", "size", "box"),
    [
        (Preprocessing((32, 48), None), (32, 48), (0, 0, 90, 60)),
        (Preprocessing((32, 48), (16, 24)), (16, 24), (22.5, 15, 67.5, 45)),
        (Preprocessing(30, (20, 40)), (20, 40), (4, 10, 84, 50)),
        (Preprocessing(None, (40, 60)), (40, 60), (15, 10, 75, 50)),
        (Preprocessing(None, (80, 90)), (80, 90), (0, -10, 90, 70)),
        (Preprocessing(30, 25), (25, 25), (20, 4, 70, 54)),
        (Preprocessing(30, 25, corner="down"), (25, 25), (20, 4, 70, 54)),
        (Preprocessing(30, 27, corner="down"), (27, 27), (18, 2, 72, 56)),
        (Preprocessing(30, 27), (27, 27), (18, 4, 72, 58)),
    ],
)
def test_heights_and_widths_may_differ(prepare, size, box):
    """Of an image 90 wide and 60 high; crops with an odd rest begin at the nearest even pixel, or at the one below."""
    assert prepare.is_sized and prepare.size == size
    assert prepare(Image.new("RGB", (90, 60))).shape == (3, *size)
    found = prepare.box(90, 60)
    assert (found.left, found.top, found.right, found.bottom) == pytest.approx(box)


def test_inputs_may_have_the_images_own_shape():
    whole, side = Preprocessing(None, None), Preprocessing(32, None)
    assert whole(Image.new("RGB", (90, 60))).shape == (3, 60, 90)
    assert side(Image.new("RGB", (90, 60))).shape == (3, 32, 48)
    for prepare in (whole, side):
        assert not prepare.is_sized and prepare.box(90, 60).right == 90
        with pytest.raises(InputError, match="sizes that depend on their own"):
            _ = prepare.size


def test_in_words():
    described = [
        Preprocessing((32, 48), None).described(),
        Preprocessing((32, 48), (16, 24)).described(),
        Preprocessing(32, None).described(),
        Preprocessing(None, (16, 24)).described(),
        Preprocessing(None, None).described(),
    ]
    assert described == [
        "stretched to 32 x 48, bilinear",
        "stretched to 32 x 48, centre 16 x 24, bilinear",
        "short side to 32, bilinear",
        "centre 16 x 24",
        "in its own size",
    ]


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"numbers of pixels from 1 to 10000, got \(32, 0\)"):
        Preprocessing((32, 0), None)
    with pytest.raises(InputError, match="corner must be nearest or down"):
        Preprocessing(32, 32, corner="up")


def test_the_papers_pipelines_keep_the_networks_size():
    assert with_pipeline(Preprocessing(40, (32, 48)), "crop") == Preprocessing(54, (32, 48))
    assert with_pipeline(Preprocessing(40, 32), "stretch") == Preprocessing(32, 32, stretch=True)


def test_a_network_that_takes_no_images_says_so_at_every_use():
    prepare = NoImages("it takes text")
    for use in (lambda: prepare(Image.new("RGB", (8, 8))), lambda: prepare.box(8, 8), lambda: prepare.size):
        with pytest.raises(InputError, match="it takes text"):
            use()
    assert prepare.described() == "none" and "it takes text" in repr(prepare)


def test_the_colours_that_the_network_sees_are_given_back():
    prepare = Preprocessing(8, 8)
    x = prepare(Image.new("RGB", (8, 8), (200, 100, 30)))
    assert torch.allclose(prepare.colours(x)[:, 0, 0] * 255, torch.tensor([200.0, 100.0, 30.0]), atol=1e-3)
