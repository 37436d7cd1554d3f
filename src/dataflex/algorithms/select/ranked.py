"""Rows by a score that does not change during the run, each used once before any is used again."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dataflex.core.draw import check_quota, draw, least_used_first
from dataflex.core.errors import DataFlexError

Reuse = Literal["after_exhaustion", "never", "always"]
REUSE = ("after_exhaustion", "never", "always")


def take_ranked(
    scores_N: np.ndarray, times_trained_N: np.ndarray, quota: int | None, reuse: Reuse, allowed_N: np.ndarray
) -> np.ndarray:
    """Return the ``quota`` allowed rows of highest score, best first, ties by row; all of them where it is None.

    Rows that were trained less often come first (``after_exhaustion``), or alone (``never``), or their past does not
    count (``always``: the same top rows again and again).
    """
    candidates_N = usable(times_trained_N, quota, reuse, allowed_N)
    rows = np.flatnonzero(candidates_N)
    used = np.zeros(len(rows)) if reuse == "always" else times_trained_N[rows]
    order = np.lexsort((rows, -scores_N[rows], used))
    return rows[order[:quota]].astype(np.int64)


def take_uniform(
    times_trained_N: np.ndarray, quota: int | None, reuse: Reuse, allowed_N: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Like ``take_ranked`` with a random order in place of the score."""
    candidates_N = usable(times_trained_N, quota, reuse, allowed_N)
    counts_N = np.zeros_like(times_trained_N) if reuse == "always" else times_trained_N
    quota = int(candidates_N.sum()) if quota is None else quota
    return least_used_first(counts_N, quota, rng, candidates_N)


def take_weighted(
    weights_N: np.ndarray,
    times_trained_N: np.ndarray,
    quota: int | None,
    reuse: Reuse,
    allowed_N: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Like ``take_ranked`` with a weighted draw without replacement in place of the score; weight 0 is never drawn."""
    candidates_N = usable(times_trained_N, quota, reuse, allowed_N & (weights_N > 0))
    rows = draw(np.where(candidates_N, weights_N, 0.0), int(candidates_N.sum()), rng)
    used = np.zeros(len(rows)) if reuse == "always" else times_trained_N[rows]
    return rows[np.argsort(used, kind="stable")[:quota]]


def usable(times_trained_N: np.ndarray, quota: int | None, reuse: Reuse, allowed_N: np.ndarray) -> np.ndarray:
    """Rows that may be taken, shape (N,), bool; raises when they cannot fill the quota."""
    if reuse != "never":
        check_quota(quota or 0, int(allowed_N.sum()))
        return allowed_N
    unused_N = allowed_N & (times_trained_N == 0)
    if unused_N.sum() < (quota or 0):
        raise DataFlexError(
            f"only {int(unused_N.sum())} unused samples are left for a quota of {quota}; "
            "set reuse: after_exhaustion, or shorten the run"
        )
    return unused_N
