from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import InputError
from headwater.pictures import signal_figure, summed_per_column
from headwater.pictures.signal import _column_points
from headwater.report import Style


def some(channels: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(length)
    return rng.normal(size=(channels, length)).cumsum(1), rng.normal(0.2, 1, length)


@given(st.integers(1, 5000), st.integers(1, 1300))
def test_columns_sum_to_all_relevance_and_are_at_most_as_many_as_pixels(length: int, most: int) -> None:
    values = np.random.default_rng(length).integers(-1000, 1000, (2, length))
    columns, size = summed_per_column(values, most)
    assert columns.shape[1] <= most
    assert columns.shape[1] == -(-length // size)
    np.testing.assert_array_equal(columns.sum(1), values.sum(1))  # of integers, so exact


def test_a_signal_that_fits_is_not_summed() -> None:
    values = np.arange(7.0)
    columns, size = summed_per_column(values, 7)
    assert size == 1
    np.testing.assert_array_equal(columns, values)


@given(st.integers(1, 300), st.integers(1, 40))
def test_the_line_through_a_column_has_its_smallest_and_largest_sample(length: int, size: int) -> None:
    line = np.random.default_rng(length).normal(size=length)
    places, levels = _column_points(line, size)
    np.testing.assert_array_equal(levels, line[places.astype(int)])
    assert (np.diff(places.reshape(-1)) >= 0).all()
    for k, column in enumerate(np.split(line, range(size, length, size))):
        assert levels[k].min() == column.min()
        assert levels[k].max() == column.max()
        assert levels[k][0] == column[0]
        assert levels[k][-1] == column[-1]


@pytest.mark.parametrize("length", [1, 2, 20, 1199, 1200, 1201, 100_000])
def test_every_length_has_the_same_size(length: int, decoded) -> None:
    signal, heatmap = some(2, length)
    assert decoded(signal_figure(signal, heatmap, title="")).shape == decoded(
        signal_figure(*some(2, 50), title="")
    ).shape  # fmt: skip


def test_one_relevant_sample_of_a_hundred_thousand_is_seen(decoded) -> None:
    signal, heatmap = np.zeros((1, 100_000)), np.zeros(100_000)
    without = decoded(signal_figure(signal, heatmap, title=""))
    heatmap[50_000] = 1.0
    with_one = decoded(signal_figure(signal, heatmap, title="", style=Style(clip=100)))
    yellow = (with_one[..., 0] > 220) & (with_one[..., 2] < 180) & (with_one[..., 1] > 200)
    panels = np.s_[:, 200:1300]  # without the colour bar
    assert yellow[panels].sum() > 50
    assert not ((without[panels][..., 0] > 220) & (without[panels][..., 2] < 180)).any()


def test_relevance_of_each_channel_colours_its_own_line(decoded) -> None:
    signal = np.zeros((2, 40))
    heatmap = np.stack([np.ones(40), np.zeros(40)])
    picture = decoded(signal_figure(signal, heatmap, title="", style=Style(colormap="viridis")))
    yellow = ((picture[..., 0] > 200) & (picture[..., 2] < 80))[:, 200:1300].any(1)
    rows = np.flatnonzero(yellow)
    lines = decoded(signal_figure(signal, np.ones(40), title="", style=Style(colormap="viridis")))
    both = np.flatnonzero(((lines[..., 0] > 200) & (lines[..., 2] < 80))[:, 200:1300].any(1))
    assert rows[0] == both[0]
    assert len(rows) < len(both)


def test_the_same_signal_makes_the_same_file_and_stays_as_it_is() -> None:
    signal, heatmap = some(3, 500)
    before = signal.copy(), heatmap.copy()
    first = signal_figure(signal, heatmap, title="a", note="{sum}", sampling_rate=100, channel_names=["a", "b", "$x$"])
    assert first == signal_figure(
        signal, heatmap, title="a", note="{sum}", sampling_rate=100, channel_names=["a", "b", "$x$"]
    )
    np.testing.assert_array_equal(signal, before[0])
    np.testing.assert_array_equal(heatmap, before[1])


def test_of_many_channels_sixty_four_are_drawn(decoded) -> None:
    signal, heatmap = some(64, 30)
    most = decoded(signal_figure(signal, heatmap, title="", note="x"))
    more = decoded(signal_figure(*some(300, 30), title="", note="x"))
    assert more.shape == most.shape


@pytest.mark.parametrize(
    ("signal", "heatmap", "options", "told"),
    [
        (np.zeros(5), np.zeros(5), {}, r"the signal must have the shape \(C, L\).*got shape \(5,\)"),
        (np.zeros((1, 0)), np.zeros(0), {}, "at least one value"),
        (np.zeros((2, 5)), np.zeros(4), {}, r"must have the shape \(5,\) or \(2, 5\), got \(4,\)"),
        (np.zeros((2, 5)), np.zeros((3, 5)), {}, r"got \(3, 5\)"),
        (np.full((2, 5), np.nan), np.zeros(5), {}, "the signal has 10 values that are NaN"),
        (np.zeros((2, 5)), np.array([0, 0, 0, 0, np.inf]), {}, "the heatmap has 1 values that are NaN or infinite"),
        (np.zeros((2, 5)), np.zeros(5, complex), {}, "the heatmap must hold real numbers, got complex128"),
        ([[1, 2], [3]], np.zeros(2), {}, "the signal must be an array"),
        (np.zeros((2, 2)), [[1, 2], [3]], {}, "the heatmap must be an array"),
        (np.zeros((2, 5)), np.zeros(5), {"channel_names": ["a"]}, "2 channels needs as many channel names, got 1"),
        (np.zeros((2, 5)), np.zeros(5), {"sampling_rate": 0}, "sampling rate must be positive"),
    ],
)
def test_what_does_not_fit_is_said(signal, heatmap, options, told) -> None:
    with pytest.raises(InputError, match=told):
        signal_figure(signal, heatmap, title="", **options)
