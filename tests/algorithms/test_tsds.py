"""TSDS: golden traces, the linear program by a solver, densities by two loops, and what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dataflex import Tsds
from dataflex.algorithms.base import PoolInfo
from dataflex.algorithms.select import tsds
from dataflex.algorithms.select.tsds import density, transport
from dataflex.core.plan import Schedule, SegmentPlan

ROWS = np.array([(0, 0), (0.1, 0), (1, 0), (0, 1.2), (2, 2), (2.2, 2), (4, 4), (0, -2)], dtype=np.float32)
QUERIES = np.array([(0.05, 0.1), (2, 1.7)], dtype=np.float32)
PLAN = SegmentPlan.dynamic(Schedule(update_step=1, update_times=3), num_epochs=1, pool_steps=9)


def first(selector: Tsds, quota: int, seed: int = 0, **signals: Any) -> tuple[Any, Any]:
    given = {"embeddings": ROWS, "target_embeddings": QUERIES, **signals}
    labels_N = np.ones(len(given["embeddings"]), dtype=int)
    given["times_trained"] = np.zeros(len(labels_N), dtype=np.int32)
    state = selector.init(PoolInfo(num_tokens_N=labels_N, num_label_tokens_N=labels_N))
    progress = PLAN.progress(PLAN.segment_at(0))
    needed = {name: given[name] for name in selector.needs_at(progress)}
    return selector.select(state, needed, quota, progress, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("sigma", "wanted", "spread"),
    [
        (0.75, [0.121241, 0.125839, 0.249441, 0.249441, 0.064659, 0.064659, 0, 0.124720], 4.008969),
        (0.0, [0.125, 0.125, 0.25, 0.25, 0.125, 0.125, 0, 0], 4),
    ],
)
def test_golden_traces(sigma: float, wanted: list[float], spread: float) -> None:
    selection, state = first(Tsds(alpha=0.5, C=5, sigma=sigma, max_K=6), 3)
    np.testing.assert_allclose(state["probabilities_N"], wanted, atol=2e-6)
    assert selection.notes["spread"] == pytest.approx(spread, abs=2e-6)


def solved(distances: np.ndarray, rho: np.ndarray, alpha: float, scale: float) -> tuple[float, np.ndarray]:
    """The linear program itself: its minimum and the mass of each candidate."""
    from scipy.optimize import linprog

    num_queries, num_rows = distances.shape
    cost = np.append(alpha / scale * distances.ravel(), (1 - alpha) * num_queries)
    upper = np.zeros((num_queries * num_rows, num_queries * num_rows + 1))
    upper[:, :-1] = np.diag(np.tile(rho, num_queries))
    upper[:, -1] = -1
    equal = np.zeros((num_queries, num_queries * num_rows + 1))
    for query in range(num_queries):
        equal[query, query * num_rows : (query + 1) * num_rows] = 1
    found = linprog(
        cost,
        A_ub=upper,
        b_ub=np.zeros(len(upper)),
        A_eq=equal,
        b_eq=np.full(num_queries, 1 / num_queries),
        method="highs",
    )
    return found.fun, found.x[:-1].reshape(num_queries, num_rows).sum(axis=0)


def test_it_is_the_linear_programs_solution() -> None:
    rng = np.random.default_rng(0)
    spreads = []
    for number in range(60):
        num_queries, num_rows = rng.integers(1, 5), rng.integers(3, 13)
        rows = rng.standard_normal((num_rows, 2)).astype(np.float32)
        if number % 3 == 0:
            rows[1:3] = rows[0]
        queries = rng.standard_normal((num_queries, 2)).astype(np.float32)
        alpha, scale = rng.uniform(0.2, 0.98), rng.uniform(0.5, 6)
        rho = density(rows, [0.0, 0.75, 2.0][number % 3], 1000)
        distances = np.linalg.norm(queries[:, None].astype(float) - rows[None], axis=2)
        order = np.argsort(distances, axis=1, kind="stable")
        p, s = transport(np.take_along_axis(distances, order, 1), order, rho, alpha=alpha, scale=scale)
        assert p.sum() == pytest.approx(1)
        _, wanted = solved(distances, rho, alpha, scale)
        if number % 3:  # copies may share their mass in many ways
            np.testing.assert_allclose(p, wanted, atol=1e-8)
        else:
            assert p[:3].sum() == pytest.approx(wanted[:3].sum(), abs=1e-8)
            assert np.ptp(p[:3]) < 1e-12 or (p[:3] == 0).any()
            np.testing.assert_allclose(p[3:], wanted[3:], atol=1e-8)
        spreads.append(s)
    assert len(np.unique(np.round(spreads, 6))) > 20, "of many shapes"


def test_nearness_alone_takes_the_nearest_and_spread_alone_all_neighbours() -> None:
    _, near = first(Tsds(alpha=1.0, sigma=0, max_K=6), 1)
    assert np.flatnonzero(near["probabilities_N"]).tolist() == [0, 4] or near["probabilities_N"].max() == 0.5
    _, wide = first(Tsds(alpha=0.0, sigma=0, max_K=4), 1)
    distances = np.linalg.norm(QUERIES[:, None] - ROWS[None], axis=2)
    reached = set(np.argsort(distances, axis=1)[:, :4].ravel().tolist())
    assert set(np.flatnonzero(wide["probabilities_N"]).tolist()) == reached


def test_densities_are_those_of_two_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    rows[10:14] = rows[5]
    for sigma in (0.75, 1.5):
        wanted = [
            sum(max(0.0, 1 - float(((a - b) ** 2).sum()) / sigma**2) for b in rows.astype(float))
            for a in rows.astype(float)
        ]
        np.testing.assert_allclose(density(rows, sigma, 1000), wanted, rtol=1e-4)
    assert density(rows, 0.0, 5).tolist() == [1.0] * 60
    exact = density(rows, 0.75, 1000)
    monkeypatch.setattr(tsds, "EXACT_DENSITY", 10)
    estimate = density(rows, 0.75, 1000)
    assert np.all(estimate <= exact + 1e-4)
    assert np.all(estimate[[5, 10, 11, 12, 13]] >= 5 - 1e-4), "copies are always seen"
    monkeypatch.setattr(tsds, "PROBED_LISTS", 1000)
    np.testing.assert_allclose(density(rows, 0.75, 1000), exact, rtol=1e-5)
    assert np.all(density(rows, 0.75, 2) <= 2 + 1e-6)


def test_without_replacement_unless_told_and_the_rest_by_nearness() -> None:
    selection, state = first(Tsds(alpha=0.5, max_K=6), 5)
    assert len(set(selection.rows_Q.tolist())) == 5
    assert np.all(state["probabilities_N"][selection.rows_Q] > 0)
    drawn = [first(Tsds(alpha=0.5, max_K=6, draw="multinomial"), 4000, seed)[0].rows_Q for seed in range(5)]
    share = np.bincount(np.concatenate(drawn), minlength=8) / 20000
    np.testing.assert_allclose(share, state["probabilities_N"], atol=0.015)
    selection, state = first(Tsds(alpha=1.0, max_K=3), 8)
    assert sorted(selection.rows_Q.tolist()) == list(range(8))
    (sentence,) = selection.warnings
    assert "samples carry the target's mass and 8 are drawn" in sentence
    carried = int((state["probabilities_N"] > 0).sum())
    distances = np.linalg.norm(QUERIES[:, None] - ROWS[None], axis=2).min(axis=0)[selection.rows_Q[carried:]]
    assert np.all(np.diff(distances) >= 0)


def test_small_pools_and_probabilities_from_a_file() -> None:
    selection, _ = first(Tsds(), 2, embeddings=ROWS[:3])
    assert len(selection.rows_Q) == 2
    given = Tsds(probs_path="p.npy")
    assert given.needs == {"file", "times_trained"}
    selection, _ = first(given, 2, file=np.array([0, 0.5, np.nan, 0.5, 0, 0, 0, 0]))
    assert sorted(selection.rows_Q.tolist()) == [1, 3]
    with pytest.raises(Exception, match="numbers below 0, or none above"):
        first(given, 2, file=np.full(8, -1.0))
