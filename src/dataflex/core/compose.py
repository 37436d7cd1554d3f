"""How decisions meet: selection and mixture give rows, weights multiply, label masks intersect."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dataflex.core.domains import shares
from dataflex.core.draw import draw
from dataflex.core.errors import DataFlexError

MODES = ("mix_then_select", "select_then_mix")


def ranking_of_weights(weights_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All rows of weight above 0 in the order of one weighted draw without replacement, int64, shape (M,).

    Its first Q rows are ``draw(weights_N, Q, rng)``, and its first q rows of a domain are such a draw from that domain.
    """
    return draw(weights_N, int(np.count_nonzero(weights_N)), rng)


def single_draw_probabilities(omega_N: np.ndarray, domain_N: np.ndarray, proportions_D: np.ndarray) -> np.ndarray:
    """Probability of each row in one draw: pi_d * omega_i / sum of omega over the row's domain; float64, sum 1.

    A domain in which every omega is 0 gives its share to the others.

    >>> single_draw_probabilities(np.array([1.0, 3, 2]), np.array([0, 0, 1]), np.array([0.5, 0.5])).tolist()
    [0.125, 0.375, 0.5]
    """
    omega_N, proportions_D = np.asarray(omega_N, float), np.asarray(proportions_D, float)
    totals_D = np.bincount(domain_N, weights=omega_N, minlength=len(proportions_D))
    live_D = shares(np.where(totals_D > 0, proportions_D, 0.0))
    safe_D = np.where(totals_D > 0, totals_D, 1.0)
    return live_D[domain_N] * omega_N / safe_D[domain_N]


def mix_then_select(ranking_M: np.ndarray, domain_N: np.ndarray, counts_D: np.ndarray) -> np.ndarray:
    """The first ``counts_D[d]`` rows of each domain in the selector's ranking, in the order of the ranking.

    >>> mix_then_select(np.array([3, 0, 2, 1]), np.array([0, 0, 1, 1]), np.array([1, 2])).tolist()
    [3, 0, 2]

    Raises:
        DataFlexError: the ranking holds too few rows of a domain.
    """
    ranked_M = domain_N[ranking_M]
    place_M = _place_in_group(ranked_M)
    taken_M = place_M < np.asarray(counts_D)[ranked_M]
    got_D = np.bincount(ranked_M[taken_M], minlength=len(counts_D))
    if np.any(got_D < counts_D):
        short = int(np.argmax(got_D < counts_D))
        raise DataFlexError(
            f"{int(counts_D[short])} rows are wanted of domain {short}, of which the selector can draw "
            f"{int(got_D[short])}; lower its share, or widen what the selector may draw"
        )
    return np.asarray(ranking_M)[taken_M].astype(np.int64)


def num_proposed(quota: int, keep: float) -> int:
    """ceil(quota / keep), against rounding: 6 / 0.6 are 10 proposals."""
    return math.ceil(round(quota / keep, 9))


def select_then_mix(
    ranking_M: np.ndarray,
    domain_N: np.ndarray,
    counts_D: np.ndarray,
    keep: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Rows of each domain, uniformly among the selector's proposals; missing ones from the same domain by rank.

    The proposals are the first ceil(Q / keep) rows of the ranking, 0 < keep <= 1, Q the sum of the counts. Given them,
    a row of domain d is drawn with probability pi_d / (proposals of d).

    Returns:
        Row indices, int64, shape (Q,), those of the proposals first.

    Raises:
        DataFlexError: the ranking holds too few rows of a domain.
    """
    num_proposals = num_proposed(int(np.sum(counts_D)), keep)
    u_N = rng.random(len(domain_N))
    proposals, others = np.asarray(ranking_M)[:num_proposals], np.asarray(ranking_M)[num_proposals:]
    shuffled = proposals[np.argsort(u_N[proposals], kind="stable")]
    return mix_then_select(np.concatenate([shuffled, others]), domain_N, counts_D)


def multiply_weights(
    weights_KxB: Sequence[np.ndarray], *, mean_one: bool = False, scored_B: np.ndarray | None = None
) -> np.ndarray:
    """The product of all weighers' coefficients, divided by its mean over the scope if ``mean_one``; shape (B,).

    Rows outside of ``scored_B`` (no label token, no finite loss) are in no mean; a row that a weigher gave 0 is. Where
    all coefficients of a scope are 0 they stay 0.

    >>> multiply_weights([np.array([2.0, 1, 1, 0]), np.array([0.5, 1, 1.5, 1])], mean_one=True).round(6).tolist()
    [1.142857, 1.142857, 1.714286, 0.0]
    """
    product_B = np.prod(np.stack([np.asarray(c_B, dtype=np.float64) for c_B in weights_KxB]), axis=0)
    if not mean_one:
        return product_B
    counted = product_B if scored_B is None else product_B[scored_B]
    mean = counted.mean() if len(counted) else 1.0
    return product_B / mean if mean != 0 else product_B


def intersect_label_masks(masks_KxBxT: Sequence[np.ndarray]) -> np.ndarray:
    """Labels that every method keeps, bool, shape (B, T)."""
    return np.logical_and.reduce([np.asarray(mask_BxT, dtype=bool) for mask_BxT in masks_KxBxT])


def weighted_loss(loss_sums_B: np.ndarray, tokens_B: np.ndarray, weights_B: np.ndarray) -> float:
    """sum_i c_i S_i / sum_i T_i: the weights multiply the numerator only; a row of weight 0 may have any loss."""
    counted_B = np.asarray(weights_B) != 0
    numerator = (np.asarray(weights_B, float)[counted_B] * np.asarray(loss_sums_B, float)[counted_B]).sum()
    return float(numerator / np.sum(tokens_B))


def _place_in_group(groups_M: np.ndarray) -> np.ndarray:
    """How many earlier entries belong to the same group."""
    order = np.argsort(groups_M, kind="stable")
    sorted_M = groups_M[order]
    first_M = np.searchsorted(sorted_M, sorted_M, side="left")
    place_M = np.empty(len(groups_M), dtype=np.int64)
    place_M[order] = np.arange(len(groups_M)) - first_M
    return place_M
