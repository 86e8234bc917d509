"""Means with intervals and paired tests, beside the formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from headwater.errors import InputError
from headwater.metrics.statistics import paired_p_values, summarise

RNG = np.random.default_rng(0)


def test_the_interval_is_students():
    values = RNG.normal(size=17).tolist()
    summary = summarise([*values, math.nan])
    low, high = stats.t.interval(0.95, 16, loc=np.mean(values), scale=stats.sem(values))
    assert summary.count == 17
    assert summary.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert (summary.low, summary.high) == (pytest.approx(low, rel=1e-12), pytest.approx(high, rel=1e-12))


def test_few_values_have_no_interval():
    one, none = summarise([0.5, math.nan]), summarise([math.nan])
    assert (one.count, one.mean) == (1, 0.5) and math.isnan(one.deviation) and math.isnan(one.high)
    assert none.count == 0 and math.isnan(none.mean)


def test_paired_p_values_are_those_of_the_differences_corrected_by_holm():
    """The t-test of the mean difference against 0, images that either method lacks left out."""
    values = {name: RNG.normal(mean, 1, 30) for name, mean in (("a", 0.0), ("b", 0.4), ("c", 0.9), ("d", 0.1))}
    values["b"][3] = values["a"][7] = math.nan
    raw = {}
    for name in "bcd":
        known = values[name] - values["a"]
        known = known[~np.isnan(known)]
        t = known.mean() / (known.std(ddof=1) / math.sqrt(len(known)))
        raw[name] = 2 * stats.t.sf(abs(t), len(known) - 1)
    expected, largest = {}, 0.0
    for place, name in enumerate(sorted(raw, key=raw.__getitem__)):
        largest = max(largest, min(1.0, raw[name] * (3 - place)))
        expected[name] = largest
    pairs = {name: (values[name], values["a"]) for name in "bcd"}
    assert paired_p_values(pairs) == {name: pytest.approx(p, rel=1e-9) for name, p in expected.items()}


def test_equal_values_and_too_few_images():
    reference = [0.1, 0.2, math.nan]
    p = paired_p_values({"same": ([0.1, 0.2, 0.3], reference), "one": ([0.3, math.nan, 0.1], reference)})
    assert p["same"] == 1 and math.isnan(p["one"])


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_a_constant_difference_is_certain():
    assert paired_p_values({"b": ([0.5, 0.5, 0.5], [0.0, 0.0, 0.0])})["b"] < 1e-12


def test_values_that_cannot_be_paired():
    with pytest.raises(InputError, match="b: 2 and 1 values"):
        paired_p_values({"b": ([1.0, 2.0], [1.0])})
