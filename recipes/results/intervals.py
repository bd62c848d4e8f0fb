"""Means over seeds with 95 % confidence intervals."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.stats


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % confidence interval; no interval of one value."""

    mean: float
    low: float | None
    high: float | None
    values: list[float]


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % confidence interval of a mean by Student's t with n - 1 degrees of freedom.

    ValueError for no value.

    >>> found = interval([1.0, 2.0, 3.0])  # 2 ± 4.3027 / sqrt(3)
    >>> found.mean, round(found.low, 4), round(found.high, 4)
    (2.0, -0.4841, 4.4841)
    """
    if not values:
        raise ValueError("there are no values to take a mean of; give at least one")
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, None, None, list(values))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return Interval(mean, mean - half, mean + half, list(values))
