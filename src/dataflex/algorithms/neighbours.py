"""Nearest rows of each query among embeddings that may lie on disk."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from dataflex.core.errors import ConfigError

Index = Literal["exact", "ivf", "hnsw"]
INDEXES = ("exact", "ivf", "hnsw")
BLOCK_BYTES = 1 << 27  # of embeddings, and of distances, in memory at a time
SLACK = 16  # further rows that are looked at again in float64, for those that fp32 puts a little too far
HNSW_LINKS, HNSW_EFFORT, NUM_PROBES = 32, 128, 10


def nearest(
    embeddings_NxE: np.ndarray,
    queries_MxE: np.ndarray,
    k: int,
    *,
    index: Index = "exact",
    allowed_N: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` rows nearest to each query by Euclidean distance, nearest first, ties by row.

    Args:
        embeddings_NxE: float32, may be memory-mapped; a row that is not finite is nobody's neighbour.
        k: at least 1; cut to the number of rows that there are.
        index: ``exact``; ``ivf`` or ``hnsw`` by faiss, which may miss some: the rest is then searched exactly.
        allowed_N: rows that count, bool; None: all.

    Returns:
        Rows, int64, and distances, float64, both of shape (M, k).

    Raises:
        ConfigError: faiss is needed and not installed, or no row is left.
    """
    usable = usable_rows(embeddings_NxE, allowed_N)
    if len(usable) == 0:
        raise ConfigError("no row has an embedding; check the encoder, or take a method that needs none")
    queries_MxE = np.ascontiguousarray(queries_MxE, dtype=np.float32)
    k = min(k, len(usable))
    if index == "exact":
        rows_MxC = _by_blocks(embeddings_NxE, queries_MxE, min(k + SLACK, len(usable)), usable)
    else:
        rows_MxC = _by_faiss(embeddings_NxE, queries_MxE, k, usable, index)
        short = np.flatnonzero((rows_MxC < 0).any(axis=1))
        if len(short):
            rows_MxC[short] = _by_blocks(embeddings_NxE, queries_MxE[short], k, usable)
    return _in_order(embeddings_NxE, queries_MxE, rows_MxC, k)


def usable_rows(embeddings_NxE: np.ndarray, allowed_N: np.ndarray | None = None) -> np.ndarray:
    """Rows with an embedding, of those allowed, ascending, int64."""
    size = _block_rows(embeddings_NxE.shape[1])
    parts = [
        np.isfinite(np.asarray(embeddings_NxE[start : start + size])).all(axis=1)
        for start in range(0, len(embeddings_NxE), size)
    ]
    finite_N = np.concatenate(parts) if parts else np.zeros(0, dtype=bool)
    return np.flatnonzero(finite_N if allowed_N is None else finite_N & allowed_N)


def _block_rows(width: int) -> int:
    return max(1, BLOCK_BYTES // (4 * max(1, width)))


def _by_blocks(embeddings_NxE: np.ndarray, queries_MxE: np.ndarray, k: int, usable: np.ndarray) -> np.ndarray:
    """The rows of the ``k`` smallest fp32 distances, in no order, shape (M, k)."""
    num_queries, width = queries_MxE.shape
    size = max(k, min(_block_rows(width), BLOCK_BYTES // (4 * num_queries)))
    best_MxC = np.zeros((num_queries, 0), dtype=np.float32)
    rows_MxC = np.zeros((num_queries, 0), dtype=np.int64)
    # Around the queries' middle, since squares of long vectors swallow small differences.
    middle_E = queries_MxE.mean(axis=0)
    queries_MxE = queries_MxE - middle_E
    for start in range(0, len(usable), size):
        rows_B = usable[start : start + size]
        block_BxE = np.asarray(embeddings_NxE[rows_B], dtype=np.float32) - middle_E
        # Squared, less the query's own square, which changes no order.
        distances_MxB = np.einsum("be,be->b", block_BxE, block_BxE) - 2 * (queries_MxE @ block_BxE.T)
        best_MxC = np.concatenate([best_MxC, distances_MxB], axis=1)
        rows_MxC = np.concatenate([rows_MxC, np.broadcast_to(rows_B, (num_queries, len(rows_B)))], axis=1)
        if best_MxC.shape[1] > k:
            kept_MxK = np.argpartition(best_MxC, k - 1, axis=1)[:, :k]
            best_MxC = np.take_along_axis(best_MxC, kept_MxK, axis=1)
            rows_MxC = np.take_along_axis(rows_MxC, kept_MxK, axis=1)
    return rows_MxC


def _by_faiss(
    embeddings_NxE: np.ndarray, queries_MxE: np.ndarray, k: int, usable: np.ndarray, index: str
) -> np.ndarray:
    """Rows that an index of faiss finds, -1 where it finds fewer, shape (M, k)."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            f"index: {index} needs faiss ({error}); install it with pip install 'dataflex[embed]', or set index: exact"
        ) from error
    library: object = faiss
    width = queries_MxE.shape[1]
    rows_UxE = np.ascontiguousarray(embeddings_NxE[usable], dtype=np.float32)
    made = _faiss_index(library, rows_UxE, width, index, k)
    made.add(rows_UxE)
    _, found_MxK = made.search(queries_MxE, k)
    return np.where(found_MxK < 0, -1, usable[np.maximum(found_MxK, 0)])


def _faiss_index(faiss: object, rows_UxE: np.ndarray, width: int, index: str, k: int):
    library = faiss
    if index == "hnsw":
        made = library.IndexHNSWFlat(width, HNSW_LINKS)  # type: ignore[attr-defined]
        made.hnsw.efSearch = max(HNSW_EFFORT, k)
        return made
    num_lists = max(1, int(math.sqrt(len(rows_UxE)) / 2))
    made = library.IndexIVFFlat(library.IndexFlatL2(width), width, num_lists)  # type: ignore[attr-defined]
    made.nprobe = min(NUM_PROBES, num_lists)
    made.cp.min_points_per_centroid = 1  # no warning for small pools
    made.train(rows_UxE)
    return made


def _in_order(
    embeddings_NxE: np.ndarray, queries_MxE: np.ndarray, rows_MxC: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest ``k`` of each query's candidates by distances in float64, from differences."""
    found_MxK = np.empty((len(queries_MxE), k), dtype=np.int64)
    distances_MxK = np.empty((len(queries_MxE), k))
    size = max(1, BLOCK_BYTES // (8 * queries_MxE.shape[1]))
    for query, rows_C in enumerate(rows_MxC):
        target_E = queries_MxE[query].astype(np.float64)
        parts = [
            np.linalg.norm(
                np.asarray(embeddings_NxE[rows_C[start : start + size]], dtype=np.float64) - target_E, axis=1
            )
            for start in range(0, len(rows_C), size)
        ]
        distances_C = np.concatenate(parts)
        order = np.lexsort((rows_C, distances_C))[:k]
        found_MxK[query], distances_MxK[query] = rows_C[order], distances_C[order]
    return found_MxK, distances_MxK
