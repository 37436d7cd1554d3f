"""Text features against a plain twin, and that they hang on nothing but the rows."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("sklearn")

from dataflex.signals.blocks import Block
from dataflex.signals.features import BACKOFF, text_features


def rows(num_rows: int = 40, seed: int = 0) -> tuple[list[list[int]], list[list[bool]]]:
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(0, 30, rng.integers(2, 12)).tolist() for _ in range(num_rows)]
    counted = [[False, *(rng.random(len(row) - 1) < 0.6)] for row in tokens]
    return tokens, counted


def blocks(tokens: list[list[int]], counted: list[list[bool]], size: int):
    def read():
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            yield Block(
                tokens_T=np.array([token for row in part for token in row], dtype=np.int64),
                lengths_B=np.array([len(row) for row in part], dtype=np.int64),
                counted_T=np.array([flag for row in counted[start : start + size] for flag in row], dtype=bool),
            )

    return read


def twin(tokens: list[list[int]], counted: list[list[bool]]) -> np.ndarray:
    """(unigram, bigram) mean negative log-likelihood and distinct share of each row, by counting one row at a time."""
    found = []
    unigrams = Counter(token for row in tokens for token in row)
    bigrams = Counter(pair for row in tokens for pair in pairwise(row))
    total, kinds = sum(unigrams.values()), len(unigrams) + 1
    for row, flags in zip(tokens, counted, strict=True):
        own, own_pairs = Counter(row), Counter(pairwise(row))
        sums = [0.0, 0.0]
        for place, token in enumerate(row):
            unigram = (unigrams[token] - own[token] + 1) / (total - len(row) + kinds)
            bigram = unigram
            if place:
                before = row[place - 1]
                context = unigrams[before] - own[before]
                pair = (before, token)
                together = min(bigrams[pair] - own_pairs[pair], context)
                bigram = (together + BACKOFF * unigram) / (context + BACKOFF)
            if flags[place]:
                sums[0] -= math.log(unigram)
                sums[1] -= math.log(bigram)
        found.append([*(s / max(1, sum(flags)) for s in sums), len(own) / len(row)])
    return np.array(found)


def test_likelihoods_are_those_of_the_twin():
    tokens, counted = rows()
    features = text_features(blocks(tokens, counted, 7))
    np.testing.assert_allclose(features[:, :3], twin(tokens, counted), rtol=1e-5)


def test_the_size_of_blocks_changes_nothing():
    tokens, counted = rows(60)
    one, other = (text_features(blocks(tokens, counted, size)) for size in (60, 9))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_shuffled_text_is_less_likely_by_its_bigrams_alone():
    rng = np.random.default_rng(0)
    texts = [(np.arange(12) + rng.integers(0, 20)).tolist() for _ in range(200)]
    shuffled = [rng.permutation(row).tolist() for row in texts[:30]]
    tokens = texts + shuffled
    features = text_features(blocks(tokens, [[False] + [True] * 11] * 230, 50))
    unigram, bigram = features[:, 0], features[:, 1]
    assert bigram[200:].mean() > bigram[:200].mean() + 1
    assert abs(unigram[200:].mean() - unigram[:200].mean()) < 0.2


def test_directions_tell_vocabularies_apart():
    rng = np.random.default_rng(1)
    tokens = [(rng.integers(0, 50, 15) + 1000 * (row % 2)).tolist() for row in range(80)]
    features = text_features(blocks(tokens, [[False] + [True] * 14] * 80, 16))
    directions = features[:, 3:]
    apart = np.linalg.norm(directions[::2].mean(axis=0) - directions[1::2].mean(axis=0))
    assert apart > 0.5


@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_small_pools_have_fewer_directions(num_rows):
    tokens, counted = rows(num_rows)
    features = text_features(blocks(tokens, counted, 3))
    assert len(features) == num_rows
    assert np.isfinite(features).all()
