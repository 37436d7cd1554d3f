"""Intervals and adjusted p-values against scipy and against their definitions."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dataflex.evaluate.compare.statistics import holm, paired, t_interval


@pytest.mark.parametrize("num", [2, 3, 5, 20])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_interval_is_that_of_the_t_test(num, confidence):
    values = np.random.default_rng(num).normal(0.3, 1.0, num)
    ours, theirs = t_interval(values, confidence), stats.ttest_1samp(values, 0.0)
    low, high = theirs.confidence_interval(confidence)
    assert ours.mean - ours.half_width == pytest.approx(low)
    assert ours.mean + ours.half_width == pytest.approx(high)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.num == num


def test_an_interval_excludes_zero_exactly_where_p_is_below_one_in_twenty():
    rng = np.random.default_rng(0)
    found = {True: 0, False: 0}
    for _ in range(200):
        interval = t_interval(rng.normal(0.8, 1.0, 4))
        assert interval.excludes_zero == (interval.p < 0.05)
        found[interval.excludes_zero] += 1
    assert min(found.values()) > 10


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = sum(abs(i.mean - 2.0) <= i.half_width for i in (t_interval(rng.normal(2.0, 3.0, 3)) for _ in range(2000)))
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_pairs_are_formed_by_seed_whatever_the_order_and_lone_seeds_are_left_out():
    one, other = {3: 1.0, 1: 2.0, 2: 5.0}, {1: 1.5, 2: 4.0, 3: 0.75, 9: 100.0}
    ours, theirs = paired(one, other), stats.ttest_rel([2.0, 5.0, 1.0], [1.5, 4.0, 0.75])
    assert ours is not None
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.mean == pytest.approx((0.5 + 1.0 + 0.25) / 3)
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_one_seed_says_nothing_of_noise():
    interval = t_interval([0.4])
    assert math.isnan(interval.half_width)
    assert not interval.excludes_zero


@pytest.mark.parametrize("baseline", [[0.1, 0.2, 0.3], [0.3, 0.3, 0.3]])
@pytest.mark.parametrize("gain", [0.0, 1 / 400])
def test_equal_differences_say_nothing_of_noise(baseline, gain):
    """Counts of a few rows agree by chance; the rounding of 0.1025 - 0.1 must not pass for a tiny spread."""
    found = paired({i: v + gain for i, v in enumerate(baseline)}, dict(enumerate(baseline)))
    assert found is not None
    assert found.mean == pytest.approx(gain)
    assert math.isnan(found.half_width)
    assert math.isnan(found.p)
    assert not found.excludes_zero


def test_holm_rejects_what_its_step_down_procedure_rejects():
    for p in itertools.product([0.001, 0.01, 0.012, 0.02, 0.04, 0.3], repeat=4):
        adjusted = holm(p)
        for level in (0.005, 0.03, 0.05, 0.1):
            rejected, order = set(), sorted(range(4), key=lambda i: p[i])
            for k, i in enumerate(order):  # the definition: stop at the first that is not rejected
                if p[i] > level / (4 - k):
                    break
                rejected.add(i)
            assert {i for i in range(4) if adjusted[i] <= level + 1e-12} == rejected


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([math.nan, 0.02])[1] == pytest.approx(0.02)
    assert holm([]) == []
