"""Draws against exact enumeration, against drawing one row after the other, and at their edges."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dataflex.core.draw import draw, least_used_first, passes, top_k
from dataflex.core.errors import DataFlexError
from dataflex.core.seeds import segment_rng

weights = hnp.arrays(np.float64, st.integers(0, 12), elements=st.sampled_from([0.0, 0.025, 0.5, 1.0, 1.0, 3.0]))


def sequence_probabilities(weights_N, quota: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered outcome when rows are drawn one after the other."""
    outcomes = {}
    for rows in itertools.permutations(range(len(weights_N)), quota):
        probability, left = 1.0, float(sum(weights_N))
        for row in rows:
            probability *= weights_N[row] / left if left > 0 else 0.0
            left -= weights_N[row]
        outcomes[rows] = probability
    return outcomes


def inclusion(outcomes: dict[tuple[int, ...], float], num_rows: int) -> list[float]:
    return [sum(p for rows, p in outcomes.items() if row in rows) for row in range(num_rows)]


TRACES = [
    ([1, 2, 3], 2, [5 / 12, 11 / 15, 17 / 20]),
    ([1, 1, 0.025, 0.025], 2, [0.964426, 0.964426, 0.035574, 0.035574]),
]


@pytest.mark.parametrize(("weights_N", "quota", "wanted"), TRACES)
def test_enumeration_gives_the_exact_inclusion_of_the_trace(weights_N, quota, wanted):
    assert inclusion(sequence_probabilities(weights_N, quota), len(weights_N)) == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize(("weights_N", "quota", "wanted"), [*TRACES, ([0.5, 0, 2, 1, 1], 3, None)])
def test_ordered_outcomes_come_as_often_as_enumeration_says(weights_N, quota, wanted):
    num_draws, rng = 8000, segment_rng(0, 0, "test")
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(num_draws):
        rows = tuple(draw(np.array(weights_N), quota, rng).tolist())
        counts[rows] = counts.get(rows, 0) + 1
    outcomes = sequence_probabilities(weights_N, quota)
    for rows, p in outcomes.items():
        assert abs(counts.get(rows, 0) - num_draws * p) <= 4.5 * np.sqrt(num_draws * p * (1 - p)), rows
    if wanted is not None:
        drawn = inclusion({rows: n / num_draws for rows, n in counts.items()}, len(weights_N))
        assert drawn == pytest.approx(wanted, abs=0.02)


def one_after_the_other(weights_N, quota, rng) -> list[int]:
    left = [float(w) for w in weights_N]
    rows = []
    for _ in range(quota):
        target, total = rng.random() * sum(left), 0.0
        for row, weight in enumerate(left):
            total += weight
            if target < total:
                rows.append(row)
                break
        left[rows[-1]] = 0.0
    return rows


def test_a_larger_draw_agrees_with_drawing_one_row_after_the_other():
    weights_N = np.array([1.0] * 4 + [0.025] * 14 + [0.0] * 2)
    num_draws, quota = 3000, 8
    ours, twins = np.zeros(20), np.zeros(20)
    rng, twin_rng = segment_rng(1, 0, "test"), segment_rng(2, 0, "test")
    for _ in range(num_draws):
        ours[draw(weights_N, quota, rng)] += 1
        twins[one_after_the_other(weights_N, quota, twin_rng)] += 1
    p_N = (ours + twins) / (2 * num_draws)
    assert np.all(np.abs(ours - twins) <= 4.5 * np.sqrt(2 * num_draws * p_N * (1 - p_N)) + 1e-9)


@given(weights, st.integers(0, 12), st.integers(0, 2**32))
def test_a_draw_has_distinct_rows_of_positive_weight_or_says_why_not(weights_N, quota, seed):
    num_drawable = int((weights_N > 0).sum())
    rng = np.random.default_rng(seed)
    if quota > num_drawable:
        with pytest.raises(DataFlexError, match=f"quota of {quota} .* {num_drawable} samples"):
            draw(weights_N, quota, rng)
        return
    rows_Q = draw(weights_N, quota, rng)
    assert rows_Q.dtype == np.int64
    assert len(set(rows_Q.tolist())) == len(rows_Q) == quota
    assert np.all(weights_N[rows_Q] > 0)


@given(weights, st.integers(0, 20), st.integers(0, 2**32))
def test_with_replacement_any_quota_is_filled_from_rows_of_positive_weight(weights_N, quota, seed):
    rng = np.random.default_rng(seed)
    if quota > 0 and not weights_N.any():
        with pytest.raises(DataFlexError, match="every weight is 0"):
            draw(weights_N, quota, rng, replacement=True)
        return
    rows_Q = draw(weights_N, quota, rng, replacement=True)
    assert rows_Q.dtype == np.int64
    assert rows_Q.shape == (quota,)
    assert np.all(weights_N[rows_Q] > 0)


def test_with_replacement_rows_come_in_proportion_to_their_weight():
    weights_N = np.array([0.0, 1.0, 0.0, 3.0, 6.0, 0.0])
    rows_Q = draw(weights_N, 20_000, segment_rng(0, 0, "test"), replacement=True)
    assert np.bincount(rows_Q, minlength=6) / 20_000 == pytest.approx(weights_N / 10, abs=0.016)


class Constant:
    """A generator that gives the same uniform number forever."""

    def __init__(self, uniform: float) -> None:
        self.uniform = uniform

    def random(self, size: int) -> np.ndarray:
        return np.full(size, self.uniform)


@pytest.mark.parametrize(("uniform", "row"), [(0.0, 1), (0.5, 3), (1 - 2**-53, 3)])
def test_the_ends_of_the_uniform_numbers_lead_to_no_row_of_weight_zero(uniform, row):
    weights_N = np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    assert draw(weights_N, 2, Constant(uniform), replacement=True).tolist() == [row, row]
    assert draw(weights_N, 2, Constant(uniform)).tolist() == [1, 3]


def test_a_draw_does_not_depend_on_the_scale_of_the_weights():
    weights_N = np.array([1.0, 2.0, 4.0, 8.0, 0.0])
    wanted = draw(weights_N, 3, segment_rng(0, 0, "test")).tolist()
    for scale in (2.0**-900, 2.0**900):
        assert draw(weights_N * scale, 3, segment_rng(0, 0, "test")).tolist() == wanted


def test_the_tiniest_weights_are_still_drawn_at_random():
    tiny_N = np.full(8, 1e-320)
    firsts = {int(draw(tiny_N, 1, segment_rng(0, segment, "test"))[0]) for segment in range(60)}
    assert len(firsts) > 4


@pytest.mark.parametrize("replacement", [False, True])
def test_no_rows_and_one_row(replacement):
    rng = segment_rng(0, 0, "test")
    assert draw(np.zeros(0), 0, rng, replacement=replacement).shape == (0,)
    assert draw(np.zeros(3), 0, rng, replacement=replacement).shape == (0,)
    assert draw(np.array([0.3]), 1, rng, replacement=replacement).tolist() == [0]
    with pytest.raises(DataFlexError):
        draw(np.zeros(0), 1, rng, replacement=replacement)


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("replacement", [False, True])
def test_a_weight_that_is_no_weight_is_refused(bad, replacement):
    with pytest.raises(DataFlexError, match="finite and not negative"):
        draw(np.array([1.0, bad, 1.0]), 1, segment_rng(0, 0, "test"), replacement=replacement)


@pytest.mark.parametrize(("replacement", "uniforms"), [(False, 7), (True, 3)])
def test_a_draw_takes_as_many_uniforms_as_documented(replacement, uniforms):
    rng, twin = segment_rng(0, 0, "test"), segment_rng(0, 0, "test")
    draw(np.array([1, 0, 1, 1, 0, 1, 1.0]), 3, rng, replacement=replacement)
    twin.random(uniforms)
    assert rng.random() == twin.random()


def test_more_than_two_to_the_24_rows_are_no_limit():
    num_rows = 2**24 + 5
    weights_N = np.full(num_rows, 1e-13)
    weights_N[-5:] = 1.0
    rows_Q = draw(weights_N, 5, segment_rng(0, 0, "test"))
    assert sorted(rows_Q.tolist()) == list(range(num_rows - 5, num_rows))


scores = hnp.arrays(
    np.float64, st.integers(0, 15), elements=st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, np.nan, np.inf, -np.inf])
)


@given(scores, st.integers(0, 16), st.randoms(use_true_random=False), st.booleans())
def test_top_k_equals_sorting_everything(scores_N, k, random, restrict):
    allowed_N = np.array([random.random() < 0.6 for _ in scores_N], dtype=bool) if restrict else None
    rows = [row for row in range(len(scores_N)) if allowed_N is None or allowed_N[row]]
    wanted = sorted(rows, key=lambda row: (np.isnan(scores_N[row]), -np.nan_to_num(scores_N[row]), row))[:k]
    got = top_k(scores_N, k, allowed_N=allowed_N)
    assert got.dtype == np.int64
    assert got.tolist() == wanted


def test_top_k_takes_ties_by_row_and_nan_last():
    assert top_k(np.array([np.nan, 1.0, 2.0, 2.0, np.nan, 2.0]), 5).tolist() == [2, 3, 5, 1, 0]


def test_top_k_orders_whole_numbers_too():
    assert top_k(np.array([3, 1, 3, 7], dtype=np.int32), 3).tolist() == [3, 0, 2]


@given(
    hnp.arrays(np.int32, 12, elements=st.integers(0, 3)),
    hnp.arrays(np.bool_, 12),
    st.integers(0, 12),
    st.integers(0, 2**32),
)
def test_least_used_rows_come_first_and_none_is_skipped(times_N, allowed_N, quota, seed):
    rng = np.random.default_rng(seed)
    if quota > allowed_N.sum():
        with pytest.raises(DataFlexError, match=f"quota of {quota} "):
            least_used_first(times_N, quota, rng, allowed_N)
        return
    rows_Q = least_used_first(times_N, quota, rng, allowed_N)
    assert rows_Q.dtype == np.int64
    assert len(set(rows_Q.tolist())) == quota
    assert np.all(allowed_N[rows_Q])
    assert np.all(np.diff(times_N[rows_Q]) >= 0)
    skipped_N = allowed_N.copy()
    skipped_N[rows_Q] = False
    if quota and skipped_N.any():
        assert times_N[skipped_N].min() >= times_N[rows_Q].max()


def test_among_rows_used_equally_often_the_draw_is_uniform():
    times_N = np.array([1, 0, 0, 0, 0, 1, 0])
    allowed_N = np.array([1, 1, 1, 0, 1, 1, 1], dtype=bool)
    counts = np.zeros(7)
    rng = segment_rng(0, 0, "test")
    for _ in range(4000):
        counts[least_used_first(times_N, 2, rng, allowed_N)] += 1
    assert counts / 4000 == pytest.approx([0, 0.5, 0.5, 0, 0.5, 0, 0.5], abs=0.036)


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 2**32))
def test_passes_never_use_a_row_twice_more_than_another(num_rows, quota, seed):
    allowed_N = np.ones(num_rows + 2, dtype=bool)
    allowed_N[[0, -1]] = False
    times_N = np.zeros(num_rows + 2, dtype=np.int32)
    rows_Q = passes(allowed_N, quota, segment_rng(seed, 0, "warmup"))
    assert rows_Q.dtype == np.int64
    assert rows_Q.shape == (quota,)
    for row in rows_Q:  # true after every single row, not only at the end
        times_N[row] += 1
        assert np.ptp(times_N[allowed_N]) <= 1
    assert times_N[~allowed_N].tolist() == [0, 0]


def test_every_pass_has_an_order_of_its_own():
    rows_Q = passes(np.ones(30, dtype=bool), 60, segment_rng(0, 0, "warmup"))
    assert sorted(rows_Q[:30].tolist()) == sorted(rows_Q[30:].tolist()) == list(range(30))
    assert rows_Q[:30].tolist() != rows_Q[30:].tolist()


def test_passes_over_nothing_are_an_error_only_when_something_is_asked_for():
    nothing_N = np.zeros(3, dtype=bool)
    assert passes(nothing_N, 0, segment_rng(0, 0, "warmup")).shape == (0,)
    with pytest.raises(DataFlexError, match="label token"):
        passes(nothing_N, 1, segment_rng(0, 0, "warmup"))
