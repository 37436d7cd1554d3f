"""Random: the baseline that every comparison needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import Progress, Selection, SelectorBase, Signals, State
from dataflex.core.draw import draw, least_used_first


@dataclass(frozen=True, kw_only=True)
class Random(SelectorBase):
    """Draw uniformly from the rows not yet trained in this pass over the pool (warm-ups count).

    When fewer than the quota remain, the rest of the old pass comes first and a new pass begins, so that after any
    number of segments no row was trained twice more than another.

    Args:
        replacement: draw independently instead, any row at any time.

    Source: the uniform baseline.
    """

    replacement: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"times_trained"})
    source: ClassVar[str] = "uniform baseline"

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        trainable_N = state["trainable_N"]
        if self.replacement:
            rows_Q = draw(trainable_N.astype(np.float64), quota, rng, replacement=True)
        else:
            rows_Q = least_used_first(signals["times_trained"], quota, rng, trainable_N)
        return Selection(rows_Q=rows_Q, decision="random"), state

    def rank(self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        return least_used_first(signals["times_trained"], int(state["trainable_N"].sum()), rng, state["trainable_N"])
