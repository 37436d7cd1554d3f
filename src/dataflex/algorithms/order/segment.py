"""Segment: the easiest at the beginning, the hardest at the end, all else in between, each by chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.algorithms.checks import require_range
from dataflex.algorithms.order.base import OrderBase
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SegmentOrder(OrderBase):
    """The lowest ``first`` percent of the ranked rows, the middle, the highest ``last`` percent; each shuffled.

    The ends have floor(n percent / 100) rows.

    Args:
        first: percent, 0 to 100.
        last: percent, 0 to 100; both together at most 100.

    Raises:
        ConfigError: a parameter out of range.

    Source: as folding.
    """

    first: float = 10.0
    last: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("first", self.first, at_least=0, at_most=100)
        require_range("last", self.last, at_least=0, at_most=100)
        if self.first + self.last > 100:
            raise ConfigError(f"first {self.first:g} and last {self.last:g} are percents; together at most 100")

    def pattern(self, n: int, shuffle_Q: np.ndarray) -> np.ndarray:
        low, high = (int(round(n * percent / 100, 9)) for percent in (self.first, self.last))
        part_n = np.searchsorted([low, n - high], np.arange(n), side="right")
        return np.lexsort((shuffle_Q[:n], part_n))
