"""Apportionment: the traces, the properties and a twin in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.core.draw import apportion
from dataflex.core.errors import DataFlexError

SLIM = [0.541, 0.287, 0.042, 0.037, 0.034, 0.031, 0.028]


@pytest.mark.parametrize(
    ("proportions", "quota", "capacity", "wanted"),
    [
        ([0.5, 0.3, 0.2], 10, None, [5, 3, 2]),
        (SLIM, 100, None, [54, 29, 4, 4, 3, 3, 3]),
        ([0.6, 0.3, 0.1], 20, [5, 50, 50], [5, 11, 4]),
        ([1, 1, 1], 2, None, [1, 1, 0]),  # ties to the lower index
        ([1, 1, 1, 1], 6, [1, 9, 9, 9], [1, 2, 2, 1]),
        ([8, 1, 1], 10, [3, 4, 9], [3, 4, 3]),  # the freed share fills a second domain to its brim
        ([0.5, 0.0, 0.5], 3, None, [2, 0, 1]),
        ([2.0], 7, [7], [7]),
        ([0.3, 0.7], 0, None, [0, 0]),
    ],
)
def test_traces(proportions, quota, capacity, wanted):
    capacity_D = None if capacity is None else np.array(capacity)
    counts_D = apportion(np.array(proportions), quota, capacity_D)
    assert counts_D.tolist() == wanted
    assert counts_D.dtype == np.int64


def in_fractions(proportions: list[int], quota: int, capacity: list[int]) -> list[int]:
    """The rule of the specification in exact arithmetic."""
    counts = [0] * len(proportions)
    live = {d for d, p in enumerate(proportions) if p > 0}
    while True:
        left = quota - sum(counts)
        total = sum(proportions[d] for d in live)
        share = {d: Fraction(proportions[d] * left, total) for d in live}
        over = {d for d in live if share[d] > capacity[d]}
        if not over:
            break
        for d in over:
            counts[d] = capacity[d]
        live -= over
    for d in live:
        counts[d] = int(share[d])
    by_remainder = sorted(live, key=lambda d: (int(share[d]) - share[d], d))
    for d in by_remainder[: quota - sum(counts)]:
        counts[d] += 1
    return counts


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12)), min_size=1, max_size=6),
    st.integers(0, 40),
    st.sampled_from([1, 20, 100]),
)
def test_it_equals_the_rule_in_exact_fractions(domains, quota, unit):
    proportions, capacity = [p for p, _ in domains], [c for _, c in domains]
    room = sum(c for p, c in domains if p)
    if quota <= room and any(proportions):
        got = apportion(np.array(proportions) / unit, quota, np.array(capacity)).tolist()
        assert got == in_fractions(proportions, quota, capacity)


def test_decimal_proportions_tie_where_a_person_sees_a_tie():
    # Shares 0.4, 1.2, 6.4: the last row goes to the lower index of the two remainders 0.4.
    assert apportion(np.array([0.05, 0.15, 0.8]), 8).tolist() == [1, 1, 6]


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=8), st.integers(0, 10_000), st.data())
def test_the_sum_is_exact_and_no_capacity_is_exceeded(proportions, quota, data):
    p_D = np.array(proportions)
    capacity_D = np.array([data.draw(st.integers(0, 6000)) for _ in proportions])
    room = int(capacity_D[p_D > 0].sum())
    if p_D.sum() == 0 and quota > 0:
        with pytest.raises(DataFlexError, match="all zero"):
            apportion(p_D, quota, capacity_D)
    elif quota > room:
        with pytest.raises(DataFlexError, match=f"quota of {quota} .* {room} samples"):
            apportion(p_D, quota, capacity_D)
    else:
        counts_D = apportion(p_D, quota, capacity_D)
        assert counts_D.sum() == quota
        assert np.all((counts_D >= 0) & (counts_D <= capacity_D))
        assert np.all(counts_D[p_D == 0] == 0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 1000))
def test_without_capacities_no_domain_is_a_whole_row_off_its_share(proportions, quota):
    p_D = np.array(proportions, dtype=float)
    counts_D = apportion(p_D, quota)
    assert np.all(np.abs(counts_D - quota * p_D / p_D.sum()) < 1 + 1e-9)


def test_a_tiny_share_beside_a_large_one_that_is_full_takes_the_rest():
    assert apportion(np.array([1.0, 5e-324, 0.0]), 37, np.array([36, 22, 14])).tolist() == [36, 1, 0]


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf])
def test_proportions_that_are_none_are_refused(bad):
    with pytest.raises(DataFlexError, match="finite, not negative"):
        apportion(np.array([0.5, bad]), 3)


def test_neither_argument_is_changed():
    p_D, capacity_D = np.array([0.6, 0.3, 0.1]), np.array([5, 50, 50])
    apportion(p_D, 20, capacity_D)
    assert p_D.tolist() == [0.6, 0.3, 0.1]
    assert capacity_D.tolist() == [5, 50, 50]
