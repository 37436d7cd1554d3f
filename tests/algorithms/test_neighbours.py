"""Nearest rows: equal to brute force, whatever the index, the blocks, ties, missing rows, or where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex.algorithms import neighbours
from dataflex.algorithms.neighbours import nearest
from dataflex.core.errors import ConfigError


def brute_force(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distances = np.linalg.norm(queries[:, None].astype(np.float64) - rows[None].astype(np.float64), axis=2)
    distances[~np.isfinite(distances)] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


def vectors(num: int, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, width)).astype(np.float32)


@pytest.mark.parametrize("block_bytes", [64, 1 << 10, 1 << 27])
def test_it_is_brute_force_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", block_bytes)
    rows, queries = vectors(57), vectors(4, seed=1)
    rows[20:30] = rows[3]  # ties
    rows[40] = np.nan
    found, distances = nearest(rows, queries, 30)
    wanted, apart = brute_force(rows, queries, 30)
    assert found.tolist() == wanted.tolist()
    np.testing.assert_allclose(distances, apart, rtol=1e-12)


def test_near_duplicates_far_from_the_origin_are_told_apart() -> None:
    """Squares in fp32 would put them all at the same distance."""
    rows = np.full((40, 3), 1000.0, dtype=np.float32)
    rows[:, 0] += np.arange(40, dtype=np.float32)[::-1] / 256
    found, _ = nearest(rows, rows[39:], 12)
    assert found[0].tolist() == list(range(39, 27, -1))


def test_of_a_file_and_of_the_rows_that_count(tmp_path: Path) -> None:
    rows, queries = vectors(50), vectors(3, seed=1)
    np.save(tmp_path / "rows.npy", rows)
    allowed = np.arange(50) % 3 != 0
    found, _ = nearest(np.load(tmp_path / "rows.npy", mmap_mode="r"), queries, 5, allowed_N=allowed)
    wanted, _ = brute_force(np.where(allowed[:, None], rows, np.nan), queries, 5)
    assert found.tolist() == wanted.tolist()


def test_no_more_than_there_are_and_none_is_an_error() -> None:
    rows = vectors(5)
    assert nearest(rows, rows[:2], 100)[0].shape == (2, 5)
    with pytest.raises(ConfigError, match="no row has an embedding"):
        nearest(np.full((3, 2), np.nan, dtype=np.float32), rows[:1, :2], 1)


@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_indexes_of_faiss_find_nearly_all_and_never_less_than_asked(index: Any) -> None:
    pytest.importorskip("faiss")
    rows, queries = vectors(3000), vectors(20, seed=1)
    found, distances = nearest(rows, queries, 50, index=index)
    wanted, _ = brute_force(rows, queries, 50)
    assert found.min() >= 0
    assert np.all(np.diff(distances, axis=1) >= 0)
    assert np.mean([len(set(a) & set(b)) / 50 for a, b in zip(found.tolist(), wanted.tolist(), strict=True)]) > 0.75
    assert sorted(nearest(rows[:30], queries, 30, index=index)[0][0].tolist()) == list(range(30)), (
        "more than lists hold"
    )


def test_the_exact_index_is_that_of_faiss() -> None:
    faiss: Any = pytest.importorskip("faiss")
    rows, queries = vectors(2000, width=32), vectors(10, width=32, seed=1)
    index = faiss.IndexFlatL2(32)
    index.add(rows)
    squares, wanted = index.search(queries, 25)
    found, distances = nearest(rows, queries, 25)
    assert found.tolist() == wanted.tolist()
    np.testing.assert_allclose(distances**2, squares, rtol=1e-4)


def test_without_faiss_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"index: ivf needs faiss.*dataflex\[embed\].*index: exact"):
        nearest(vectors(5), vectors(1), 2, index="ivf")
