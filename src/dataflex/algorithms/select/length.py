"""Length: the longest, the shortest or a band of samples; a baseline that is hard to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import PoolInfo, Progress, Selection, SelectorBase, Signals, State
from dataflex.algorithms.checks import require_one_of, require_quantile_pair
from dataflex.algorithms.select.ranked import REUSE, Reuse, take_ranked, take_uniform


@dataclass(frozen=True, kw_only=True)
class Length(SelectorBase):
    """Take samples by their number of tokens.

    Args:
        by: count ``label`` tokens (the answer) or ``total`` tokens.
        take: ``longest`` or ``shortest`` first, or a uniform draw from a ``band`` of lengths.
        band: (low, high) quantiles of the lengths, both ends included, for ``take: band``.
        reuse: rows already trained come again ``after_exhaustion`` of the others, ``never`` or ``always``.

    Raises:
        ConfigError: a parameter out of range.

    Source: longest answers as a strong baseline, arXiv 2402.04833; length against learned scores, arXiv 2410.09335.
    """

    by: Literal["label", "total"] = "label"
    take: Literal["longest", "shortest", "band"] = "longest"
    band: tuple[float, float] = (0.1, 0.9)
    reuse: Reuse = "after_exhaustion"

    needs: ClassVar[frozenset[str]] = frozenset({"times_trained"})
    source: ClassVar[str] = "2402.04833; 2410.09335"

    def __post_init__(self) -> None:
        require_one_of("by", self.by, ("label", "total"))
        require_one_of("take", self.take, ("longest", "shortest", "band"))
        require_one_of("reuse", self.reuse, REUSE)
        require_quantile_pair("band", self.band, at_ends=True)

    def init(self, pool: PoolInfo) -> State:
        lengths_N = pool.num_label_tokens_N if self.by == "label" else pool.num_tokens_N
        return {"lengths_N": np.asarray(lengths_N, dtype=np.int64), "trainable_N": pool.trainable_N}

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        rows_Q, notes = self._take(state, signals, quota, rng)
        return Selection(rows_Q=rows_Q, decision=self.take, notes=notes), state

    def rank(self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        return self._take(state, signals, None, rng)[0]

    def _take(
        self, state: State, signals: Signals, quota: int | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The rows, all of them where there is no quota, and what is to be known of the draw."""
        lengths_N, allowed_N, used_N = state["lengths_N"], state["trainable_N"], signals["times_trained"]
        if self.take == "band":
            low, high = (float(q) for q in np.quantile(lengths_N[allowed_N], self.band)) if allowed_N.any() else (0, 0)
            allowed_N = allowed_N & (lengths_N >= low) & (lengths_N <= high)
            rows = take_uniform(used_N, quota, self.reuse, allowed_N, rng)
            return rows, {"band_tokens": [low, high], "num_in_band": int(allowed_N.sum())}
        sign = 1.0 if self.take == "longest" else -1.0
        return take_ranked(sign * lengths_N, used_N, quota, self.reuse, allowed_N), {}
