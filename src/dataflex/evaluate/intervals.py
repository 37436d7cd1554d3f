"""Means with bootstrap intervals, and differences of two models on the same rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How intervals are made: percentiles of means over rows drawn with replacement (Efron 1979)."""

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and the bounds of its interval; None where one row has no spread."""

    value: float
    low: float | None
    high: float | None


def ratio_interval(sums_N: np.ndarray, counts_N: np.ndarray, how: Bootstrap) -> Interval:
    """sum(sums) / sum(counts), such as a loss over all tokens; rows are drawn whole."""
    return _interval((sums_N, counts_N), how)


def mean_interval(values_N: np.ndarray, how: Bootstrap) -> Interval:
    """The mean over rows."""
    return _interval((values_N, np.ones(len(values_N))), how)


def difference_interval(
    ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray], how: Bootstrap
) -> Interval:
    """Our ratio minus theirs, over the same rows, which are drawn together.

    Args:
        ours, theirs: (sums, counts) of each row.
    """

    def statistic(a: np.ndarray, m: np.ndarray, b: np.ndarray, n: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.sum(axis) / m.sum(axis) - b.sum(axis) / n.sum(axis)

    return _of((*ours, *theirs), statistic, how)


def _interval(data: tuple[np.ndarray, ...], how: Bootstrap) -> Interval:
    def statistic(sums: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
        return sums.sum(axis) / counts.sum(axis)

    return _of(data, statistic, how)


def _of(data: tuple[np.ndarray, ...], statistic, how: Bootstrap) -> Interval:
    from scipy.stats import bootstrap  # of the extra

    value = float(statistic(*data))
    if len(data[0]) < 2:
        return Interval(value=value, low=None, high=None)
    rows = tuple(np.asarray(values, dtype=np.float64) for values in data)
    if all(np.ptp(values) == 0 for values in rows):
        return Interval(value=value, low=value, high=value)
    found = bootstrap(
        rows,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=how.resamples,
        batch=max(1, 2**22 // len(rows[0])),
        confidence_level=how.confidence,
        method="percentile",
        rng=np.random.default_rng(how.seed),
    ).confidence_interval
    return Interval(value=value, low=float(found.low), high=float(found.high))
