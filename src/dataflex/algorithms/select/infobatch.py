"""InfoBatch: a part of the samples that are learned already is left out of each pass; the others of them count more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import PoolInfo, Progress, Selection, SelectorBase, Signals, State
from dataflex.algorithms.checks import require_range
from dataflex.core.draw import check_quota


@dataclass(frozen=True, kw_only=True)
class InfoBatch(SelectorBase):
    """Go through the pool in passes, each without a random part of the samples of low loss.

    A pass begins with the last training loss of every sample. Of the n samples below the mean of those seen, a share
    ``r`` drawn at random is left out, and the k that are kept count n / k, so that the sum of losses is what it would
    be in expectation; all others, and those never trained, are in it and count 1.

    A pass that begins in the last part of the run leaves nothing out; one that began before goes on with its weights.
    A decision over the end of a pass has each row once, filled up where it must be with rows that were left out, at
    weight 1.

    The number of steps is fixed beforehand, so that what is saved shows as more passes in the same steps.

    Args:
        r: share of the low samples that is left out, in [0, 0.9].
        delta: share of the run after which nothing is left out, in (0, 1].

    Raises:
        ConfigError: a parameter out of range.

    Source: InfoBatch (2303.04947). Departures: kept samples count n / k, which is exactly unbiased, in place of
    1 / (1 - r); samples that were not trained yet have no pretended loss.
    """

    r: float = 0.5
    delta: float = 0.875

    needs: ClassVar[frozenset[str]] = frozenset({"training_loss"})
    gives_factors: ClassVar[bool] = True
    source: ClassVar[str] = "InfoBatch 2303.04947"

    def __post_init__(self) -> None:
        require_range("r", self.r, at_least=0, at_most=0.9)
        require_range("delta", self.delta, above=0, at_most=1)

    def init(self, pool: PoolInfo) -> State:
        size = len(pool)
        return {
            "trainable_N": pool.trainable_N,
            "pending_N": np.zeros(size, dtype=bool),  # rows of the pass in progress that are still to come
            "weights_N": np.ones(size),  # of the pass in progress
            "passes": np.array(0),
        }

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        trainable_N = state["trainable_N"]
        check_quota(quota, int(trainable_N.sum()))
        pending_N, weights_N = state["pending_N"].copy(), state["weights_N"].copy()
        factors_N = np.ones(len(trainable_N))
        taken_N = np.zeros(len(trainable_N), dtype=bool)
        passes, notes, parts, missing = int(state["passes"]), {}, [], quota
        while missing:
            if not pending_N.any():
                passes += 1
                losses_N = np.where(trainable_N, signals["training_loss"], np.nan)
                prunes = progress.step < self.delta * progress.num_steps
                kept_N, weights_N = prune(losses_N, self.r if prunes else 0.0, rng)
                pending_N = kept_N & trainable_N
                notes = {"num_kept": int(pending_N.sum()), "num_left_out": int((trainable_N & ~pending_N).sum())}
            rows = np.flatnonzero(pending_N)
            # A pass that begins in the middle of a decision gives rows that are not in it yet first.
            order = rows[np.lexsort((rng.random(len(rows)), taken_N[rows]))]
            rows_K = order[:missing]
            if taken_N[rows_K].any():  # a decision has each row once; what is missing are rows that were left out
                rows_K = rows_K[~taken_N[rows_K]]
                others = np.flatnonzero(trainable_N & ~taken_N & ~pending_N)
                fill = others[np.argsort(rng.random(len(others)))[: missing - len(rows_K)]]
                weights_N[fill] = 1.0
                rows_K = np.concatenate([rows_K, fill])
            taken_N[rows_K], pending_N[rows_K] = True, False
            factors_N[rows_K] = weights_N[rows_K]
            parts.append(rows_K)
            missing -= len(rows_K)
        selection = Selection(
            rows_Q=np.concatenate(parts).astype(np.int64),
            decision="guided",
            ordered=True,
            columns_N={"factor": factors_N},
            notes={"passes": passes, "num_pending": int(pending_N.sum()), **notes},
        )
        return selection, {**state, "pending_N": pending_N, "weights_N": weights_N, "passes": np.array(passes)}

    def foresee(self, num_drawn: int, num_rows: int) -> str:
        """What is known of a run that draws so many rows of so large a pool; for ``plan``."""
        if num_drawn <= num_rows:
            return (
                f"infobatch leaves nothing out in this run: {num_drawn:,} rows are drawn of {num_rows:,}, and only "
                "rows that were trained before can be left out; train longer, or take random"
            )
        low, high = (self.r * share for share in (0.5, 0.7))
        return (
            f"infobatch leaves {low:.0%} to {high:.0%} of the rows out of each pass after the first, where half to 0.7 "
            f"of them lie below the mean loss; nothing after {self.delta:.0%} of the run"
        )


def prune(losses_N: np.ndarray, r: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the next pass, bool, and how much each counts, float64, both of shape (N,).

    With mu the mean of the finite losses, of the n rows below mu ``max(1, floor((1 - r) n + 0.5))`` are kept.
    """
    seen_N = np.isfinite(losses_N)
    kept_N, weights_N = np.ones(len(losses_N), dtype=bool), np.ones(len(losses_N))
    if not seen_N.any() or r == 0:
        return kept_N, weights_N
    low = np.flatnonzero(seen_N & (np.where(seen_N, losses_N, np.inf) < np.mean(losses_N[seen_N], dtype=np.float64)))
    if len(low) == 0:
        return kept_N, weights_N
    num_kept = max(1, int(round((1 - r) * len(low) + 0.5, 9)))  # against rounding: .7 x 45 + .5 is 32
    dropped = low[np.argsort(rng.random(len(low)), kind="stable")[num_kept:]]
    kept_N[dropped] = False
    weights_N[low] = len(low) / num_kept
    weights_N[dropped] = 1.0
    return kept_N, weights_N
