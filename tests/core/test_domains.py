"""Arithmetic over domains against loops, and rows of a domain consumed once before any comes again."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.core.consume import capacities, take_from_domains
from dataflex.core.domains import (
    count_rows,
    entropy,
    loss_by_domain,
    row_shares,
    share_moved,
    shares,
    softmax,
    sum_by_domain,
)
from dataflex.core.draw import apportion
from dataflex.core.errors import DataFlexError
from dataflex.core.seeds import segment_rng

positive = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8).map(np.array)


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 9) | st.just(math.nan), st.integers(0, 5)), max_size=30))
def test_losses_by_domain_are_sums_over_tokens_and_ranks_add_sums(rows):
    domain_N, sums_N, tokens_N = (np.array(column) for column in zip(*rows, strict=True)) if rows else [np.zeros(0)] * 3
    got_D = loss_by_domain(sums_N, tokens_N, domain_N, 5)
    for d in range(5):
        seen = [(s, t) for dom, s, t in rows if dom == d and t > 0 and not math.isnan(s)]
        wanted = sum(s for s, _ in seen) / sum(t for _, t in seen) if seen else math.nan
        assert got_D[d] == pytest.approx(wanted, nan_ok=True)
    ranks = [sum_by_domain(tokens_N[r::2], domain_N[r::2], 5) for r in range(2)]
    assert np.array_equal(ranks[0] + ranks[1], sum_by_domain(tokens_N, domain_N, 5))


def test_a_domain_number_outside_is_an_error_with_the_limits():
    for bad in ([0, 3], [-1, 0]):
        with pytest.raises(DataFlexError, match="0 to 2"):
            count_rows(np.array(bad), 3)


@given(positive)
def test_the_entropy_of_shares_lies_between_none_and_that_of_equal_ones(values_D):
    h = entropy(shares(values_D))
    assert -1e-12 <= h <= math.log(len(values_D)) + 1e-12
    assert entropy(np.full(len(values_D), 1 / len(values_D))) == pytest.approx(math.log(len(values_D)))
    assert entropy(np.eye(len(values_D))[0]) == 0


@given(positive, st.randoms(use_true_random=False))
def test_what_moved_is_a_distance(values_D, random):
    other_D = np.array(random.sample(list(values_D), len(values_D)))
    p, q = shares(values_D), shares(other_D)
    assert share_moved(p, p) == 0
    assert share_moved(p, q) == pytest.approx(share_moved(q, p))
    assert share_moved(p, q) == pytest.approx(np.maximum(p - q, 0).sum())


def test_huge_values_have_shares_and_huge_exponents_a_softmax():
    assert shares(np.array([1e308, 1e308])).tolist() == [0.5, 0.5]
    assert softmax(np.array([1e308, 0, -np.inf])).tolist() == [1, 0, 0]


@pytest.mark.parametrize("bad", [[-1, 2], [0, 0], [math.nan, 1], [math.inf, 1], []])
def test_what_has_no_shares_is_refused(bad):
    with pytest.raises(DataFlexError, match="not all zero"):
        shares(np.array(bad))


@given(positive, st.data())
def test_shares_of_rows_give_the_wanted_shares_of_tokens(values_D, data):
    tokens_D = np.array([data.draw(st.floats(1, 5000)) for _ in values_D])
    rows_D = row_shares(shares(values_D), tokens_D)
    assert shares(rows_D * tokens_D) == pytest.approx(shares(values_D))


def test_a_share_of_tokens_for_a_domain_without_any_is_refused():
    assert row_shares(np.array([1.0, 0]), np.array([5, 0])).tolist() == [1, 0]
    with pytest.raises(DataFlexError, match="give it the share 0"):
        row_shares(np.array([0.5, 0.5]), np.array([5, 0]))


def one_by_one(times, count, max_times):
    """Brute force: always one of the rows taken fewest times here, of those the least trained; ties aside."""
    taken, times = [0] * len(times), list(times)
    for _ in range(count):
        i = min(
            (i for i in range(len(times)) if max_times is None or times[i] + taken[i] < max_times),
            key=lambda i: (taken[i], times[i]),
        )
        taken[i] += 1
    return sorted(zip(times, taken, strict=True))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.booleans()), min_size=1, max_size=14),
    st.lists(st.integers(0, 20), min_size=3, max_size=3),
    st.none() | st.integers(1, 6),
    st.integers(0, 5),
)
def test_rows_are_taken_pass_by_pass_the_least_trained_first(rows, counts, max_times, seed):
    domain_N, times_N, allowed_N = (np.array(column) for column in zip(*rows, strict=True))
    counts_D = np.array(counts)
    room_D = capacities(domain_N, 3, int(counts_D.sum()), times_N, allowed_N, max_times)
    if np.any(counts_D > room_D):
        with pytest.raises(DataFlexError, match="rows are wanted"):
            take_from_domains(counts_D, domain_N, times_N, allowed_N, segment_rng(seed, 0, "mix"), max_times)
        return
    rows_Q = take_from_domains(counts_D, domain_N, times_N, allowed_N, segment_rng(seed, 0, "mix"), max_times)
    assert rows_Q.dtype == np.int64
    assert np.all(allowed_N[rows_Q])
    after_N = times_N + np.bincount(rows_Q, minlength=len(rows))
    for d in range(3):
        assert (domain_N[rows_Q] == d).sum() == counts[d]
        mine = (domain_N == d) & allowed_N
        taken = (after_N - times_N)[mine]
        assert sorted(zip(times_N[mine], taken, strict=True)) == one_by_one(times_N[mine], counts[d], max_times)


def test_a_domain_is_consumed_once_before_any_row_comes_again():
    domain_N, allowed_N = np.repeat([0, 1], [7, 30]), np.ones(37, bool)
    times_N = np.zeros(37, dtype=np.int64)
    for segment in range(20):
        rows_Q = take_from_domains(np.array([5, 5]), domain_N, times_N, allowed_N, segment_rng(0, segment, "mix"))
        assert len(set(rows_Q.tolist())) == 10
        times_N += np.bincount(rows_Q, minlength=37)
        assert np.ptp(times_N[:7]) <= 1
        assert np.ptp(times_N[7:]) <= 1


def test_every_row_of_a_domain_is_taken_equally_often():
    domain_N, allowed_N, times_N = np.repeat([0, 1], [4, 5]), np.ones(9, bool), np.zeros(9, dtype=np.int64)
    counts_N = np.zeros(9)
    for segment in range(4000):
        rows_Q = take_from_domains(np.array([6, 2]), domain_N, times_N, allowed_N, segment_rng(1, segment, "mix"))
        counts_N += np.bincount(rows_Q, minlength=9)
    # 6 of 4 rows: each once, two of them twice; 2 of 5 rows. Sigma of 4000 draws at most 32.
    assert np.all(np.abs(counts_N[:4] - 6000) < 5 * 32)
    assert np.all(np.abs(counts_N[4:] - 1600) < 5 * 32)


def test_capacities_of_a_domain_that_ran_dry_send_its_share_to_the_others():
    domain_N, times_N, allowed_N = np.array([0, 0, 1, 1, 1, 2]), np.array([1, 1, 0, 0, 0, 0]), np.ones(6, bool)
    capacity_D = capacities(domain_N, 3, 4, times_N, allowed_N, 1)
    assert capacity_D.tolist() == [0, 3, 1]
    assert apportion(np.array([0.5, 0.3, 0.2]), 4, capacity_D).tolist() == [0, 3, 1]
    assert capacities(domain_N, 4, 9, times_N, allowed_N, None).tolist() == [9, 9, 9, 0]
