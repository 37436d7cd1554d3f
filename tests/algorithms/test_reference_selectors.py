"""RHO-LOSS, IFD, S2L and InfoBatch: golden traces, closed forms, edges."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from dataflex import S2L, Ifd, InfoBatch, RhoLoss
from dataflex.algorithms.base import PoolInfo
from dataflex.algorithms.select.ifd import ifd
from dataflex.algorithms.select.infobatch import prune
from dataflex.algorithms.select.s2l import impute, k_means, water_fill
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.plan import Schedule, SegmentPlan

NAN = float("nan")
PLAN = SegmentPlan.dynamic(Schedule(update_step=1, update_times=4), num_epochs=1, pool_steps=9)


def first(selector: Any, quota: int, labels: Any = None, seed: int = 0, **signals: Any) -> tuple[Any, Any]:
    """The first decision: candidates, then selection."""
    size = len(next(iter(signals.values())))
    labels_N = np.ones(size, dtype=int) if labels is None else np.array(labels)
    state = selector.init(PoolInfo(num_tokens_N=labels_N + 3, num_label_tokens_N=labels_N))
    progress = PLAN.progress(PLAN.segment_at(0))
    given: dict[str, np.ndarray] = {"times_trained": np.zeros(size, dtype=np.int32)}
    given |= {name: np.array(values) for name, values in signals.items()}
    needed = {name: given[name] for name in selector.needs_at(progress)}
    rows, state = selector.candidates(state, needed, quota, progress, np.random.default_rng(seed))
    if rows is not None:
        needed["loss"] = np.where(np.isin(np.arange(size), rows), needed["loss"], NAN)
    return selector.select(state, needed, quota, progress, np.random.default_rng(seed))


# --- RHO-LOSS ---

LOSSES, REFERENCE = [2.1, 0.5, 3.0, 1.4], [1.9, 0.1, 3.2, 0.4]


def test_rho_loss_golden_trace() -> None:
    rho = RhoLoss(reference="model", ratio=0.01)  # so low that all are candidates
    assert first(rho, 4, loss=LOSSES, reference_loss=REFERENCE)[0].rows_Q.tolist() == [3, 1, 0, 2]


def test_a_reference_that_says_nothing_takes_the_largest_losses() -> None:
    losses = np.random.default_rng(0).random(50)
    chosen = first(RhoLoss(reference="model", ratio=0.02), 5, loss=losses, reference_loss=np.full(50, 0.7))[0]
    assert chosen.rows_Q.tolist() == np.argsort(-losses)[:5].tolist()


def test_candidates_are_uniform_and_as_many_as_the_ratio_says() -> None:
    counts = np.zeros(40)
    for seed in range(3000):
        chosen, _ = first(
            RhoLoss(reference="model", ratio=0.25), 2, seed=seed, loss=np.ones(40), reference_loss=np.zeros(40)
        )
        drawn = np.isfinite(chosen.columns_N["excess"])
        assert drawn.sum() == 8
        counts += drawn
    assert np.abs(counts / 3000 - 0.2).max() < 4 * (0.2 * 0.8 / 3000) ** 0.5


def test_rows_without_label_or_reference_are_no_candidates() -> None:
    chosen, _ = first(
        RhoLoss(reference="model", ratio=0.1),
        2,
        labels=[1, 0, 1, 1],
        loss=LOSSES,
        reference_loss=[NAN, 0.1, 3.2, 0.4],
    )
    assert chosen.rows_Q.tolist() == [3, 2]
    assert chosen.notes == {"num_candidates": 2, "num_without_reference": 1}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"reference": ""}, "reference is missing"),
        ({"reference": "self"}, "allow_self: true"),
        ({"reference": "m", "ratio": 0}, "ratio is 0"),
        ({"reference": "m", "ratio": 1.5}, "ratio is 1.5"),
    ],
)
def test_rho_loss_refuses(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RhoLoss(**params)


def test_too_few_candidates_with_a_loss_name_the_ratio() -> None:
    with pytest.raises(
        ConfigError, match=r"only [01] candidates have a finite loss.*2 are drawn.*lower ratio \(now 1\)"
    ):
        first(RhoLoss(reference="m", ratio=1.0), 2, loss=[1.0, NAN, NAN], reference_loss=[0, 0, 0.0])


# --- IFD ---

CONDITIONAL, DIRECT = np.array([1.2, 0.8, 2.0, 0.5]), np.array([1.5, 0.8, 1.8, 2.0])


def test_ifd_golden_traces() -> None:
    np.testing.assert_allclose(ifd(CONDITIONAL, DIRECT, "loss"), [0.8, 1, 1.111111, 0.25], atol=2e-6)
    wanted = [0.740818, 1, 1.221403, 0.223130]
    np.testing.assert_allclose(ifd(CONDITIONAL, DIRECT, "perplexity"), wanted, atol=2e-6)


def test_the_most_difficult_that_the_prompt_helps_with_come_first_and_the_others_only_where_needed() -> None:
    losses = np.stack([CONDITIONAL, DIRECT], axis=1)
    assert first(Ifd(), 2, answer_losses=losses)[0].rows_Q.tolist() == [0, 3]
    chosen, _ = first(Ifd(), 4, answer_losses=losses)
    assert chosen.rows_Q.tolist() == [0, 3, 1, 2]
    (said,) = chosen.warnings
    assert "helps with 2 of 4 answers (ifd below 1), and 4 samples are drawn: the other 2" in said
    assert first(Ifd(upper=None), 4, answer_losses=losses)[0].rows_Q.tolist() == [2, 1, 0, 3]


def test_without_a_direct_loss_there_is_no_score() -> None:
    scores = ifd(np.array([1.0, NAN, 1.0, np.inf]), np.array([0.0, 1.0, NAN, 1.0]), "perplexity")
    assert np.isnan(scores).all()


# --- S2L ---


def test_water_levels_of_golden_traces_and_of_a_loop() -> None:
    assert water_fill(np.array([10, 3, 7, 1, 20]), 20).tolist() == [5, 3, 5, 1, 6]
    assert water_fill(np.array([5, 5, 5]), 7).tolist() == [2, 2, 3]
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(0, 12, rng.integers(1, 7))
        total = int(rng.integers(0, sizes.sum() + 1))
        counts = water_fill(sizes, total)
        assert counts.sum() == total
        assert np.all(counts <= sizes)
        # A level: who is not full has as much as any other that is not, to one row, and no less than who is.
        open_ = counts[counts < sizes]
        if len(open_):
            assert open_.max() - open_.min() <= 1
            assert counts.max() <= open_.max() + 1


def test_trajectories_of_three_kinds_are_told_apart_and_shared_equally() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1, 2], [40, 12, 8])
    shapes = np.array([[3.0, 2.0, 1.0], [3.0, 3.0, 3.0], [1.0, 0.5, 0.2]])
    trajectories = shapes[kinds] + rng.normal(0, 0.02, (60, 3))
    order = rng.permutation(60)
    chosen, state = first(S2L(path="former", n_clusters=3), 21, trajectories=trajectories[order])
    found = state["cluster_N"]
    assert len({(kind, cluster) for kind, cluster in zip(kinds[order], found, strict=True)}) == 3
    assert np.bincount(kinds[order][chosen.rows_Q], minlength=3).tolist() == [7, 7, 7]
    assert len(set(chosen.rows_Q.tolist())) == 21


def test_small_clusters_may_wait_and_sources_come_first() -> None:
    shapes = np.repeat([[0.0], [5.0], [9.0]], [30, 28, 2], axis=0)
    source = np.arange(60) % 2
    every = first(S2L(path="former", n_clusters=3), 12, trajectories=shapes)[0].rows_Q
    assert np.bincount(np.digitize(shapes[every, 0], [1, 6]), minlength=3).tolist() == [5, 5, 2]
    later = first(S2L(path="former", n_clusters=3, min_cluster=3), 12, trajectories=shapes)[0].rows_Q
    assert np.bincount(np.digitize(shapes[later, 0], [1, 6]), minlength=3).tolist() == [6, 6, 0]
    source[shapes[:, 0] == 5.0] = 1
    source[shapes[:, 0] == 0.0] = 0
    both = first(S2L(path="former", n_clusters=3, by_source=True), 20, trajectories=shapes, source=source)[0].rows_Q
    assert np.bincount(source[both]).tolist() == [10, 10]


def test_rows_of_unknown_source_are_a_source_of_their_own_and_none_known_is_refused() -> None:
    source = np.repeat([0, 1, -1], 20)
    selector = S2L(path="former", n_clusters=2, by_source=True)
    rows = first(selector, 21, trajectories=np.zeros((60, 1)), source=source)[0].rows_Q
    assert np.bincount(source[rows] + 1).tolist() == [7, 7, 7]
    with pytest.raises(ConfigError, match="by_source is True, but where the rows come from is not known"):
        first(selector, 3, trajectories=np.zeros((60, 1)), source=np.full(60, -1))


def test_what_was_not_measured_is_the_median_of_its_checkpoint() -> None:
    filled, missing = impute(np.array([[1.0, NAN, NAN], [3.0, 2.0, NAN], [8.0, np.inf, NAN]]))
    assert filled.tolist() == [[1.0, 2.0], [3.0, 2.0], [8.0, 2.0]]
    assert missing == 5


def test_one_checkpoint_is_enough_and_a_row_without_any_is_never_drawn() -> None:
    values = np.arange(30.0)[:, None].copy()
    values[4] = NAN
    chosen, _ = first(S2L(path="former"), 29, trajectories=values)
    assert 4 not in chosen.rows_Q
    with pytest.raises(DataFlexError, match="29"):
        first(S2L(path="former"), 30, trajectories=values)


def test_clusters_do_not_depend_on_the_order_of_the_pool() -> None:
    points = np.random.default_rng(0).random((80, 3))
    order = np.random.default_rng(1).permutation(80)
    assert k_means(points, 5, 20, 0)[order].tolist() == k_means(points[order], 5, 20, 0).tolist()


def test_s2l_without_scikit_learn_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ConfigError, match=r"s2l needs scikit-learn.*dataflex\[embed\]"):
        first(S2L(path="former"), 2, trajectories=np.zeros((20, 2)))


# --- InfoBatch ---

SEEN = np.array([0.2, 1.5, 0.9, NAN, 0.4, 2.2, 0.7, 0.3])


def test_infobatch_golden_trace() -> None:
    kept, weights = prune(SEEN, 0.5, np.random.default_rng(0))
    low = [0, 4, 6, 7]
    assert kept.sum() == 6
    assert kept[low].sum() == 2
    assert kept[[1, 2, 3, 5]].all()
    assert weights[low][kept[low]].tolist() == [2.0, 2.0]
    assert weights[[1, 2, 3, 5]].tolist() == [1.0] * 4


def test_as_many_are_kept_as_the_share_says_also_at_halves() -> None:
    from fractions import Fraction

    for percent in range(1, 91):
        for num_low in (5, 15, 45, 50):
            losses = np.append(np.zeros(num_low), 9.0)
            kept, _ = prune(losses, percent / 100, np.random.default_rng(0))
            wanted = max(1, int((1 - Fraction(percent, 100)) * num_low + Fraction(1, 2)))
            assert kept[:num_low].sum() == wanted, (percent, num_low)


def test_the_sum_over_all_subsets_is_that_of_all_rows() -> None:
    """Every subset of kept low rows is as likely; a stand-in generator deals each out in turn."""

    class Dealt:
        def __init__(self, order: tuple[int, ...]) -> None:
            self.order = order

        def random(self, size: int) -> np.ndarray:
            return np.argsort(self.order).astype(float)

    gradients = np.random.default_rng(0).standard_normal(8)
    for r in (0.25, 0.4, 0.5, 0.9):
        sums = []
        for order in itertools.permutations(range(4)):
            kept, weights = prune(SEEN, r, Dealt(order))  # type: ignore[arg-type]
            sums.append((gradients * weights * kept).sum())
        assert np.mean(sums) == pytest.approx(gradients.sum(), abs=1e-12)
        assert np.std(sums) > 0


def run(selector: InfoBatch, quota: int, losses: Any, decisions: int = 4) -> list[Any]:
    size = len(losses)
    ones = np.ones(size, dtype=int)
    state: Any = selector.init(PoolInfo(num_tokens_N=ones, num_label_tokens_N=ones))
    found, seen = [], np.full(size, NAN)
    for segment in list(PLAN.segments())[:decisions]:
        progress, rng = PLAN.progress(segment), np.random.default_rng(segment.index)
        selection, state = selector.select(state, {"training_loss": seen.copy()}, quota, progress, rng)
        seen[selection.rows_Q] = np.asarray(losses)[selection.rows_Q]
        found.append(selection)
    return found


def test_the_first_pass_has_every_row_and_the_next_leaves_low_ones_out() -> None:
    losses = np.arange(12.0)
    first_pass = run(InfoBatch(), 4, losses, 3)
    assert sorted(np.concatenate([s.rows_Q for s in first_pass]).tolist()) == list(range(12))
    assert all((s.columns_N["factor"] == 1).all() for s in first_pass)
    fourth = run(InfoBatch(delta=1.0), 4, losses)[3]
    assert fourth.notes["num_kept"] == 9
    assert fourth.notes["num_left_out"] == 3
    low = fourth.rows_Q < 6
    assert (fourth.columns_N["factor"][fourth.rows_Q[low]] == 2.0).all()
    assert (fourth.columns_N["factor"][fourth.rows_Q[~low]] == 1.0).all()


def test_at_the_end_of_the_run_nothing_is_left_out() -> None:
    fourth = run(InfoBatch(delta=0.5), 4, np.arange(12.0))[3]
    assert fourth.notes["num_left_out"] == 0
    assert (fourth.columns_N["factor"] == 1).all()


def test_a_decision_over_the_end_of_a_pass_has_each_row_once() -> None:
    for quota in range(1, 13):
        for selection in run(InfoBatch(r=0.9, delta=1.0), quota, np.arange(12.0)):
            assert len(set(selection.rows_Q.tolist())) == quota
