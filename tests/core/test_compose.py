"""The algebra of decisions: rows by domain and rank, products of weights, their identities."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.core.compose import (
    intersect_label_masks,
    mix_then_select,
    multiply_weights,
    num_proposed,
    ranking_of_weights,
    select_then_mix,
    single_draw_probabilities,
    weighted_loss,
)
from dataflex.core.domains import shares
from dataflex.core.draw import apportion, draw
from dataflex.core.errors import DataFlexError
from dataflex.core.seeds import segment_rng

DOMAIN_N = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
OMEGA_N = np.array([1.0, 1, 5, 2, 2, 0, 1, 1, 3])
PI_D = np.array([0.5, 0.3, 0.2])


def test_the_trace():
    eligible_D = np.bincount(DOMAIN_N[OMEGA_N > 0], minlength=3)
    assert apportion(PI_D, 5, eligible_D).tolist() == [3, 1, 1]
    wanted = [0.071429, 0.071429, 0.357143, 0.15, 0.15, 0, 0.04, 0.04, 0.12]
    assert single_draw_probabilities(OMEGA_N, DOMAIN_N, PI_D) == pytest.approx(wanted, abs=2e-6)
    product = multiply_weights([np.array([2.0, 1, 1, 0]), np.array([0.5, 1, 1.5, 1])], mean_one=True)
    assert product == pytest.approx([1.142857, 1.142857, 1.714286, 0], abs=2e-6)


def test_ten_thousand_first_rows_follow_the_probabilities():
    counts_N = np.zeros(9)
    for segment in range(10_000):
        ranking_M = ranking_of_weights(OMEGA_N, segment_rng(0, segment, "select"))
        d = int(segment_rng(0, segment, "mix").random() > 0.5) * (
            1 + int(segment_rng(1, segment, "mix").random() > 0.6)
        )
        counts_N[mix_then_select(ranking_M, DOMAIN_N, np.eye(3, dtype=int)[d])] += 1
    p_N = single_draw_probabilities(OMEGA_N, DOMAIN_N, PI_D)
    assert np.all(np.abs(counts_N - 1e4 * p_N) <= 4.5 * np.sqrt(1e4 * p_N * (1 - p_N)))


@given(st.integers(0, 100), st.integers(0, 8))
def test_a_ranking_begins_with_the_draw_of_any_quota(seed, quota):
    ranking_M = ranking_of_weights(OMEGA_N, segment_rng(seed, 0, "select"))
    assert len(ranking_M) == 8
    assert ranking_M[:quota].tolist() == draw(OMEGA_N, quota, segment_rng(seed, 0, "select")).tolist()


def test_inside_a_domain_a_ranking_is_a_weighted_draw_of_it_alone():
    # Weights 1, 1, 5: P(row 2 among two) = 1 - P(neither) ; enumerate both orders of two draws without replacement.
    weights = [1, 1, 5]
    included = sum(
        weights[a] / 7 * weights[b] / (7 - weights[a]) for a, b in itertools.permutations(range(3), 2) if 2 in (a, b)
    )
    hits = sum(
        2 in mix_then_select(ranking_of_weights(OMEGA_N, segment_rng(3, s, "select")), DOMAIN_N, np.array([2, 0, 0]))
        for s in range(4000)
    )
    assert abs(hits - 4000 * included) < 4.5 * np.sqrt(4000 * included * (1 - included))


def test_equal_omega_is_the_mixture_alone_and_the_shares_of_omega_are_the_selection_alone():
    sizes_D = np.bincount(DOMAIN_N)
    assert single_draw_probabilities(np.ones(9), DOMAIN_N, PI_D) == pytest.approx((PI_D / sizes_D)[DOMAIN_N])
    omega_shares_D = shares(np.bincount(DOMAIN_N, weights=OMEGA_N))
    assert single_draw_probabilities(OMEGA_N, DOMAIN_N, omega_shares_D) == pytest.approx(OMEGA_N / OMEGA_N.sum())


def test_a_domain_that_cannot_be_drawn_gives_its_share_to_the_others():
    p_N = single_draw_probabilities(np.array([0.0, 1, 1]), np.array([0, 1, 2]), PI_D)
    assert p_N == pytest.approx([0, 0.6, 0.4])


@given(st.permutations(range(9)), st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_mix_then_select_takes_the_best_of_each_domain_in_their_order(ranking, counts):
    rows_Q = mix_then_select(np.array(ranking), DOMAIN_N, np.array(counts)).tolist()
    best = {row for d in range(3) for row in [r for r in ranking if DOMAIN_N[r] == d][: counts[d]]}
    assert rows_Q == [r for r in ranking if r in best]


@given(st.permutations(range(9)), st.permutations(range(9)))
def test_permuting_the_pool_permutes_the_rows_and_renaming_domains_changes_nothing(order, ranking):
    plain = mix_then_select(np.array(ranking), DOMAIN_N, np.array([2, 1, 2]))
    new_name = np.argsort(order)
    permuted = mix_then_select(new_name[ranking], DOMAIN_N[list(order)], np.array([2, 1, 2]))
    assert np.array(order)[permuted].tolist() == plain.tolist()
    renamed = mix_then_select(np.array(ranking), np.array([2, 0, 1])[DOMAIN_N], np.array([1, 2, 2]))
    assert renamed.tolist() == plain.tolist()


def test_a_domain_with_too_few_ranked_rows_is_named_with_both_numbers():
    with pytest.raises(DataFlexError, match="3 rows are wanted of domain 1, of which the selector can draw 2"):
        mix_then_select(np.arange(9), DOMAIN_N, np.array([0, 3, 0]))


def test_select_then_mix_is_uniform_among_the_proposals_and_goes_on_by_rank():
    ranking = np.array([2, 8, 3, 0, 6, 1, 4, 7, 5])
    counts_D, keep = np.array([1, 2, 1]), 0.8  # 5 proposals: 2 8 3 0 6
    seen = np.zeros(9)
    for segment in range(4000):
        rows_Q = select_then_mix(ranking, DOMAIN_N, counts_D, keep, segment_rng(0, segment, "mix"))
        assert np.bincount(DOMAIN_N[rows_Q], minlength=3).tolist() == counts_D.tolist()
        seen += np.bincount(rows_Q, minlength=9)
    assert seen[[3, 4]].tolist() == [4000, 4000]  # the only proposal of domain 1, and the next of it by rank
    assert seen[[1, 5, 7]].tolist() == [0, 0, 0]
    assert np.all(np.abs(seen[[0, 2, 6, 8]] - 2000) < 4.5 * np.sqrt(1000))
    everything = select_then_mix(ranking, DOMAIN_N, counts_D, 1.0, segment_rng(0, 0, "mix"))
    # keep 1: the four proposals 2 8 3 0, of which domain 0 gives one; domain 1 goes on by rank
    everything = set(select_then_mix(ranking, DOMAIN_N, counts_D, 1.0, segment_rng(0, 0, "mix")).tolist())
    assert everything in ({2, 8, 3, 4}, {0, 8, 3, 4})


@pytest.mark.parametrize(("quota", "keep", "wanted"), [(6, 0.6, 10), (3, 0.3, 10), (5, 1.0, 5), (5, 0.3, 17)])
def test_the_number_of_proposals(quota, keep, wanted):
    assert num_proposed(quota, keep) == wanted


def test_sampling_alpha_and_weighting_to_alpha_have_the_same_expected_gradient():
    rng = np.random.default_rng(0)
    gradients_NxP = rng.standard_normal((9, 4))
    alpha_D = np.array([0.2, 0.5, 0.3])
    sampled = single_draw_probabilities(OMEGA_N, DOMAIN_N, alpha_D) @ gradients_NxP
    weights_N = (alpha_D / PI_D)[DOMAIN_N]
    weighted = single_draw_probabilities(OMEGA_N, DOMAIN_N, PI_D) * weights_N @ gradients_NxP
    assert weighted == pytest.approx(sampled, rel=1e-12)


def test_weights_one_change_no_bit_and_weight_zero_removes_all_but_the_tokens():
    sums_B, tokens_B = np.array([2.1, 5.3, 4.7]), np.array([4, 5, 2])
    assert weighted_loss(sums_B, tokens_B, np.ones(3)) == sums_B.sum() / 11
    assert weighted_loss(np.array([2.1, np.nan, 4.7]), tokens_B, np.array([1, 0, 1])) == (2.1 + 4.7) / 11


def test_products_commute_and_a_single_one_is_itself():
    a, b = np.array([0.3, 2, 0, 1]), np.array([1.5, 0.1, 4, 1])
    assert np.array_equal(multiply_weights([a, b]), multiply_weights([b, a]))
    assert np.array_equal(multiply_weights([a]), a)
    assert multiply_weights([a, b], mean_one=True).mean() == pytest.approx(1)
    scored_B = np.array([True, False, True, False])
    assert multiply_weights([a, b], mean_one=True, scored_B=scored_B)[scored_B].mean() == pytest.approx(1)
    assert not multiply_weights([np.zeros(3)], mean_one=True).any(), "a batch that counts nothing ends no run"


def test_label_masks_intersect():
    masks = [np.array([[1, 1, 0]]), np.array([[1, 0, 0]]), np.array([[1, 1, 1]])]
    assert intersect_label_masks(masks).tolist() == [[True, False, False]]
