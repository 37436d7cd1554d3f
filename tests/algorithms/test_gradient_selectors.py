"""LESS, ICONS and ClusterLESS: golden traces, closed forms, and the suite that every selector passes."""

from __future__ import annotations

import numpy as np
import pytest

from dataflex.algorithms.select.cluster_less import clusters, ranked_by_cluster, representatives, take_clusters
from dataflex.algorithms.select.icons import Icons, mean_ranks, votes
from dataflex.algorithms.select.less import Less, add_checkpoint, aggregated, drawn_weights
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.seeds import segment_rng
from dataflex.testing import SelectorCase, SelectorSuite

# The similarities of the LESS trace: five rows, groups of one and of two targets.
LESS = np.array(
    [[0.9993, 0.026459], [0.223332, -0.351133], [-0.049075, -0.223585], [0.815574, 0.029037], [0.802963, 0.155873]]
)
ICONS = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.1, 0.9, 0.3], [0.2, 0.8, 0.9], [0.3, 0.2, 0.8], [0.7, 0.3, 0.7]])


def similarities(pool, progress, quota):
    """Two groups' similarities of each row, from what the row is."""
    falls_N = np.where(np.isfinite(pool.start_N) & (pool.label_tokens_N > 0), pool.fall_N, np.nan).astype(np.float64)
    return np.stack([10 * falls_N, 5 - pool.start_N.astype(np.float64) + 0 * falls_N], axis=1)


SIGNALS = {"similarities": similarities, "target_sizes": lambda pool, progress, quota: np.array([3, 1])}


class Scored(SelectorCase):
    def can_draw(self, pool):
        drawable_N = (pool.label_tokens_N > 0) & np.isfinite(pool.start_N)
        weights_N = drawn_weights(aggregated(similarities(pool, None, 0)), None)
        return drawable_N & (weights_N > 0) if getattr(self.selector, "draw", "") == "weighted" else drawable_N


class TestTheSuite(SelectorSuite):
    @pytest.fixture(
        params=[
            Scored(Less(), SIGNALS, ranks_by_row=True),
            Scored(Less(aggregate="mean"), SIGNALS, ranks_by_row=True),
            Scored(Less(draw="weighted"), SIGNALS),
            Scored(Less(draw="softmax", temperature=0.5), SIGNALS),
            # One group: with more, rows of equal votes and equal mean rank are common, and go by row.
            Scored(Icons(), {"similarities": lambda *args: similarities(*args)[:, :1]}, ranks_by_row=True),
        ],
        ids=repr,
    )
    def case(self, request):
        return request.param


def chosen(selector, similarities_NxG, quota, **signals) -> list[int]:
    arrays = {"similarities": np.asarray(similarities_NxG), **signals}
    selection, _ = selector.select({}, arrays, quota, None, segment_rng(0, 0, "select"))
    return selection.rows_Q.tolist()


def test_golden_trace_of_less() -> None:
    assert chosen(Less(), LESS, 5) == [0, 3, 4, 1, 2]
    sizes_G = np.array([1, 2])
    np.testing.assert_allclose(
        aggregated(LESS, sizes_G), [0.350739, -0.159645, -0.165415, 0.291216, 0.371570], atol=2e-6
    )
    assert chosen(Less(aggregate="mean"), LESS, 5, target_sizes=sizes_G) == [4, 0, 3, 1, 2]


def test_rows_without_a_gradient_are_never_taken_by_less() -> None:
    damaged = LESS.copy()
    damaged[0] = np.nan
    assert chosen(Less(), damaged, 4) == [3, 4, 1, 2]
    with pytest.raises(DataFlexError, match="quota of 5"):
        chosen(Less(), damaged, 5)
    for how in ("weighted", "softmax"):
        assert 0 not in chosen(Less(draw=how), np.abs(damaged), 4)


def test_a_trajectory_weighs_checkpoints_by_their_learning_rate() -> None:
    without = LESS.copy()
    without[4] = np.nan  # no gradient at the second checkpoint
    sums, rates = np.zeros((5, 2)), np.zeros(5)
    for similarities_NxG, rate in ((LESS, 0.3), (-without, 0.1)):
        sums, rates = add_checkpoint(sums, rates, similarities_NxG, rate)
    np.testing.assert_allclose((sums / rates[:, None])[:4], LESS[:4] / 2)
    np.testing.assert_allclose((sums / rates[:, None])[4], LESS[4])


def test_softmax_and_weights_in_closed_form() -> None:
    scores_N = np.array([0.2, np.nan, -0.1])
    np.testing.assert_allclose(drawn_weights(scores_N, None), [0.2, 0, 0])
    np.testing.assert_allclose(drawn_weights(scores_N, 0.1), [1, 0, np.exp(-3)])
    assert (drawn_weights(scores_N, 1e-9)[[0, 2]] > 0).all()


def test_golden_trace_of_icons() -> None:
    votes_N, thresholds_G = votes(ICONS, 2)
    assert votes_N.tolist() == [1, 1, 1, 2, 1, 0]
    np.testing.assert_allclose(thresholds_G, [0.8, 0.8, 0.8])
    np.testing.assert_allclose(mean_ranks(ICONS), np.array([9, 8, 8, 5, 8, 7]) / 3)
    assert chosen(Icons(), ICONS, 2) == [3, 1]
    assert chosen(Icons(tie_break="row"), ICONS, 2) == [3, 0]


def test_icons_with_one_group_takes_its_best_and_never_a_row_without_a_gradient() -> None:
    rng = np.random.default_rng(0)
    one = rng.standard_normal((40, 1))
    one[[3, 9]] = np.nan
    assert chosen(Icons(), one, 12) == np.argsort(-one[:, 0])[:12].tolist()
    assert len(set(chosen(Icons(), one, 38)) & {3, 9}) == 0
    with pytest.raises(DataFlexError, match="quota of 39"):
        chosen(Icons(), one, 39)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Less(aggregate="sum"), "aggregate is 'sum'"),
        (lambda: Less(draw="best"), "draw is 'best'"),
        (lambda: Less(temperature=0), "temperature is 0"),
        (lambda: Icons(tie_break="rank"), "tie_break is 'rank'"),
    ],
)
def test_parameters_out_of_range_are_refused(make, said) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_clusters_find_separate_bunches_and_every_row_is_with_its_nearest_centroid() -> None:
    rng = np.random.default_rng(2)
    centres = unit(rng.standard_normal((4, 16)))
    bunch_N = np.repeat(np.arange(4), 10)
    rows = unit(centres[bunch_N] + 0.05 * rng.standard_normal((40, 16)))
    found = [clusters(rows, 10, 20, np.random.default_rng(seed)) for seed in range(20)]
    assert any(len({(a, b) for a, b in zip(c, bunch_N, strict=True)}) == 4 and len(set(c)) == 4 for c, _ in found)
    for cluster_N, distance_N in found:
        for row in range(40):
            members = [unit(rows[cluster_N == c].sum(0)[None])[0] for c in sorted(set(cluster_N))]
            assert distance_N[row] == pytest.approx(1 - max(members @ rows[row]), abs=6e-6)


def test_representatives_are_the_nearest_the_farthest_or_drawn_anew_and_small_clusters_give_all() -> None:
    cluster_N = np.array([0, 0, 0, 1, 1, 0, 2])
    distance_N = np.array([0.3, 0.1, 0.2, 0.5, 0.5, 0.0, 0.9])
    allowed_N = np.array([True, True, True, True, True, False, True])

    def picked(pick: str, count: int = 2, seed: int = 0) -> list[int]:
        rng = np.random.default_rng(seed)
        return representatives(cluster_N, distance_N, count, pick, rng, allowed_N).tolist()  # type: ignore[arg-type]

    assert picked("nearest") == [1, 2, 3, 4, 6]
    assert picked("farthest") == [0, 2, 3, 4, 6]
    assert picked("nearest", count=1) == [1, 3, 6]
    assert len({tuple(picked("random", seed=seed)) for seed in range(20)}) == 3  # two of three rows of cluster 0


def test_clusters_rank_by_the_mean_of_their_scored_representatives_then_by_nearness() -> None:
    cluster_N = np.array([0, 0, 1, 1, 2, 2])
    distance_N = np.array([0.2, 0.1, 0.3, 0.3, 0.1, 0.0])
    scores_N = np.array([0.5, np.nan, 0.9, 0.3, np.nan, np.nan])
    allowed_N = np.ones(6, dtype=bool)
    assert ranked_by_cluster(scores_N, cluster_N, distance_N, allowed_N).tolist() == [2, 3, 1, 0, 5, 4]
    allowed_N[2] = False
    assert take_clusters(scores_N, cluster_N, distance_N, allowed_N, 3).tolist() == [3, 1, 0]
    with pytest.raises(DataFlexError, match="quota of 6"):
        take_clusters(scores_N, cluster_N, distance_N, allowed_N, 6)


def test_clusters_of_one_row_each_rank_as_less_does() -> None:
    rng = np.random.default_rng(3)
    rows, similarities_NxG = unit(rng.standard_normal((30, 8))), rng.standard_normal((30, 2))
    cluster_N, distance_N = clusters(rows, 1, 20, rng)
    allowed_N = np.ones(30, dtype=bool)
    assert representatives(cluster_N, distance_N, 3, "nearest", rng, allowed_N).tolist() == list(range(30))
    ranking = take_clusters(aggregated(similarities_NxG), cluster_N, distance_N, allowed_N, 30)
    assert ranking.tolist() == chosen(Less(), similarities_NxG, 30)
