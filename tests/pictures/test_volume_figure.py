from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from headwater.errors import InputError
from headwater.pictures import strongest_voxel, volume_figure
from headwater.pictures.layout import laid_over
from headwater.report import Style, overlay


def test_the_strongest_voxel_is_the_largest_in_size() -> None:
    heatmap = np.zeros((3, 4, 5))
    heatmap[1, 2, 3], heatmap[2, 0, 4] = 2.0, -3.0
    assert strongest_voxel(heatmap) == (2, 0, 4)
    assert strongest_voxel(np.maximum(heatmap, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("shape", "spacing", "tall"),
    # Three panels share 8.6 inches: W + W + H across; the highest is H or D.
    [((20, 20, 20), (1, 1, 1), 8.6 / 3), ((20, 20, 20), (2, 1, 1), 2 * 8.6 / 3), ((10, 40, 20), (1, 1, 1), 8.6 / 2)],
)
def test_panels_have_the_proportions_of_the_spacing(shape, spacing, tall, decoded) -> None:
    volume = np.random.default_rng(0).random(shape)
    picture = decoded(volume_figure(volume, volume, title="", spacing=spacing))
    assert picture.shape[1] == 1500
    assert picture.shape[0] == pytest.approx(150 * (0.3 + 0.36 + tall + 0.08), abs=1.5)


def test_the_cross_stands_at_the_strongest_voxel(decoded) -> None:
    volume, heatmap = np.zeros((10, 10, 10)), np.zeros((10, 10, 10))
    heatmap[2, 7, 4] = 1.0
    picture = decoded(volume_figure(volume, heatmap, title="")).astype(int)
    green = (picture[..., 1] > picture[..., 0] + 60) & (picture[..., 1] > picture[..., 2] + 60)
    side = 150 * 8.6 / 3
    left = green[:, : int(0.05 * 150 + side)]
    panel_top = 150 * (0.3 + 0.36)
    row, column = np.argmax(left.sum(1)), np.argmax(left.sum(0))
    assert row - panel_top == pytest.approx(7.5 / 10 * side, abs=3)
    assert column - 0.05 * 150 == pytest.approx(4.5 / 10 * side, abs=3)


def test_slices_have_one_range_of_colours() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (3, 5, 3), dtype=np.uint8), rng.integers(0, 256, (4, 2, 3), dtype=np.uint8)]
    maps = [rng.random((3, 5)), 10 * rng.random((4, 2))]
    parts, view = laid_over(pictures, maps, Style(clip=100))
    assert [part.shape for part in parts] == [(3, 5, 3), (4, 2, 3)]
    assert view.norm.vmax == maps[1].max()
    alone = np.asarray(overlay(Image.fromarray(pictures[1]), maps[1], Style(clip=100)))
    np.testing.assert_array_equal(parts[1], alone)  # it has the largest value, so its range is the common one


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 64, 64), (3, 200, 200), (200, 3, 3)])
def test_very_flat_and_very_long_volumes_are_drawn(shape, decoded) -> None:
    picture = decoded(volume_figure(np.zeros(shape), np.zeros(shape), title="", style=Style(sign="signed")))
    assert picture.shape[1] == 1500
    assert picture.shape[0] < 1100


@pytest.mark.parametrize(
    ("volume", "heatmap", "options", "told"),
    [
        (np.zeros((4, 4)), np.zeros((4, 4)), {}, r"the volume must have the shape \(D, H, W\)"),
        (np.zeros((1, 4, 4, 4)), np.zeros((4, 4, 4)), {}, r"got shape \(1, 4, 4, 4\)"),
        (np.zeros((4, 4, 4)), np.zeros((4, 4, 5)), {}, r"\(4, 4, 4\) of the volume, got \(4, 4, 5\)"),
        (np.full((2, 2, 2), np.nan), np.zeros((2, 2, 2)), {}, "the volume has 8 values that are NaN"),
        (np.zeros((2, 2, 2)), np.full((2, 2, 2), -np.inf), {}, "the heatmap has 8 values"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), {"spacing": (1, 1)}, "spacing must be three positive numbers"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), {"spacing": (1, 0, 1)}, "spacing must be three positive numbers"),
    ],
)
def test_what_does_not_fit_is_said(volume, heatmap, options, told) -> None:
    with pytest.raises(InputError, match=told):
        volume_figure(volume, heatmap, title="", **options)
