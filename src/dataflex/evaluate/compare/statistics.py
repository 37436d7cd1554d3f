"""Means over seeds, differences paired by seed, and whether they can be told from noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
SAME = 1e-9  # relative: values that differ by less differ by rounding


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over ``num`` seeds and the half-width of its t interval.

    NaN for one seed, and for several that all give the same: they show no noise, and of it nothing is known then.
    """

    mean: float
    half_width: float
    num: int
    p: float = math.nan  # two-sided, of the mean being zero

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half_width


def t_interval(values_S: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean and t interval: ``mean ± t(S - 1) s / sqrt(S)``, with ``s`` the standard deviation over S - 1.

    The p-value is that of the t test of a zero mean. Where all values are the same, half-width and p are NaN: a
    share of few rows is a coarse number, seeds agree in it by chance, and a width of 0 would pass for certainty.

    Args:
        values_S: one finite value per seed, at least one.
    """
    from scipy.stats import t  # here: it loads for a second, and verbs that judge nothing need none of it

    values = np.asarray(values_S, dtype=np.float64)
    num, mean = len(values), float(values.mean())
    if num < 2 or np.ptp(values) <= SAME * np.abs(values).max():
        return Interval(mean=mean, half_width=math.nan, num=num)
    error = float(values.std(ddof=1)) / math.sqrt(num)
    half_width = float(t.ppf((1 + confidence) / 2, num - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, num - 1))
    return Interval(mean=mean, half_width=half_width, num=num, p=p)


def paired(treated: dict[int, float], baseline: dict[int, float]) -> Interval | None:
    """The interval of ``treated - baseline`` over the seeds that both have; None where they share none."""
    seeds = sorted(treated.keys() & baseline.keys())
    return t_interval([treated[seed] - baseline[seed] for seed in seeds]) if seeds else None


def holm(p_M: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of M comparisons; a NaN stays one and is not counted.

    The k-th smallest (from 0) is multiplied by ``M - k``, kept at least as large as the one before, and bounded by 1.

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    adjusted = [math.nan] * len(p_M)
    order = sorted((i for i, p in enumerate(p_M) if not math.isnan(p)), key=lambda i: p_M[i])
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_M[i]))
        adjusted[i] = largest
    return adjusted
