"""NEAR: golden trace of both walks, what is listed, and how decisions follow each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dataflex import Near
from dataflex.algorithms.base import PoolInfo
from dataflex.algorithms.select.near import column_walk, round_robin_walk
from dataflex.core.plan import Schedule, SegmentPlan

ROWS = np.array([(0, 0), (1, 0), (0, 1), (3, 3), (2.5, 3), (5, 0), (0.2, 0.1)], dtype=np.float32)
QUERIES = np.array([(0, 0.1), (0.1, 0), (3, 2.9)], dtype=np.float32)
PLAN = SegmentPlan.dynamic(Schedule(update_step=1, update_times=3), num_epochs=1, pool_steps=9)


def decide(selector: Near, quota: int, decisions: int = 1, labels: Any = None, **signals: Any) -> list[list[int]]:
    given = {"embeddings": ROWS, "target_embeddings": QUERIES, **signals}
    num_rows = len(given["embeddings"])
    labels_N = np.ones(num_rows, dtype=int) if labels is None else np.array(labels)
    state: Any = selector.init(PoolInfo(num_tokens_N=labels_N + 3, num_label_tokens_N=labels_N))
    times_N, found = np.zeros(num_rows, dtype=np.int32), []
    for segment in list(PLAN.segments())[:decisions]:
        progress = PLAN.progress(segment)
        needed = {n: times_N if n == "times_trained" else given[n] for n in selector.needs_at(progress)}
        selection, state = selector.select(state, needed, quota, progress, np.random.default_rng(0))
        np.add.at(times_N, selection.rows_Q, 1)
        found.append(selection.rows_Q.tolist())
    return found


def test_golden_trace() -> None:
    assert decide(Near(), 4) == [[0, 3, 6, 4]]
    assert decide(Near(walk="round_robin"), 4) == [[0, 6, 3, 2]]


def slow_walk(neighbours: list[list[int]], *, robin: bool) -> list[int]:
    """Both walks a row at a time, as they are said."""
    taken: list[int] = []
    if not robin:
        for rank in range(len(neighbours[0])):
            for row in (query[rank] for query in neighbours):
                taken += [row] * (row >= 0 and row not in taken)
        return taken
    while any(row >= 0 and row not in taken for query in neighbours for row in query):
        for query in neighbours:
            fresh = [row for row in query if row >= 0 and row not in taken]
            taken += fresh[:1]
    return taken


def test_walks_are_those_of_loops() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        queries, k = rng.integers(1, 6), rng.integers(1, 9)
        neighbours = np.stack([rng.permutation(12)[:k] for _ in range(queries)])
        neighbours[rng.random(neighbours.shape) < 0.1] = -1
        assert column_walk(neighbours).tolist() == slow_walk(neighbours.tolist(), robin=False)
        assert round_robin_walk(neighbours).tolist() == slow_walk(neighbours.tolist(), robin=True)


def test_decisions_go_on_along_the_walk_and_begin_again_when_it_ends() -> None:
    assert decide(Near(), 3, 3) == [[0, 3, 6], [4, 2, 1], [5, 0, 3]]
    assert decide(Near(reuse="always"), 3, 2) == [[0, 3, 6], [0, 3, 6]]


def test_more_neighbours_are_looked_at_where_a_decision_needs_them() -> None:
    assert decide(Near(k_max=1), 6) == [[0, 3, 6, 4, 2, 1]]
    with pytest.raises(Exception, match=r"only 7|7 "):
        decide(Near(k_max=1), 8)


def test_rows_without_label_or_embedding_are_never_listed() -> None:
    rows = ROWS.copy()
    rows[3] = np.nan
    assert 3 not in np.ravel(decide(Near(), 2, 3, embeddings=rows))
    assert 0 not in np.ravel(decide(Near(), 2, 3, labels=[0, 1, 1, 1, 1, 1, 1]))


def test_neighbours_from_a_file_serve_as_those_that_are_found() -> None:
    from dataflex.algorithms.neighbours import nearest

    neighbours = nearest(ROWS, QUERIES, 7)[0]
    for walk in ("column", "round_robin"):
        given = Near(walk=walk, indices_path="indices.npy")  # type: ignore[arg-type]
        assert given.needs == {"neighbours_file", "times_trained"}
        assert decide(given, 4, 2, neighbours_file=neighbours) == decide(Near(walk=walk), 4, 2)  # type: ignore[arg-type]
