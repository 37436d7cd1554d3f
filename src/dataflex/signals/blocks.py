"""Rows of text, some at a time, as numbers without Python objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Block:
    """Some rows' tokens, end to end."""

    tokens_T: np.ndarray  # int64
    lengths_B: np.ndarray  # tokens of each row
    counted_T: np.ndarray  # positions with a label, bool

    @property
    def row_T(self) -> np.ndarray:
        """Number of each token's row in the block."""
        return np.repeat(np.arange(len(self.lengths_B)), self.lengths_B)
