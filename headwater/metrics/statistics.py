"""Summaries of measured tables: means with intervals, and families of paired tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats

from headwater.errors import InputError

Name = TypeVar("Name")


@dataclass(frozen=True)
class Summary:
    """One method's values of one measure.

    Attributes:
        count: values that are not missing.
        mean: their mean.
        deviation: their standard deviation (n - 1); NaN for one value.
        low: lower end of the 95 % interval of the mean (Student's t); NaN for one value.
        high: upper end.
    """

    count: int
    mean: float
    deviation: float
    low: float
    high: float


def summarise(values: Sequence[float]) -> Summary:
    """Mean, deviation and 95 % interval; missing values (NaN) are left out.

    >>> summarise([1.0, 2.0, 3.0, float("nan")]).mean
    2.0
    """
    known = [v for v in values if not math.isnan(v)]
    count = len(known)
    if count == 0:
        return Summary(0, math.nan, math.nan, math.nan, math.nan)
    mean = math.fsum(known) / count
    if count == 1:
        return Summary(1, mean, math.nan, math.nan, math.nan)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (count - 1))
    half = float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return Summary(count, mean, deviation, mean - half, mean + half)


def paired_p_values(pairs: Mapping[Name, tuple[Sequence[float], Sequence[float]]]) -> dict[Name, float]:
    """Two-sided paired t-tests, all of one family, corrected by Holm's procedure.

    Args:
        pairs: for each comparison the values of both sides, one per image in the same order; images missing (NaN) on
            either side are left out.

    Returns:
        Corrected p-value of each comparison; 1 where all differences are 0, NaN for fewer than two images.

    Raises:
        InputError: the two sides of a comparison are not of the same length.

    >>> paired_p_values({"same": ([0.1, 0.2], [0.1, 0.2])})
    {'same': 1.0}
    """
    return _holm({name: _paired_p_value(name, *sides) for name, sides in pairs.items()})


def _paired_p_value(name: object, mine: Sequence[float], others: Sequence[float]) -> float:
    if len(mine) != len(others):
        raise InputError(
            f"{name}: {len(mine)} and {len(others)} values; both sides need one per image, in the same order"
        )
    differences = np.subtract(mine, others)
    known = differences[~np.isnan(differences)]
    if len(known) < 2:
        return math.nan
    if not known.any():
        return 1.0
    return float(stats.ttest_rel(mine, others, nan_policy="omit").pvalue)


def _holm(raw: Mapping[Name, float]) -> dict[Name, float]:
    """Holm 1979: the k-th smallest of n p-values times n - k + 1, never smaller than one before it."""
    known = sorted((name for name, p in raw.items() if not math.isnan(p)), key=raw.__getitem__)
    corrected, largest = dict.fromkeys(raw, math.nan), 0.0
    for place, name in enumerate(known):
        largest = max(largest, min(1.0, raw[name] * (len(known) - place)))
        corrected[name] = largest
    return corrected
