"""Folding: several passes from easy to hard instead of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.algorithms.checks import require_range
from dataflex.algorithms.order.base import OrderBase, layers


@dataclass(frozen=True, kw_only=True)
class Folding(OrderBase):
    """Every L-th of the ranked rows, s[l::L] for l = 0 .. L-1 in turn.

    >>> Folding(layers=2).arrange(np.arange(5), np.random.default_rng(0)).tolist()
    [0, 2, 4, 1, 3]

    Args:
        layers: L >= 1; more layers than rows are sorting.

    Raises:
        ConfigError: a parameter out of range.

    Source: arXiv 2506.21545, arXiv 2605.30334, and their code. It applies to the rows of the segment or to the pool
    once; upstream's dynamic form serves the head of the reordered rest, which is sorting.
    """

    layers: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("layers", self.layers, at_least=1)

    def pattern(self, n: int, shuffle_Q: np.ndarray) -> np.ndarray:
        return layers(n, self.layers)
