"""What is known of a row's text without any model: lengths, how usual its tokens are, which tokens it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.decomposition import TruncatedSVD

from dataflex.signals.blocks import Block

BIGRAM_BUCKETS = 1 << 22  # hashed; 16 MiB of counts
TOKEN_BUCKETS = 2048  # hashed tokens of which the directions are made
DIRECTIONS = 32
FITTED_ROWS = 20_000  # rows that the directions are found from, spread over the pool
BACKOFF = 2.0  # tokens' worth of the unigram distribution behind each bigram distribution


def length_features(num_tokens_N: np.ndarray, num_label_tokens_N: np.ndarray) -> np.ndarray:
    """log(1 + tokens) and log(1 + label tokens), float32, shape (N, 2)."""
    return np.log1p(np.stack([num_tokens_N, num_label_tokens_N], axis=1).astype(np.float64)).astype(np.float32)


def group_features(codes_N: np.ndarray) -> np.ndarray:
    """One column a group, 1 where a row is of it, float32, shape (N, G)."""
    return np.eye(int(codes_N.max(initial=-1)) + 1, dtype=np.float32)[codes_N]


def text_features(blocks: Callable[[], Iterable[Block]]) -> np.ndarray:
    """Features of each row's tokens, float32, shape (N, 3 + DIRECTIONS); fewer directions for a small pool.

    Mean unigram and mean bigram negative log-likelihood of the label tokens under the counts of all other rows (the
    row's own counts are taken out, the bigrams back off to the unigrams and are hashed); the share of distinct tokens;
    the row's place along the principal directions of log(1 + count) by hashed token, scaled to length 1.

    Args:
        blocks: the pool's rows in order, each time it is called; it is read twice, and a row's text is not kept.
    """
    unigrams_V, bigrams_H, sampled = _count(blocks)
    vectors: Any = sparse.vstack(sampled)
    num_directions = min(DIRECTIONS, vectors.shape[0] - 1, TOKEN_BUCKETS - 1)
    svd = TruncatedSVD(num_directions, random_state=0).fit(vectors) if num_directions > 0 else None
    parts = []
    for block in blocks():
        likelihoods_Bx2 = _negative_log_likelihoods(block, unigrams_V, bigrams_H)
        directions_BxD = svd.transform(_vectors(block)) if svd is not None else np.zeros((len(block.lengths_B), 0))
        parts.append(np.hstack([likelihoods_Bx2, _distinct_share(block)[:, None], directions_BxD]))
    return np.concatenate(parts).astype(np.float32)


def _count(blocks: Callable[[], Iterable[Block]]) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Unigram and hashed bigram counts of the pool, and the token vectors of some rows."""
    unigrams_V, bigrams_H = np.zeros(1, dtype=np.int64), np.zeros(BIGRAM_BUCKETS, dtype=np.int32)
    sampled: list[Any] = []
    stride, num_sampled = 1, 0
    for block in blocks():
        counts_V = np.bincount(block.tokens_T, minlength=len(unigrams_V))
        counts_V[: len(unigrams_V)] += unigrams_V
        unigrams_V = counts_V
        bigrams_H += np.bincount(_bigrams(block)[1], minlength=BIGRAM_BUCKETS).astype(np.int32)
        sampled.append(_vectors(block)[::stride])
        num_sampled += sampled[-1].shape[0]
        if num_sampled > 2 * FITTED_ROWS:  # every second of those so far, and of those to come
            sampled, stride = [vectors[::2] for vectors in sampled], stride * 2
            num_sampled = sum(vectors.shape[0] for vectors in sampled)
    return unigrams_V, bigrams_H, sampled


def _bigrams(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """(positions that have a token before them in their row, bucket of each such pair)."""
    first_B = np.cumsum(block.lengths_B) - block.lengths_B
    follows_T = np.ones(len(block.tokens_T), dtype=bool)
    follows_T[first_B[block.lengths_B > 0]] = False
    position_P = np.flatnonzero(follows_T)
    pair_P = (block.tokens_T[position_P - 1] << 32) + block.tokens_T[position_P]
    return position_P, _mixed(pair_P, BIGRAM_BUCKETS)


def _mixed(keys: np.ndarray, num_buckets: int) -> np.ndarray:
    """A bucket of each key, int64: the finalizer of splitmix64 (Steele, Lea, Flood 2014); ``num_buckets`` is 2**k."""
    words = keys.astype(np.uint64)
    with np.errstate(over="ignore"):
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words = words ^ (words >> np.uint64(31))
    return (words & np.uint64(num_buckets - 1)).astype(np.int64)


def _negative_log_likelihoods(block: Block, unigrams_V: np.ndarray, bigrams_H: np.ndarray) -> np.ndarray:
    """Mean (unigram, bigram) negative log-likelihood over each row's label tokens, shape (B, 2)."""
    row_T, tokens_T = block.row_T, block.tokens_T
    size = len(unigrams_V)
    own_T = _times_in_row(row_T * size + tokens_T)
    others_T = unigrams_V[tokens_T] - own_T
    seen = np.count_nonzero(unigrams_V) + 1
    total_T = unigrams_V.sum() - block.lengths_B[row_T]
    unigram_T = (others_T + 1.0) / (total_T + seen)
    position_P, bucket_P = _bigrams(block)
    own_P = _times_in_row(row_T[position_P] * BIGRAM_BUCKETS + bucket_P)
    before_P = position_P - 1
    context_P = unigrams_V[tokens_T[before_P]] - own_T[before_P]
    bigram_T = unigram_T.copy()  # of a row's first token, which none stands before
    together_P = np.minimum(bigrams_H[bucket_P] - own_P, context_P)
    bigram_T[position_P] = (together_P + BACKOFF * unigram_T[position_P]) / (context_P + BACKOFF)
    counted_B = np.maximum(1, np.bincount(row_T, weights=block.counted_T, minlength=len(block.lengths_B)))
    sums = [
        np.bincount(row_T, weights=-np.log(share_T) * block.counted_T, minlength=len(block.lengths_B))
        for share_T in (unigram_T, bigram_T)
    ]
    return np.stack(sums, axis=1) / counted_B[:, None]


def _times_in_row(keys_T: np.ndarray) -> np.ndarray:
    """How often each key is there; keys hold their row."""
    _, inverse_T, counts = np.unique(keys_T, return_inverse=True, return_counts=True)
    return counts[inverse_T]


def _distinct_share(block: Block) -> np.ndarray:
    row_T = block.row_T
    size = int(block.tokens_T.max(initial=0)) + 1
    distinct_B = np.bincount(np.unique(row_T * size + block.tokens_T) // size, minlength=len(block.lengths_B))
    return distinct_B / np.maximum(1, block.lengths_B)


def _vectors(block: Block) -> sparse.csr_matrix:
    """log(1 + count) of each row's hashed tokens, scaled to length 1, shape (B, TOKEN_BUCKETS)."""
    bucket_T = np.where(block.tokens_T < TOKEN_BUCKETS, block.tokens_T, _mixed(block.tokens_T, TOKEN_BUCKETS))
    keys, counts = np.unique(block.row_T * TOKEN_BUCKETS + bucket_T, return_counts=True)
    row, bucket = np.divmod(keys, TOKEN_BUCKETS)
    values = np.log1p(counts.astype(np.float64))
    norms_B = np.sqrt(np.bincount(row, weights=values**2, minlength=len(block.lengths_B)))
    values /= norms_B[row]
    return sparse.csr_matrix((values, (row, bucket)), shape=(len(block.lengths_B), TOKEN_BUCKETS))
