"""Rows of a domain, those trained least often first: each is consumed once before any comes again."""

from __future__ import annotations

import numpy as np

from dataflex.core.domains import count_rows
from dataflex.core.errors import DataFlexError


def capacities(
    domain_N: np.ndarray,
    num_domains: int,
    quota: int,
    times_trained_N: np.ndarray,
    allowed_N: np.ndarray,
    max_times: int | None,
) -> np.ndarray:
    """How many of the next ``quota`` rows each domain can give, int64, shape (D,).

    Without ``max_times`` any domain with an allowed row can give them all; else a row gives as often as it may still
    be trained. A domain without an allowed row gives none.
    """
    if max_times is None:
        return np.where(count_rows(domain_N, num_domains, allowed_N) > 0, quota, 0)
    left_N = np.where(allowed_N, np.maximum(0, max_times - times_trained_N.astype(np.int64)), 0)
    capacity_D = np.zeros(num_domains, dtype=np.int64)
    np.add.at(capacity_D, domain_N, left_N)
    return capacity_D


def take_from_domains(
    counts_D: np.ndarray,
    domain_N: np.ndarray,
    times_trained_N: np.ndarray,
    allowed_N: np.ndarray,
    rng: np.random.Generator,
    max_times: int | None = None,
) -> np.ndarray:
    """Take ``counts_D[d]`` allowed rows of each domain uniformly, those trained fewest times first.

    No row comes twice before every row of its domain came once; a domain that has to give more rows than it has begins
    another pass over itself. One uniform is drawn for each pool row, whatever the counts.

    Returns:
        Row indices, int64, shape (sum of counts,), domain by domain; to be shuffled for training.

    Raises:
        DataFlexError: a domain cannot give its count within ``max_times``.
    """
    tie_N = rng.random(len(domain_N))
    taken = [
        _take(rows[allowed_N[rows]], int(count), times_trained_N, tie_N, max_times)
        for rows, count in zip(_rows_of(domain_N, len(counts_D)), counts_D, strict=True)
    ]
    return np.concatenate([np.zeros(0, dtype=np.int64), *taken])


def _rows_of(domain_N: np.ndarray, num_domains: int) -> list[np.ndarray]:
    """Rows of each domain, ascending."""
    order = np.argsort(domain_N, kind="stable")
    return np.split(order, np.cumsum(np.bincount(domain_N, minlength=num_domains))[:-1])


def _take(rows, count, times_trained_N, tie_N, max_times) -> np.ndarray:
    """``count`` of these rows, a pass at a time; a pass takes each row once, the least trained first."""
    times = times_trained_N[rows].astype(np.int64)
    order = np.lexsort((tie_N[rows], times))
    rows, times, taken, wanted = rows[order], times[order], [], count
    while count > 0:
        if max_times is not None:
            rows, times = rows[times < max_times], times[times < max_times]
        if len(rows) == 0:
            raise DataFlexError(
                f"{wanted} rows are wanted of a domain that can give {wanted - count}; lower its share, shorten the "
                "run, or raise max_repeats"
            )
        taken.append(rows[:count])
        count, times = count - len(taken[-1]), times + 1
    return np.concatenate([np.zeros(0, dtype=np.int64), *taken])
