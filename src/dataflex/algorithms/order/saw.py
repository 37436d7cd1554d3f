"""Saw: sorted, with a zigzag where one section passes into the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.algorithms.order.base import OrderBase, check_regions, regions


@dataclass(frozen=True, kw_only=True)
class Saw(OrderBase):
    """Stair with zigzag inside the regions.

    Args:
        sections: >= 1.
        rho: reach of a region to both sides of its boundary, as a share of the rows; 2 rho sections < 1.
        layers: of a zigzag.

    Raises:
        ConfigError: a parameter out of range, or regions that would overlap.

    Source: as folding; halves round to even.
    """

    sections: int = 3
    rho: float = 0.075
    layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_regions(self.sections, self.rho, self.layers)

    def pattern(self, n: int, shuffle_Q: np.ndarray) -> np.ndarray:
        return regions(n, self.sections, self.rho, self.layers, alternate=True)
