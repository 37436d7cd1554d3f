"""ClusterLESS: LESS for a few representatives of each cluster of similar samples, which speak for the others."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dataflex.core.draw import check_quota


def clusters(
    embeddings_NxE: np.ndarray, cluster_size: int, num_iterations: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Spherical k-means into ceil(N / cluster_size) clusters.

    Starts from rows drawn without replacement; a cluster that loses all its rows begins again with the row that is
    farthest from its own centroid.

    Args:
        embeddings_NxE: unit rows.

    Returns:
        Cluster of each row, int64, and its distance ``1 - cosine`` to that cluster's centroid, both of shape (N,).

    Source: in-house method of DataFlex; no paper.
    """
    embeddings_NxE = np.asarray(embeddings_NxE, dtype=np.float64)
    num_rows = len(embeddings_NxE)
    num_clusters = -(-num_rows // cluster_size)
    centroids_CxE = embeddings_NxE[np.sort(rng.permutation(num_rows)[:num_clusters])]
    cluster_N, distance_N = _nearest(embeddings_NxE, centroids_CxE)
    for _ in range(num_iterations):
        sums_CxE = np.zeros_like(centroids_CxE)
        np.add.at(sums_CxE, cluster_N, embeddings_NxE)
        empty = np.flatnonzero(np.bincount(cluster_N, minlength=num_clusters) == 0)
        sums_CxE[empty] = embeddings_NxE[np.argsort(-distance_N, kind="stable")[: len(empty)]]
        norms_C = np.linalg.norm(sums_CxE, axis=1, keepdims=True)
        centroids_CxE = np.divide(sums_CxE, norms_C, out=centroids_CxE.copy(), where=norms_C > 0)
        before_N = cluster_N
        cluster_N, distance_N = _nearest(embeddings_NxE, centroids_CxE)
        if np.array_equal(cluster_N, before_N):
            break
    return cluster_N, distance_N


def _nearest(embeddings_NxE: np.ndarray, centroids_CxE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cluster_N = np.zeros(len(embeddings_NxE), dtype=np.int64)
    distance_N = np.zeros(len(embeddings_NxE))
    size = max(1, (1 << 23) // max(1, len(centroids_CxE)))
    for start in range(0, len(embeddings_NxE), size):
        cosines_BxC = embeddings_NxE[start : start + size] @ centroids_CxE.T
        best_B = cosines_BxC.argmax(axis=1)
        cluster_N[start : start + size] = best_B
        distance_N[start : start + size] = 1 - cosines_BxC[np.arange(len(best_B)), best_B]
    return cluster_N, distance_N


def representatives(
    cluster_N: np.ndarray,
    distance_N: np.ndarray,
    count: int,
    pick: Literal["nearest", "random", "farthest"],
    rng: np.random.Generator,
    allowed_N: np.ndarray,
) -> np.ndarray:
    """``count`` allowed rows of each cluster, all of a smaller one, ascending, int64.

    ``nearest`` and ``farthest`` go by the distance to the centroid, ties by row.
    """
    keys_N = {"nearest": distance_N, "farthest": -distance_N, "random": rng.random(len(cluster_N))}[pick]
    rows = np.flatnonzero(allowed_N)
    order = rows[np.lexsort((rows, keys_N[rows], cluster_N[rows]))]
    sorted_clusters = cluster_N[order]
    starts = np.searchsorted(sorted_clusters, sorted_clusters)  # where each row's cluster begins
    return np.sort(order[np.arange(len(order)) - starts < count])


def ranked_by_cluster(
    scores_N: np.ndarray, cluster_N: np.ndarray, distance_N: np.ndarray, allowed_N: np.ndarray
) -> np.ndarray:
    """All allowed rows, best first, int64: by their cluster's score, then nearness to its centroid, then row.

    A cluster's score is the mean of ``scores_N`` over its scored representatives; NaN elsewhere. A cluster without any
    comes last.
    """
    scored = np.flatnonzero(np.isfinite(scores_N))
    num_clusters = int(cluster_N.max(initial=-1)) + 1
    counts_C = np.bincount(cluster_N[scored], minlength=num_clusters)
    sums_C = np.bincount(cluster_N[scored], weights=scores_N[scored], minlength=num_clusters)
    means_C = np.divide(sums_C, counts_C, out=np.full(num_clusters, -np.inf), where=counts_C > 0)
    rows = np.flatnonzero(allowed_N)
    return rows[np.lexsort((rows, distance_N[rows], -means_C[cluster_N[rows]]))].astype(np.int64)


def take_clusters(
    scores_N: np.ndarray, cluster_N: np.ndarray, distance_N: np.ndarray, allowed_N: np.ndarray, quota: int
) -> np.ndarray:
    """The first ``quota`` rows of ``ranked_by_cluster``; the last cluster is cut, not taken whole.

    Raises:
        DataFlexError: fewer allowed rows than ``quota``.
    """
    check_quota(quota, int(np.count_nonzero(allowed_N)))
    return ranked_by_cluster(scores_N, cluster_N, distance_N, allowed_N)[:quota]
