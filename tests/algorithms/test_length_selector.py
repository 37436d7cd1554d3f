"""Length: longest, shortest, a band; and what comes again when."""

import numpy as np
import pytest

from dataflex.algorithms.base import PoolInfo
from dataflex.algorithms.select.length import Length
from dataflex.core.errors import DataFlexError
from dataflex.core.seeds import segment_rng
from dataflex.testing import PLAN

LABELS = np.array([5, 9, 0, 7, 9, 1, 3])
TOTALS = np.array([50, 10, 99, 30, 20, 60, 40])
INFO = PoolInfo(num_tokens_N=TOTALS, num_label_tokens_N=LABELS)
PROGRESS = PLAN.progress(PLAN.segment_at(1))


def choose(selector: Length, quota: int, times=(0,) * 7, segment: int = 0, info: PoolInfo = INFO):
    signals = {"times_trained": np.array(times, dtype=np.int32)}
    return selector.select(selector.init(info), signals, quota, PROGRESS, segment_rng(0, segment, "select"))[0]


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({}, [1, 4, 3, 0]),
        ({"take": "shortest"}, [5, 6, 0, 3]),
        ({"by": "total"}, [5, 0, 6, 3]),
        ({"by": "total", "take": "shortest"}, [1, 4, 3, 6]),
    ],
)
def test_the_order_is_by_length_then_row_and_rows_without_labels_are_left_out(params, wanted):
    assert choose(Length(**params), 4).rows_Q.tolist() == wanted
    assert 2 not in choose(Length(**params), 6).rows_Q


def test_used_rows_come_again_only_after_the_others():
    assert choose(Length(), 4, times=[0, 1, 0, 1, 1, 0, 0]).rows_Q.tolist() == [0, 6, 5, 1]
    assert choose(Length(), 3, times=[2, 1, 0, 2, 2, 2, 2]).rows_Q.tolist() == [1, 4, 3]


def test_reuse_always_takes_the_same_top_rows_again():
    assert choose(Length(reuse="always"), 2, times=[0, 5, 0, 0, 1, 0, 0]).rows_Q.tolist() == [1, 4]


@pytest.mark.parametrize("take", ["longest", "band"])
def test_reuse_never_ends_with_an_error_that_names_both_numbers(take):
    selector = Length(reuse="never", take=take, band=(0.0, 1.0))
    times = [0, 1, 0, 1, 1, 0, 0]
    assert sorted(choose(selector, 3, times=times).rows_Q.tolist()) == [0, 5, 6]
    with pytest.raises(DataFlexError, match=r"only 3 unused samples .* quota of 4"):
        choose(selector, 4, times=times)


def test_a_band_holds_the_lengths_between_two_quantiles_of_the_trainable_rows_ends_included():
    lengths = np.array([*range(1, 12), 0, 0, 0])  # eleven trainable rows: quantiles .1 and .9 are 2 and 10
    info = PoolInfo(num_tokens_N=lengths + 3, num_label_tokens_N=lengths)
    selection = choose(Length(take="band"), 9, times=[0] * 14, info=info)
    assert selection.notes == {"band_tokens": [2.0, 10.0], "num_in_band": 9}
    assert sorted(lengths[selection.rows_Q].tolist()) == list(range(2, 11))
    with pytest.raises(DataFlexError, match=r"quota of 10 .* 9 samples"):
        choose(Length(take="band"), 10, times=[0] * 14, info=info)


def test_a_band_is_drawn_uniformly():
    counts = np.zeros(7)
    for segment in range(2000):
        counts[choose(Length(take="band", band=(0.0, 0.5)), 1, segment=segment).rows_Q] += 1
    assert counts / 2000 == pytest.approx([1 / 3, 0, 0, 0, 0, 1 / 3, 1 / 3], abs=0.05)


def test_a_band_takes_unused_rows_first_unless_told_otherwise():
    times = [1, 0, 0, 0, 0, 1, 0]
    firsts = {choose(Length(take="band", band=(0, 0.5)), 1, times, s).rows_Q[0] for s in range(20)}
    assert firsts == {6}
    always = Length(take="band", band=(0, 0.5), reuse="always")
    assert {choose(always, 1, times, s).rows_Q[0] for s in range(40)} == {0, 5, 6}


@pytest.mark.parametrize("take", ["longest", "shortest", "band"])
def test_a_pool_without_label_tokens_is_an_error_and_no_crash(take):
    info = PoolInfo(num_tokens_N=TOTALS, num_label_tokens_N=np.zeros(7, dtype=int))
    with pytest.raises(DataFlexError, match="0 samples"):
        choose(Length(take=take), 1, info=info)
