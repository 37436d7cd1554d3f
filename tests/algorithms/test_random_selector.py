"""Random: shuffled passes over the pool."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.algorithms.base import PoolInfo
from dataflex.algorithms.select.random import Random
from dataflex.core.errors import DataFlexError
from dataflex.core.seeds import segment_rng
from dataflex.testing import PLAN, Pool

PROGRESS = PLAN.progress(PLAN.segment_at(1))


def draw_once(selector, pool_info, times_N, quota, seed=0, segment=0):
    signals = {"times_trained": times_N}
    return selector.select(selector.init(pool_info), signals, quota, PROGRESS, segment_rng(seed, segment, "select"))[0]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=12), st.lists(st.integers(1, 12), max_size=12), st.integers())
def test_after_any_segments_no_row_was_trained_twice_more_than_another(label_tokens, quotas, seed):
    labels_N = np.array([*label_tokens, 0])  # the last row has nothing to learn from
    pool = PoolInfo(num_tokens_N=labels_N + 4, num_label_tokens_N=labels_N)
    times_N = np.zeros(len(labels_N), dtype=np.int32)
    for segment, quota in enumerate(quotas):
        rows_Q = draw_once(Random(), pool, times_N, min(quota, len(label_tokens)), seed, segment).rows_Q
        times_N[rows_Q] += 1
        assert np.ptp(times_N[:-1]) <= 1
    assert times_N[-1] == 0


def test_the_rest_of_the_old_pass_comes_first():
    times_N = np.array([1, 1, 0, 1, 0, 1], dtype=np.int32)
    rows_Q = draw_once(Random(), Pool.of_size(6).info, times_N, 4).rows_Q
    assert set(rows_Q[:2].tolist()) == {2, 4}
    assert len(set(rows_Q.tolist())) == 4


def test_rows_that_the_warmup_trained_count():
    times_N = np.zeros(10, dtype=np.int32)
    times_N[[0, 1, 2, 3, 4, 5]] = 1
    for seed in range(5):
        assert set(draw_once(Random(), Pool.of_size(10).info, times_N, 4, seed).rows_Q.tolist()) == {6, 7, 8, 9}


def test_two_segments_are_drawn_differently():
    info, times_N = Pool.of_size(200).info, np.zeros(200, dtype=np.int32)
    one, other = (draw_once(Random(), info, times_N, 50, 0, segment).rows_Q.tolist() for segment in (1, 2))
    assert len(set(one) & set(other)) < 30


def test_the_draw_is_uniform():
    counts = np.zeros(8)
    for segment in range(4000):
        counts[draw_once(Random(), Pool.of_size(8).info, np.zeros(8, dtype=np.int32), 2, 0, segment).rows_Q] += 1
    assert counts / 4000 == pytest.approx([0.25] * 8, abs=0.031)


def test_with_replacement_the_past_does_not_count_and_any_quota_is_filled():
    times_N = np.array([9, 0, 0, 0], dtype=np.int32)
    info = PoolInfo(num_tokens_N=np.full(4, 9), num_label_tokens_N=np.array([3, 3, 0, 3]))
    rows_Q = draw_once(Random(replacement=True), info, times_N, 3000).rows_Q
    assert np.bincount(rows_Q, minlength=4) / 3000 == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.04)


def test_a_quota_above_the_pool_names_both_numbers():
    with pytest.raises(DataFlexError, match=r"quota of 7 .* 6 samples"):
        draw_once(Random(), Pool.of_size(6).info, np.zeros(6, dtype=np.int32), 7)
