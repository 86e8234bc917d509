from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from headwater.errors import InputError
from headwater.report import Labels, Style, c3_figure, contact_sheet, figure, overlay
from headwater.report.images import shown

PHOTO = Image.fromarray(np.random.RandomState(0).randint(0, 255, (60, 90, 3), dtype=np.uint8))
MAP = np.zeros((60, 90), dtype=np.float32)
MAP[20:30, 40:60] = 1.0


def test_overlay_has_the_images_size_and_is_colourful_where_relevance_is():
    laid = np.asarray(overlay(PHOTO, MAP, Style(colormap="jet")), dtype=float)
    assert laid.shape == (60, 90, 3)
    spread = laid.max(2) - laid.min(2)
    assert spread[20:30, 40:60].mean() > 2 * spread[:15].mean()


def test_the_authors_colours_lie_evenly_over_the_photo_and_end_by_mass():
    """0.6 of the photo and 0.4 of jet; the range ends where smaller values hold 98 % of the relevance."""
    ramp = np.linspace(0, 1, 100).reshape(10, 10)
    view = shown(ramp, Style("jet", "positive", clip=98, clip_by="mass"))
    held = np.cumsum(np.sort(ramp, axis=None))
    assert view.norm.vmax == np.sort(ramp, axis=None)[held >= 0.98 * held[-1]][0]
    laid = np.asarray(overlay(PHOTO, np.zeros((60, 90)), Style("jet", "positive", opacity=0.4, even=True)), dtype=float)
    jet = 255 * np.array([0, 0, 0.5])
    assert np.abs(laid - (0.6 * np.asarray(PHOTO) + 0.4 * jet)).max() <= 1
    with pytest.raises(InputError, match="clip_by must be pixels or mass"):
        Style(clip_by="area")


def test_unseen_parts_are_pale():
    heatmap = MAP.copy()
    heatmap[:, :10] = np.nan
    laid = np.asarray(overlay(PHOTO, heatmap), dtype=float)
    assert laid[:, :10].mean() > laid[:, 10:35].mean() + 30


def test_figure_is_a_png_with_three_panels():
    image = Image.open(io.BytesIO(figure(PHOTO, MAP, Labels("tabby", "90 %", method="otsuki2024"))))
    assert image.format == "PNG"
    assert image.width == 1500


@pytest.mark.parametrize(
    ("sign", "signed", "low"),
    [("auto", True, -2.0), ("signed", True, -2.0), ("positive", False, 0.0), ("absolute", False, 0.0)],
)
def test_sign(sign, signed, low):
    heatmap = np.array([[-2.0, 0.0], [1.0, 2.0]])
    view = shown(heatmap, Style(sign=sign, clip=100))
    assert view.signed == signed
    assert (view.norm.vmin, view.norm.vmax) == (low, 2.0)
    assert view.values.min() == {"positive": 0, "absolute": 0}.get(sign, -2)


def test_a_map_without_negative_relevance_is_not_signed_and_a_constant_map_is_drawn():
    assert not shown(MAP).signed
    assert overlay(PHOTO, np.zeros((60, 90))).size == PHOTO.size


@pytest.mark.parametrize(
    ("options", "message"),
    [({"colormap": "nice"}, "no colour map 'nice'"), ({"sign": "up"}, "sign must be"), ({"clip": 0}, "clip must be")],
)
def test_bad_style(options, message):
    with pytest.raises(InputError, match=message):
        Style(**options)


def test_sizes_that_do_not_fit():
    with pytest.raises(InputError, match="the map is"):
        overlay(PHOTO, MAP[:10])


def test_a_contact_sheet_has_room_for_every_image():
    images = [np.full((8, 8, 3), k / 7) for k in range(7)]
    sheet = Image.open(io.BytesIO(contact_sheet(images, [str(k) for k in range(7)], columns=3)))
    row = Image.open(io.BytesIO(contact_sheet(images[:3], ["a", "b", "c"], columns=3)))
    assert sheet.width == row.width and sheet.height > 2.5 * row.height
    captioned = Image.open(io.BytesIO(contact_sheet(images[:3], ["a", "b", "c"], columns=3, caption="long " * 60)))
    assert captioned.width == row.width and captioned.height > row.height + 20
    with pytest.raises(InputError, match="7 and 1"):
        contact_sheet(images, ["a"])


def test_the_stages_of_c3_are_drawn():
    heatmap = torch.zeros(56, 56)
    heatmap[10:30, 10:30], heatmap[16:22, 16:22], heatmap[40:44, 40:44] = 1.0, 0.0, 3.0
    png = c3_figure(heatmap)
    width, height = Image.open(io.BytesIO(png)).size
    assert width > 5 * height
    with pytest.raises(InputError, match=r"one map \(H, W\)"):
        c3_figure(heatmap[None])
