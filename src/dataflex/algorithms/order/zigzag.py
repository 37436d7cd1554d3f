"""Zigzag: from easy to hard and back again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.algorithms.checks import require_range
from dataflex.algorithms.order.base import OrderBase, layers


@dataclass(frozen=True, kw_only=True)
class Zigzag(OrderBase):
    """Folding with every other layer backwards: no jump from hard to easy.

    >>> Zigzag(layers=2).arrange(np.arange(5), np.random.default_rng(0)).tolist()
    [0, 2, 4, 3, 1]

    Args:
        layers: L >= 1; more layers than rows are sorting.

    Raises:
        ConfigError: a parameter out of range.

    Source: as folding.
    """

    layers: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("layers", self.layers, at_least=1)

    def pattern(self, n: int, shuffle_Q: np.ndarray) -> np.ndarray:
        return layers(n, self.layers, alternate=True)
