from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import InputError
from headwater.pictures import features_figure, largest_and_rest


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=200), st.integers(1, 50))
def test_bars_sum_to_the_whole(parts: list[int], most: int) -> None:
    relevance = np.array(parts)
    kept, rest = largest_and_rest(relevance, most)
    assert relevance[kept].sum() + rest == relevance.sum()  # of integers, so exact
    others = np.delete(relevance, kept)
    assert np.abs(relevance[kept]).min() >= np.abs(others).max(initial=0)
    assert len(others) != 1  # "1 others" would take the room of the feature itself
    assert len(kept) <= most + 1


@pytest.mark.parametrize(("count", "bars"), [(1, 1), (3, 3), (20, 20), (21, 21), (22, 21), (200, 21)])
def test_there_is_one_bar_for_each_of_the_largest_and_one_for_the_others(count: int, bars: int, decoded) -> None:
    relevance = np.random.default_rng(count).normal(size=count)
    picture = decoded(features_figure([f"x{k}" for k in range(count)], relevance, title="", note="{sum}"))
    assert picture.shape[1] == 1500
    assert picture.shape[0] == pytest.approx(150 * (0.3 + 0.21 * bars + 0.08 + 0.27 + 0.36), abs=1.5)


def test_values_are_numbers_or_texts_and_names_may_be_anything(decoded) -> None:
    names = ["$x$", "a" * 500, "\n", "年齢"]
    values = [1.23456789, "b" * 500, float("nan"), np.int64(3)]
    assert decoded(features_figure(names, [1, -2, 0, 3], values, title="$", note="$")).shape[1] == 1500
    assert decoded(features_figure(names, [1, -2, 0, 3], np.arange(4.0), title="")).shape[1] == 1500


@pytest.mark.parametrize("relevance", [[0, 0], [1, 2], [-1, -2], [1e-300, -1e-300], [1e30, -1e30]])
def test_every_sign_and_size_is_drawn(relevance, decoded) -> None:
    assert decoded(features_figure(["a", "b"], relevance, title="")).shape[1] == 1500


@pytest.mark.parametrize(
    ("names", "relevance", "values", "most", "told"),
    [
        (["a"], [[1.0]], None, 20, r"the relevance must have the shape \(F,\)"),
        (["a"], [1.0, 2.0], None, 20, "2 features need as many names, got 1"),
        (["a", "b"], [1.0, 2.0], [3], 20, "2 features need as many values, got 1"),
        (["a"], [np.nan], None, 20, "1 values that are NaN"),
        ([], [], None, 20, "at least one value"),
        (["a"], ["b"], None, 20, "must hold real numbers"),
        (["a"], [1.0], None, 0, "most must be at least 1 feature, got 0"),
    ],
)
def test_what_does_not_fit_is_said(names, relevance, values, most, told) -> None:
    with pytest.raises(InputError, match=told):
        features_figure(names, relevance, values, title="", most=most)
