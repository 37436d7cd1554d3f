"""Static: the host's order without a path, a file's scores with one."""

import numpy as np
import pytest

from dataflex.algorithms.base import PoolInfo
from dataflex.algorithms.select.static import Static
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.seeds import segment_rng
from dataflex.testing import PLAN, Pool, SelectorCase, run

NAN = float("nan")
SCORES = np.array([0.5, 3.0, NAN, 2.0, 3.0, 9.0, 1.0, np.inf])
INFO = PoolInfo(num_tokens_N=np.full(8, 9), num_label_tokens_N=np.array([2, 2, 2, 2, 2, 0, 2, 2]))
FIRST, SECOND = (PLAN.progress(PLAN.segment_at(step)) for step in (1, 2))


def choose(selector: Static, quota: int, times=(0,) * 8, segment: int = 0, scores=SCORES):
    signals = {"file": np.array(scores), "times_trained": np.array(times, dtype=np.int32)}
    return selector.select(selector.init(INFO), signals, quota, FIRST, segment_rng(0, segment, "select"))[0]


def test_without_a_path_nothing_is_chosen_and_nothing_is_measured():
    assert Static().follows_host
    assert all(Static().needs_at(PLAN.progress(s)) == set() for s in PLAN.segments())
    with pytest.raises(ConfigError, match="chooses nothing"):
        Static().select({}, {}, 1, FIRST, segment_rng(0, 0, "select"))


def test_the_best_rows_come_first_with_ties_by_row_and_unlisted_or_unlabelled_rows_never():
    selection = choose(Static(path="f"), 5)
    assert selection.rows_Q.tolist() == [1, 4, 3, 6, 0]
    assert selection.ordered
    assert selection.notes == {"num_listed": 5}
    with pytest.raises(DataFlexError, match=r"quota of 6 .* 5 samples"):
        choose(Static(path="f"), 6)


def test_the_file_is_read_once_and_its_scores_are_kept():
    selector = Static(path="f")
    assert [selector.needs_at(PLAN.progress(s)) for s in PLAN.segments()][:3] == [
        set(),
        {"file", "times_trained"},
        {"times_trained"},
    ]
    rows = [selection.rows_Q.tolist() for selection in run(SelectorCase(selector), Pool.of_size(36), quota=6)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(36))
    assert rows[0] == np.argsort(-Pool.of_size(36).scores_N)[:6].tolist()


def test_top_rows_come_again_after_exhaustion_always_or_never():
    times = [1, 1, 0, 0, 1, 0, 0, 0]
    assert choose(Static(path="f"), 4, times).rows_Q.tolist() == [3, 6, 1, 4]
    assert choose(Static(path="f", reuse="always"), 4, times).rows_Q.tolist() == [1, 4, 3, 6]
    assert choose(Static(path="f", reuse="never"), 2, times).rows_Q.tolist() == [3, 6]
    with pytest.raises(DataFlexError, match=r"only 2 unused samples .* quota of 3"):
        choose(Static(path="f", reuse="never"), 3, times)


def test_a_weighted_draw_is_in_proportion_to_the_score():
    counts = np.zeros(8)
    for segment in range(4000):
        counts[choose(Static(path="f", draw="weighted"), 1, segment=segment).rows_Q] += 1
    assert counts / 4000 == pytest.approx(np.array([0.5, 3, 0, 2, 3, 0, 1, 0]) / 9.5, abs=0.036)


def test_a_weighted_draw_never_takes_a_row_of_score_zero():
    scores = [0.0, 1.0, NAN, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert sorted(choose(Static(path="f", draw="weighted"), 2, scores=scores).rows_Q.tolist()) == [1, 4]
    with pytest.raises(DataFlexError, match=r"quota of 3 .* 2 samples"):
        choose(Static(path="f", draw="weighted"), 3, scores=scores)


def test_a_weighted_draw_without_reuse_leaves_used_rows_out():
    times = [1, 1, 0, 0, 1, 0, 0, 0]
    for segment in range(20):
        selection = choose(Static(path="f", draw="weighted", reuse="never"), 1, times, segment)
        assert selection.rows_Q[0] in (3, 6)


def test_a_weighted_draw_takes_used_rows_only_after_exhaustion_of_the_others():
    times = [1, 1, 0, 0, 1, 0, 0, 0]
    for segment in range(20):
        rows_Q = choose(Static(path="f", draw="weighted"), 3, times, segment).rows_Q.tolist()
        assert {3, 6} <= set(rows_Q)


def test_a_weighted_draw_refuses_negative_scores():
    with pytest.raises(ConfigError, match="not negative"):
        choose(Static(path="f", draw="weighted"), 1, scores=[1, -1, 1, 1, 1, 1, 1, 1])
    with_bad_unlisted_only = [1.0, 1, NAN, 1, 1, -5, 1, 1]  # row 5 cannot be drawn anyway
    choose(Static(path="f", draw="weighted"), 1, scores=with_bad_unlisted_only)


def test_negative_scores_are_ranked_too_and_unlisted_rows_do_not_pass_for_zero():
    assert choose(Static(path="f"), 3, scores=[-3, -1, NAN, -2, NAN, NAN, NAN, NAN]).rows_Q.tolist() == [1, 3, 0]


def test_a_resumed_run_uses_the_kept_scores_without_the_file():
    selector = Static(path="f")
    state = {**selector.init(INFO), "scores_N": SCORES}
    times_N = np.array([0, 1, 0, 0, 1, 0, 0, 0], dtype=np.int32)
    selection, _ = selector.select(state, {"times_trained": times_N}, 2, SECOND, segment_rng(0, 2, "select"))
    assert selection.rows_Q.tolist() == [3, 6]
