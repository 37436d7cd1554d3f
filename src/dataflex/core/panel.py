"""Which rows a budget is spent on: a panel that goes round in each stratum, within what can be afforded."""

from __future__ import annotations

import numpy as np

from dataflex.core.draw import apportion


def choose_panel(
    candidates_M: np.ndarray,
    strata_N: np.ndarray,
    last_scored_N: np.ndarray,
    costs_N: np.ndarray,
    *,
    affordable: float,
    most: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Rows to score, the longest unscored first in each stratum, ties at random; ascending int64.

    The strata have their shares of the candidates. Costs never add up to more than ``affordable``.

    Args:
        candidates_M: rows that may be scored.
        strata_N: stratum of every row, 0, 1, 2 ...
        last_scored_N: when each row was last scored, -1: never.
        costs_N: of scoring each row, > 0.
        affordable: most that all of them may cost.
        most: most rows.

    >>> choose_panel(np.arange(4), np.zeros(4, int), np.array([5, -1, 5, -1]), np.ones(4), affordable=2, most=9,
    ...              rng=np.random.default_rng(0)).tolist()
    [1, 3]
    """
    candidates_M = np.asarray(candidates_M, dtype=np.int64)
    if len(candidates_M) == 0:
        return candidates_M
    mean = float(costs_N[candidates_M].mean())
    size = min(int(affordable // mean) if affordable > 0 else 0, most, len(candidates_M))
    stratum_M = strata_N[candidates_M]
    available_D = np.bincount(stratum_M)
    # Remainders go to strata at random: by number, the last of many small ones would never have their turn.
    dealt_D = np.argsort(rng.random(len(available_D)))
    counts_D = np.empty(len(available_D), dtype=np.int64)
    counts_D[dealt_D] = apportion(available_D[dealt_D] / len(candidates_M), size, available_D[dealt_D])
    order = np.lexsort((rng.random(len(candidates_M)), last_scored_N[candidates_M], stratum_M))
    first_D = np.cumsum(available_D) - available_D
    place_M = np.arange(len(order)) - first_D[stratum_M[order]]
    taken = candidates_M[order][place_M < counts_D[stratum_M[order]]]
    # Rows differ in cost: what is too much goes at random, so that no stratum or length is left out.
    taken = taken[np.argsort(rng.random(len(taken)))]
    return np.sort(taken[np.cumsum(costs_N[taken]) <= affordable])
