from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import InputError
from headwater.pictures import chosen_frames, frame_parts, video_figure
from headwater.pictures.layout import percent_scale


def some(count: int, rows: int = 24, columns: int = 32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    frames = rng.integers(0, 256, (count, rows, columns, 3), dtype=np.uint8)
    return frames, rng.normal(0.3, 1, (count, rows, columns))


@given(st.integers(1, 400), st.integers(1, 40), st.randoms())
def test_the_frame_of_most_positive_relevance_is_always_chosen(count: int, most: int, random) -> None:
    positive = np.array([random.random() for _ in range(count)])
    chosen = chosen_frames(positive, most)
    assert int(positive.argmax()) in chosen
    assert len(chosen) == min(most, count)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(count))


def test_other_frames_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert chosen_frames(np.eye(1, 101)[0], 5) == [0, 25, 50, 75, 100]
    assert chosen_frames(np.eye(1, 101, 30)[0], 5) == [0, 30, 50, 75, 100]


def test_positive_and_negative_parts_of_all_frames_sum_to_the_whole() -> None:
    heatmap = some(9)[1].astype(np.float32)
    up, down = frame_parts(heatmap)
    assert (up >= 0).all()
    assert (down <= 0).all()
    # 768 values a frame in float64, of float32 values
    np.testing.assert_allclose(up + down, heatmap.astype(np.float64).sum((1, 2)), rtol=0, atol=1e-12)


def test_parts_in_percent_sum_to_a_hundred_and_a_sum_of_zero_has_none() -> None:
    sums = np.array([0.5, -0.2, 0.1])
    scale = percent_scale(sums)
    assert scale is not None
    assert (sums * scale).sum() == pytest.approx(100)
    assert percent_scale(np.array([1.0, -1.0])) is None
    assert percent_scale(np.zeros(3)) is None


@pytest.mark.parametrize(("count", "most", "rows"), [(1, 8, 1), (3, 8, 1), (16, 8, 1), (40, 16, 2), (300, 9, 2)])
def test_frames_stand_in_rows_of_eight(count: int, most: int, rows: int, decoded) -> None:
    picture = decoded(video_figure(*some(count), title="", most=most))
    columns = min(8, count, most)
    side = min((10 - 0.95 - 0.06 * columns) / columns, 3.5)
    assert picture.shape[1] == 1500
    assert picture.shape[0] == pytest.approx(
        150 * (0.3 + rows * (0.75 * side + 0.38) + 0.1 + 0.9 + 0.08 + 0.36), abs=1.5
    )


def test_the_most_relevant_frame_has_a_green_border_unless_none_is_relevant(decoded) -> None:
    frames, heatmap = np.zeros((8, 20, 20, 3), np.uint8), np.zeros((8, 20, 20))

    def green(picture: np.ndarray) -> np.ndarray:
        wide = picture.astype(int)
        return (wide[..., 1] > wide[..., 0] + 60) & (wide[..., 1] > wide[..., 2] + 60)

    assert not green(decoded(video_figure(frames, heatmap, title=""))).any()
    heatmap[5] = 1.0
    columns = np.flatnonzero(green(decoded(video_figure(frames, heatmap, title="")))[:230].any(0))
    side = (10 - 0.95 - 0.06 * 8) / 8
    assert columns[0] == pytest.approx(150 * (0.05 + 5 * (side + 0.06)), abs=4)
    assert columns[-1] == pytest.approx(150 * (0.05 + 5 * (side + 0.06) + side), abs=4)


@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_relevance_that_cancels_or_is_negative_is_drawn(shift: float, decoded) -> None:
    frames, heatmap = some(6)
    assert decoded(video_figure(frames, heatmap - heatmap.mean() + shift, title="", note="{sum}")).shape[1] == 1500


@pytest.mark.parametrize(
    ("frames", "heatmap", "most", "told"),
    [
        (np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4)), 8, "frames must be RGB, uint8.*got float64"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 4, 4)), 8, r"got uint8 of shape \(2, 3, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 4, 4)), 8, r"\(2, 4, 4\) of the frames, got \(3, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4), np.nan), 8, "32 values that are NaN"),
        (np.zeros((0, 4, 4, 3), np.uint8), np.zeros((0, 4, 4)), 8, "at least one value"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4)), 0, "most must be at least 1 frame, got 0"),
    ],
)
def test_what_does_not_fit_is_said(frames, heatmap, most, told) -> None:
    with pytest.raises(InputError, match=told):
        video_figure(frames, heatmap, title="", most=most)
