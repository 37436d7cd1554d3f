"""Draws and ranks over rows: weighted draw without replacement, apportionment, stable top-k."""

from __future__ import annotations

import numpy as np

from dataflex.core.errors import DataFlexError


def draw(weights_N: np.ndarray, quota: int, rng: np.random.Generator, *, replacement: bool = False) -> np.ndarray:
    """Draw ``quota`` rows with probability proportional to their weight; rows of weight 0 are never drawn.

    Without replacement the rows with the largest log(u_i) / w_i are taken, which equals drawing one row after the
    other (Efraimidis & Spirakis 2006, algorithm A-Res); inclusion is therefore not exactly quota * w_i. Any N works.

    Args:
        weights_N: finite weights >= 0, one a row.
        quota: number of rows to draw.
        rng: the stream to draw from; exactly N uniforms are taken (``quota`` with replacement).
        replacement: allow a row to be drawn more than once.

    Returns:
        Row indices, int64, shape (quota,), in the order of the draw.

    Raises:
        DataFlexError: a negative or non-finite weight, or fewer drawable rows than ``quota``.
    """
    weights_N = np.asarray(weights_N, dtype=np.float64)
    if not np.all(np.isfinite(weights_N)) or np.any(weights_N < 0):
        raise DataFlexError("draw weights must be finite and not negative")
    num_drawable = int(np.count_nonzero(weights_N))
    if replacement:
        if quota > 0 and num_drawable == 0:
            raise DataFlexError("no row can be drawn: every weight is 0")
        cumulative_N = np.cumsum(_scaled(weights_N))
        targets_Q = rng.random(quota) * (cumulative_N[-1] if quota else 0.0)
        rows_Q = np.searchsorted(cumulative_N, targets_Q, side="right")
        return np.minimum(rows_Q, np.flatnonzero(weights_N)[-1] if num_drawable else 0).astype(np.int64)
    check_quota(quota, num_drawable)
    # The order of log(u) / w is that of log(w) - log(-log(u)), which does not overflow for tiny weights. u is
    # 1 - random, in (0, 1]; the one value 1 gives the key +inf.
    with np.errstate(divide="ignore", invalid="ignore"):
        keys_N = np.log(weights_N) - np.log(-np.log1p(-rng.random(len(weights_N))))
    return top_k(keys_N, quota, allowed_N=weights_N > 0)


def check_quota(quota: int, num_drawable: int) -> None:
    """Raise the one sentence for a quota that the pool cannot fill."""
    if quota > num_drawable:
        raise DataFlexError(
            f"the quota of {quota} samples until the next update is larger than the {num_drawable} samples that can "
            "be drawn; lower update_step or the batch size, add data, or set replacement: true where the method has it"
        )


def top_k(scores_N: np.ndarray, k: int, *, allowed_N: np.ndarray | None = None) -> np.ndarray:
    """Return the ``k`` rows of highest score among the allowed ones, best first, ties by ascending row.

    NaN scores rank last. O(N + k log k): a partition, then a sort of what can be among the first k.

    >>> top_k(np.array([1.0, 3.0, 3.0, 2.0]), 2).tolist()
    [1, 2]
    """
    rows = np.arange(len(scores_N)) if allowed_N is None else np.flatnonzero(allowed_N)
    keys = -np.asarray(scores_N, dtype=np.float64)[rows]
    if 0 < k < len(rows):
        threshold = np.partition(keys, k - 1)[k - 1]  # NaN partitions last
        if not np.isnan(threshold):
            kept = keys <= threshold
            rows, keys = rows[kept], keys[kept]
    order = np.argsort(keys, kind="stable")
    return rows[order[:k]].astype(np.int64)


def least_used_first(times_trained_N: np.ndarray, quota: int, rng: np.random.Generator, allowed_N: np.ndarray):
    """Draw ``quota`` allowed rows uniformly, those trained fewest times first: a shuffled pass over the pool at a time.

    When fewer unused rows are left than asked for, the rest of the old pass is taken first and the new pass begins.

    Returns:
        Row indices, int64, shape (quota,).

    Raises:
        DataFlexError: fewer allowed rows than ``quota``.
    """
    check_quota(quota, int(np.count_nonzero(allowed_N)))
    u_N = rng.random(len(times_trained_N))
    rows = np.flatnonzero(allowed_N)
    order = np.lexsort((u_N[rows], times_trained_N[rows]))
    return rows[order[:quota]].astype(np.int64)


def passes(allowed_N: np.ndarray, quota: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``quota`` allowed rows uniformly without replacement while they last: as many passes as it takes.

    Raises:
        DataFlexError: no row is allowed.
    """
    rows = np.flatnonzero(allowed_N)
    if quota > 0 and len(rows) == 0:
        raise DataFlexError("no row can be trained: none of the pool's rows has a label token")
    num_passes = -(-quota // max(1, len(rows)))
    shuffled = [rows[np.argsort(rng.random(len(rows)), kind="stable")] for _ in range(num_passes)]
    return np.concatenate([*shuffled, np.zeros(0, dtype=np.int64)])[:quota].astype(np.int64)


def apportion(proportions_D: np.ndarray, quota: int, capacity_D: np.ndarray | None = None) -> np.ndarray:
    """Split ``quota`` into whole numbers by proportion (largest remainder), none above its capacity.

    Shares above a capacity are fixed there and taken out, again until none is left; then floor, then one more to the
    largest remainders, ties to the lower index (Hare/Hamilton method).

    >>> apportion(np.array([0.6, 0.3, 0.1]), 20, np.array([5, 50, 50])).tolist()
    [5, 11, 4]

    Raises:
        DataFlexError: negative, non-finite or all-zero proportions, or capacities that cannot hold the quota.
    """
    p_D = np.asarray(proportions_D, dtype=np.float64)
    if not np.all(np.isfinite(p_D)) or np.any(p_D < 0) or (quota > 0 and p_D.sum() <= 0):
        raise DataFlexError("proportions must be finite, not negative and not all zero")
    capacity_D = np.full(len(p_D), quota, dtype=np.int64) if capacity_D is None else np.asarray(capacity_D)
    if quota > int(capacity_D[p_D > 0].sum()):
        raise DataFlexError(
            f"the quota of {quota} samples is larger than the {int(capacity_D[p_D > 0].sum())} samples of the domains "
            "that have a share; lower update_step or widen the proportions"
        )
    counts_D = np.zeros(len(p_D), dtype=np.int64)
    live_D = p_D > 0
    while quota > 0:
        left = quota - int(counts_D.sum())
        # Scaled anew each time: beside a large share, which may be taken out, a tiny one would vanish.
        live_p_D = _scaled(np.where(live_D, p_D, 0.0))
        shares_D = live_p_D / live_p_D.sum() * left if live_D.any() else np.zeros(len(p_D))
        shares_D = np.round(shares_D, 9)  # .05 x 8 and .8 x 8 leave the same remainder .4, but not in binary
        full_D = live_D & (shares_D > capacity_D)
        if full_D.any():
            counts_D[full_D] = capacity_D[full_D]
            live_D &= ~full_D
            continue
        floors_D = np.floor(shares_D).astype(np.int64)
        extra = left - int(floors_D[live_D].sum())
        remainders_D = np.where(live_D & (floors_D < capacity_D), np.round(shares_D - floors_D, 9), -np.inf)
        floors_D[np.argsort(-remainders_D, kind="stable")[:extra]] += 1
        counts_D[live_D] = floors_D[live_D]
        break
    return counts_D


def _scaled(weights_N: np.ndarray) -> np.ndarray:
    """The weights times a power of two, which is exact, so that the largest is near 1 and no sum overflows."""
    largest = weights_N.max(initial=0.0)
    return np.ldexp(weights_N, -np.frexp(largest)[1]) if largest > 0 else weights_N
