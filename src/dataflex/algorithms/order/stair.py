"""Stair: sorted, with a folded landing where one section passes into the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.algorithms.order.base import OrderBase, check_regions, regions


@dataclass(frozen=True, kw_only=True)
class Stair(OrderBase):
    """Sorted rows; within round(n rho) of each boundary round(n k / sections) they are folded.

    Args:
        sections: >= 1.
        rho: reach of a fold to both sides, as a share of the rows; 2 rho sections < 1.
        layers: of a fold.

    Raises:
        ConfigError: a parameter out of range, or folds that would overlap.

    Source: as folding; halves round to even.
    """

    sections: int = 2
    rho: float = 0.225
    layers: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_regions(self.sections, self.rho, self.layers)

    def pattern(self, n: int, shuffle_Q: np.ndarray) -> np.ndarray:
        return regions(n, self.sections, self.rho, self.layers, alternate=False)
