"""Estimates: exact where measured, right where the truth is linear, honest about the rest."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from dataflex.signals.estimate import PERSISTENCE, Observations, _persistence, estimate, latest, smooth, spearman

N, F = 3000, 12


def world(seed: int = 0, noise: float = 0.4, bent: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features_NxF = rng.normal(size=(N, F)).astype(np.float32)
    truth_N = features_NxF[:, 0] - 0.5 * features_NxF[:, 1] + bent * np.abs(features_NxF[:, 2])
    return features_NxF, truth_N + noise * rng.normal(size=N)


def seen(truth_N: np.ndarray, rows: np.ndarray, age: float = 0.0, *, trained: bool = False) -> Observations:
    return Observations(
        rows_K=rows,
        values_K=truth_N[rows] + 0.3 * age + 0.5 * trained,  # falls with time; training sees more
        ages_K=np.full(len(rows), age),
        trained_K=np.full(len(rows), trained),
    )


def asked(features_NxF: np.ndarray, observed: Observations, seed: int = 1):
    return estimate(features_NxF, observed, half_life=2.0, recent=2.5, rng=np.random.default_rng(seed))


def test_measured_rows_keep_their_values():
    features_NxF, truth_N = world()
    rows = np.arange(0, N, 30)
    found = asked(features_NxF, Observations.joined(seen(truth_N, rows), seen(truth_N, rows + 1, 2.0)))
    np.testing.assert_array_equal(found.values_N[rows], truth_N[rows])


def test_values_that_the_features_tell_are_found_in_spite_of_age_and_training():
    features_NxF, truth_N = world(noise=0.0)
    parts = [seen(truth_N, np.arange(60)), seen(truth_N, np.arange(100, 160), 1.0)]
    parts.append(seen(truth_N, np.arange(200, 400), 1.0, trained=True))
    found = asked(features_NxF, Observations.joined(*parts))
    np.testing.assert_allclose(found.values_N, truth_N, atol=0.02)


@pytest.mark.parametrize(("rows", "noise"), [(40, 0.3), (120, 0.8), (400, 0.8)])
def test_the_check_tells_what_all_other_rows_show(rows, noise):
    told, measured = [], []
    for seed in range(6):
        features_NxF, truth_N = world(seed, noise)
        picked = np.random.default_rng(seed).permutation(N)[: 2 * rows]
        parts = [seen(truth_N, picked[:rows]), seen(truth_N, picked[rows:], 1.0)]
        found = asked(features_NxF, Observations.joined(*parts), seed)
        others = np.setdiff1d(np.arange(N), picked)
        told.append(found.rank_correlation())
        measured.append(spearman(found.values_N[others], truth_N[others]))
    assert abs(np.mean(told) - np.mean(measured)) < 0.08


def test_trees_are_taken_where_they_rank_better():
    features_NxF, truth_N = world(bent=2.0, noise=0.1)
    observed = seen(truth_N, np.arange(400))
    bent = asked(features_NxF, observed)
    straight = asked(*(lambda world: (world[0], seen(world[1], np.arange(100))))(world()))
    assert bent.estimator == "boosting"
    assert straight.estimator == "ridge"
    assert spearman(bent.values_N, truth_N) > 0.9


def test_the_order_of_observations_changes_nothing():
    features_NxF, truth_N = world()
    observed = Observations.joined(seen(truth_N, np.arange(80)), seen(truth_N, np.arange(60, 150), 1.0))
    mixed = observed.part(np.random.default_rng(3).permutation(len(observed)))
    one, other = asked(features_NxF, observed), asked(features_NxF, mixed)
    np.testing.assert_allclose(one.values_N, other.values_N, atol=1e-6)
    np.testing.assert_array_equal(one.checked_rows_C, other.checked_rows_C)
    np.testing.assert_allclose(one.predicted_C, other.predicted_C, atol=1e-6)


def test_what_summation_changes_does_not_decide():
    features_NxF, truth_N = world(bent=1.0)
    observed = seen(truth_N, np.arange(300))
    moved = seen(truth_N * (1 + 1e-9), np.arange(300))
    one, other = asked(features_NxF, observed), asked(features_NxF, moved)
    np.testing.assert_allclose(one.values_N, other.values_N, atol=1e-4)


def test_a_rows_own_deviation_remains_as_far_as_it_is_found_again():
    errors, deviations = np.array([0.5, -0.5, 0.25]), np.array([1.0, -1.0, 0.5])
    assert _persistence(np.tile(errors, 500), np.tile(deviations, 500)) == pytest.approx(0.5, abs=0.01)
    assert _persistence(np.zeros(0), np.zeros(0)) == PERSISTENCE
    assert _persistence(np.array([np.nan]), np.array([1.0])) == PERSISTENCE


def test_rows_that_training_showed_are_known_better():
    features_NxF, truth_N = world(noise=1.5)
    trained = np.arange(1000, 2000)
    observed = Observations.joined(seen(truth_N, np.arange(1, 2000, 10)), seen(truth_N, trained, 1.0, trained=True))
    found = asked(features_NxF, observed)
    rest = np.setdiff1d(trained, np.arange(1, 2000, 10))
    unseen = np.arange(2000, N)
    assert spearman(found.values_N[rest], truth_N[rest]) > spearman(found.values_N[unseen], truth_N[unseen]) + 0.1


def test_the_youngest_of_each_row():
    observed = Observations(
        rows_K=np.array([4, 2, 4, 2, 9]),
        values_K=np.zeros(5),
        ages_K=np.array([1.0, 3.0, 0.0, 2.0, 5.0]),
        trained_K=np.zeros(5, dtype=bool),
    )
    assert latest(observed, np.ones(5, dtype=bool)).tolist() == [3, 2, 4]


def test_few_observations_make_no_promise():
    features_NxF, truth_N = world()
    found = asked(features_NxF, seen(truth_N, np.arange(5)))
    assert found.rank_correlation() is None
    assert np.isfinite(found.values_N).all()
    with pytest.raises(ValueError, match="nothing was seen"):
        asked(features_NxF, seen(truth_N, np.arange(0)))


def test_another_quantity_may_be_ranked_than_is_fitted():
    features_NxF, truth_N = world()
    found = asked(features_NxF, seen(truth_N, np.arange(100)))
    offsets_N = np.random.default_rng(5).normal(size=N) * 100
    assert found.rank_correlation(offsets_N) == pytest.approx(1.0, abs=0.01)


def test_levels():
    features_NxF, truth_N = world(noise=0.0)
    np.testing.assert_allclose(smooth(features_NxF, np.arange(200), truth_N[:200]), truth_N, atol=0.01)


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 9, 50), rng.normal(size=50)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert spearman(np.ones(4), other[:4]) == 0.0
