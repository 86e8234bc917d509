"""Summaries of measured tables: means with intervals, and paired tests against the best baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from headwater.errors import InputError


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


def paired_p_values(values: Mapping[str, Sequence[float]], reference: str) -> dict[str, float]:
    """Two-sided paired t-test of every other method against ``reference``, corrected by Holm's procedure.

    Args:
        values: for each method one value per image, in the same order; images missing (NaN) in either are left out.
        reference: the method compared against.

    Returns:
        Corrected p-value of each other method; 1 where all differences are 0, NaN for fewer than two images.

    Raises:
        InputError: the reference is not among the methods, or the lengths differ.
    """
    if reference not in values:
        raise InputError(f"{reference!r} is not among {', '.join(values)}")
    if len({len(v) for v in values.values()}) != 1:
        raise InputError("every method needs one value per image, in the same order")
    raw: dict[str, float] = {}
    for method, mine in values.items():
        if method == reference:
            continue
        differences = np.subtract(mine, values[reference])
        known = differences[~np.isnan(differences)]
        if len(known) < 2:
            raw[method] = math.nan
        elif not known.any():
            raw[method] = 1.0
        else:
            raw[method] = float(stats.ttest_rel(mine, values[reference], nan_policy="omit").pvalue)
    return _holm(raw)


def _holm(raw: Mapping[str, float]) -> dict[str, float]:
    """Holm 1979: the k-th smallest of n p-values times n - k + 1, never smaller than one before it."""
    known = sorted((p, method) for method, p in raw.items() if not math.isnan(p))
    corrected, largest = dict.fromkeys(raw, math.nan), 0.0
    for place, (p, method) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - place)))
        corrected[method] = largest
    return corrected
