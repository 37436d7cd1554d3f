"""Sorting: by score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.algorithms.order.base import OrderBase


@dataclass(frozen=True, kw_only=True)
class Sorting(OrderBase):
    """Rows by ascending score, or descending under ``polarity: hard_first``.

    >>> Sorting().arrange(np.array([0.3, 0.1, 0.2]), np.random.default_rng(0)).tolist()
    [1, 2, 0]

    Raises:
        ConfigError: a parameter out of range.

    Source: curricula, Bengio et al. 2009; as the first of the patterns of arXiv 2506.21545.
    """

    def pattern(self, n: int, shuffle_Q: np.ndarray) -> np.ndarray:
        return np.arange(n)
