"""Panels: what they cost, whom they hold, how they go round."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflex.core.panel import choose_panel


@given(
    size=st.integers(1, 60),
    strata=st.integers(1, 5),
    affordable=st.floats(0, 400),
    most=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_a_panel_never_costs_more_than_can_be_afforded(size, strata, affordable, most, seed):
    rng = np.random.default_rng(seed)
    costs_N = rng.uniform(0.5, 20, size)
    candidates = np.flatnonzero(rng.random(size) < 0.7)
    last_N = rng.integers(-1, 4, size)
    strata_N = rng.integers(0, strata, size)
    rows = choose_panel(candidates, strata_N, last_N, costs_N, affordable=affordable, most=most, rng=rng)
    assert costs_N[rows].sum() <= affordable
    assert len(rows) <= most
    assert np.isin(rows, candidates).all()
    assert (np.diff(rows) > 0).all()


def test_each_stratum_has_its_share():
    strata_N = np.repeat([0, 1, 2], [60, 30, 10])
    rows = choose_panel(
        np.arange(100), strata_N, np.full(100, -1), np.ones(100), affordable=20, most=99, rng=np.random.default_rng(0)
    )
    assert np.bincount(strata_N[rows]).tolist() == [12, 6, 2]


def test_panels_go_round_before_a_row_comes_again():
    last_N, seen = np.full(30, -1), []
    for step in range(3):
        rows = choose_panel(
            np.arange(30),
            np.arange(30) % 2,
            last_N,
            np.ones(30),
            affordable=10,
            most=99,
            rng=np.random.default_rng(step),
        )
        last_N[rows] = step
        seen += rows.tolist()
    assert sorted(seen) == list(range(30))


def test_dear_rows_have_their_chance():
    """Rows of ten times the cost are among those taken about as often as the others."""
    costs_N = np.where(np.arange(200) % 2, 10.0, 1.0)
    taken = np.zeros(200)
    for seed in range(200):
        rows = choose_panel(
            np.arange(200),
            np.zeros(200, int),
            np.full(200, -1),
            costs_N,
            affordable=200,
            most=200,
            rng=np.random.default_rng(seed),
        )
        taken[rows] += 1
    cheap, dear = taken[::2].mean(), taken[1::2].mean()
    assert 0.75 < dear / cheap <= 1.1


def test_many_small_strata_all_have_their_turn():
    """Forty sources, ten rows a panel: none is left out for its number."""
    strata_N, seen = np.arange(400) % 40, set()
    for seed in range(30):
        rows = choose_panel(
            np.arange(400),
            strata_N,
            np.full(400, -1),
            np.ones(400),
            affordable=10,
            most=99,
            rng=np.random.default_rng(seed),
        )
        assert len(set(strata_N[rows])) == 10
        seen |= set(strata_N[rows].tolist())
    assert len(seen) == 40
