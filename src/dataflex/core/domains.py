"""Arithmetic over domains: sizes, shares, means by domain, entropy; rows of domain d are those where domain_N == d."""

from __future__ import annotations

import numpy as np

from dataflex.core.errors import DataFlexError


def count_rows(domain_N: np.ndarray, num_domains: int, allowed_N: np.ndarray | None = None) -> np.ndarray:
    """Rows of each domain, only the allowed ones if given; int64, shape (D,).

    >>> count_rows(np.array([0, 2, 2]), 4).tolist()
    [1, 0, 2, 0]
    """
    checked_N = _checked(domain_N, num_domains)
    return np.bincount(checked_N if allowed_N is None else checked_N[allowed_N], minlength=num_domains)


def sum_by_domain(values_N: np.ndarray, domain_N: np.ndarray, num_domains: int) -> np.ndarray:
    """Sum of the values of each domain, float64, shape (D,); ranks add these up, never means."""
    return np.bincount(_checked(domain_N, num_domains), weights=np.asarray(values_N, float), minlength=num_domains)


def loss_by_domain(loss_sums_N: np.ndarray, tokens_N: np.ndarray, domain_N: np.ndarray, num_domains: int) -> np.ndarray:
    """Mean loss per label token of each domain: sum of losses over sum of tokens, in the unit of the loss (nats).

    Rows without a label token or with a loss that is not finite are left out; NaN where a domain has none left.

    >>> loss_by_domain(np.array([6.0, 4, 9]), np.array([4, 2, 6]), np.array([0, 0, 1]), 3).round(3).tolist()
    [1.667, 1.5, nan]
    """
    seen_N = np.isfinite(loss_sums_N) & (np.asarray(tokens_N) > 0)
    domain_N = _checked(domain_N, num_domains)[seen_N]
    tokens_D = sum_by_domain(np.asarray(tokens_N)[seen_N], domain_N, num_domains)
    sums_D = sum_by_domain(np.asarray(loss_sums_N)[seen_N], domain_N, num_domains)
    return np.divide(sums_D, tokens_D, out=np.full(num_domains, np.nan), where=tokens_D > 0)


def shares(values_D: np.ndarray) -> np.ndarray:
    """The values divided by their sum, float64.

    Raises:
        DataFlexError: a negative or non-finite value, or none above 0.
    """
    values_D = np.asarray(values_D, dtype=np.float64)
    if not np.all(np.isfinite(values_D)) or np.any(values_D < 0) or not np.any(values_D > 0):
        raise DataFlexError("shares must be finite, not negative and not all zero")
    values_D = values_D / values_D.max()  # a sum of huge values would overflow
    return values_D / values_D.sum()


def row_shares(token_shares_D: np.ndarray, mean_tokens_D: np.ndarray) -> np.ndarray:
    """Shares of rows that give these shares of label tokens: rows_d ~ p_d / mean_tokens_d, sum 1.

    >>> row_shares(np.array([0.5, 0.5]), np.array([128.0, 384.0])).round(9).tolist()
    [0.75, 0.25]

    Raises:
        DataFlexError: a domain with a share has no label tokens.
    """
    token_shares_D, mean_tokens_D = np.asarray(token_shares_D, float), np.asarray(mean_tokens_D, float)
    wanted_D = token_shares_D > 0
    if np.any(mean_tokens_D[wanted_D] <= 0):
        raise DataFlexError("a domain without label tokens has a share of the tokens; give it the share 0")
    return shares(np.divide(token_shares_D, mean_tokens_D, out=np.zeros(len(token_shares_D)), where=wanted_D))


def softmax(values_N: np.ndarray) -> np.ndarray:
    """exp(v) / sum exp(v), which no value overflows; -inf gets 0.

    >>> softmax(np.array([1000.0, 1000.0])).tolist()
    [0.5, 0.5]
    """
    powers_N = np.exp(np.asarray(values_N, float) - np.max(values_N))
    return powers_N / powers_N.sum()


def entropy(shares_D: np.ndarray) -> float:
    """-sum p log p in nats, 0 log 0 = 0; exp of it is the number of domains that are effectively mixed.

    >>> round(float(np.exp(entropy(np.array([0.25, 0.25, 0.25, 0.25, 0.0])))), 12)
    4.0
    """
    shares_D = np.asarray(shares_D, dtype=np.float64)
    positive = shares_D[shares_D > 0]
    return float(-(positive * np.log(positive)).sum()) + 0.0


def share_moved(before_D: np.ndarray, after_D: np.ndarray) -> float:
    """Total variation: the share that went from one domain to another, 0 to 1.

    >>> round(share_moved(np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])), 12)
    0.25
    """
    return float(np.abs(np.asarray(after_D, float) - np.asarray(before_D, float)).sum() / 2)


def _checked(domain_N: np.ndarray, num_domains: int) -> np.ndarray:
    domain_N = np.asarray(domain_N, dtype=np.int64)
    if len(domain_N) and not (domain_N.min() >= 0 and domain_N.max() < num_domains):
        raise DataFlexError(
            f"domain numbers reach from {domain_N.min()} to {domain_N.max()}; they must lie in 0 to {num_domains - 1}"
        )
    return domain_N
