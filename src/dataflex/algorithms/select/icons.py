"""ICONS: every target group votes for the samples most similar to it; the samples with most votes are taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import PoolInfo, Progress, Selection, Signals, State
from dataflex.algorithms.checks import require_one_of
from dataflex.algorithms.select.gradient import GradientSelector, group_columns
from dataflex.core.draw import check_quota


@dataclass(frozen=True, kw_only=True)
class Icons(GradientSelector):
    """Take the samples that most target groups have among their best.

    With s_ik the similarity of sample i to group k (``less``) and Q the quota::

        threshold_k = the Q-th largest finite s_ik of group k
        votes_i     = number of groups with s_ik >= threshold_k

    The Q samples with most votes; with G groups there are only G + 1 numbers of votes, so that ties decide much.

    Args:
        tie_break: ``mean_rank`` over all groups, then row; or ``row`` alone.
        gradient_type, engine, bias_correction, proj_dim, seed, cache_dir: see ``GradientSelector``.

    Raises:
        ConfigError: a parameter out of range.

    Source: ICONS (2501.00654), sec. 3. Departures: a threshold is a sample's own similarity, not interpolated; ties are
    broken by mean rank, where the released code leaves them to the sort.
    """

    tie_break: Literal["mean_rank", "row"] = "mean_rank"

    needs: ClassVar[frozenset[str]] = frozenset({"similarities"})
    source: ClassVar[str] = "ICONS 2501.00654"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("tie_break", self.tie_break, ("mean_rank", "row"))

    def init(self, pool: PoolInfo) -> State:
        return {}

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        similarities_NxG = np.asarray(signals["similarities"], dtype=np.float64)
        scored_N = np.isfinite(similarities_NxG).all(axis=1)
        check_quota(quota, int(scored_N.sum()))
        votes_N, thresholds_G = votes(similarities_NxG, quota)
        ranks_N = mean_ranks(similarities_NxG)
        ties_N = ranks_N if self.tie_break == "mean_rank" else np.zeros(len(ranks_N))
        order = np.lexsort((np.arange(len(votes_N)), ties_N, -votes_N, ~scored_N))
        selection = Selection(
            rows_Q=order[:quota].astype(np.int64),
            decision="guided",
            columns_N={"votes": votes_N, "mean_rank": ranks_N.astype(np.float32), **group_columns(similarities_NxG)},
            notes={
                "thresholds": thresholds_G.tolist(),
                "num_scored": int(scored_N.sum()),
                "num_unscored": int((~scored_N).sum()),
            },
            warnings=self.unused(progress),
        )
        return selection, state


def votes(similarities_NxG: np.ndarray, quota: int) -> tuple[np.ndarray, np.ndarray]:
    """Votes of each row, int64, shape (N,), and the threshold of each group, shape (G,); no votes for a NaN row."""
    scored_N = np.isfinite(similarities_NxG).all(axis=1)
    descending_MxG = -np.sort(-similarities_NxG[scored_N], axis=0)
    thresholds_G = descending_MxG[min(quota, len(descending_MxG)) - 1]
    votes_N = np.zeros(len(similarities_NxG), dtype=np.int64)
    votes_N[scored_N] = (similarities_NxG[scored_N] >= thresholds_G).sum(axis=1)
    return votes_N, thresholds_G


def mean_ranks(similarities_NxG: np.ndarray) -> np.ndarray:
    """Mean over groups of a row's rank, 0 the best, equal similarities ranked alike, shape (N,); NaN for a NaN row."""
    scored_N = np.isfinite(similarities_NxG).all(axis=1)
    ranks_N = np.full(len(similarities_NxG), np.nan)
    ascending_MxG = -similarities_NxG[scored_N]
    ranks_MxG = [np.searchsorted(np.sort(column), column) for column in ascending_MxG.T]
    ranks_N[scored_N] = np.mean(ranks_MxG, axis=0)
    return ranks_N
