"""ClusterLESS: LESS for a few representatives of each cluster of similar samples, which speak for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import PoolInfo, Progress, Selection, Signals, State
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.algorithms.select.embedding import POOLINGS
from dataflex.algorithms.select.gradient import GradientSelector, group_columns
from dataflex.algorithms.select.less import aggregated
from dataflex.core.draw import check_quota

BLOCK = 1 << 15  # rows of embeddings in memory at a time
CONTENT = 8  # numbers of an embedding by which rows are put in an order that is not the pool's
DIGITS = 5  # of a distance that are more than rounding
UNKNOWN = 3.0  # the distance of a row without an embedding, farther than any


@dataclass(frozen=True, kw_only=True)
class ClusterLess(GradientSelector):
    """LESS by representatives: the samples of the clusters that serve the target best.

    Once, embeddings are cut into ceil(N / cluster_size) clusters. At each decision some representatives of each get a
    score as in ``less``; a cluster's score is the mean of theirs. The best clusters are taken, the last one cut, in
    each the rows nearest to its centroid first. Gradients are taken of representatives / cluster_size of the pool.

    Args:
        cluster_size: rows of a cluster in the mean.
        representatives: rows of each cluster that are scored, all of a smaller one.
        pick: ``nearest`` or ``farthest`` to the centroid, or ``random``, drawn anew at each decision.
        num_iterations: of k-means at most.
        aggregate: as in ``less``.
        encoder, pooling: of the embeddings, see ``EmbeddingSelector``.
        gradient_type, engine, bias_correction, proj_dim, seed, cache_dir: see ``GradientSelector``.

    Raises:
        ConfigError: a parameter out of range.

    Source: in-house method of DataFlex; no paper, no published result.
    """

    cluster_size: int = 64
    representatives: int = 3
    pick: Literal["nearest", "random", "farthest"] = "nearest"
    num_iterations: int = 20
    aggregate: Literal["max", "mean"] = "max"
    encoder: str = "self"
    pooling: Literal["position", "mean", "last"] = "position"

    limits_passes: ClassVar[bool] = True
    source: ClassVar[str] = "DataFlex, no paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cluster_size", "representatives", "num_iterations"):
            require_range(name, getattr(self, name), at_least=1)
        require_one_of("pick", self.pick, ("nearest", "random", "farthest"))
        require_one_of("aggregate", self.aggregate, ("max", "mean"))
        require_one_of("pooling", self.pooling, POOLINGS)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"embeddings", "similarities", *(["target_sizes"] if self.aggregate == "mean" else [])})

    def needs_at(self, progress: Progress) -> frozenset[str]:
        if progress.is_warmup:
            return frozenset()
        return self.needs if progress.is_first_selection else self.needs - {"embeddings"}

    def init(self, pool: PoolInfo) -> State:
        return {"trainable_N": pool.trainable_N}

    def candidates(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[np.ndarray | None, State]:
        if "embeddings" in signals:
            cluster_N, distance_N = clusters(signals["embeddings"], self.cluster_size, self.num_iterations, rng)
            state = {**state, "cluster_N": cluster_N, "distance_N": distance_N}
        rows = representatives(
            state["cluster_N"], state["distance_N"], self.representatives, self.pick, rng, state["trainable_N"]
        )
        return rows, state

    def share_measured(self, quota: int, num_rows: int) -> float:
        """Share of the pool whose gradients a decision measures."""
        return min(1.0, self.representatives / self.cluster_size)

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        similarities_NxG = signals["similarities"]
        scores_N = self._scores(signals)
        cluster_N, trainable_N = state["cluster_N"], state["trainable_N"]
        rows_Q = take_clusters(scores_N, cluster_N, state["distance_N"], trainable_N, quota)
        columns_N = {
            "score": scores_N.astype(np.float32),
            "cluster": cluster_N,
            **group_columns(similarities_NxG),
        }
        scored_N = np.isfinite(scores_N)
        notes = {
            "num_clusters": int(cluster_N.max(initial=-1)) + 1,
            "num_representatives": int(scored_N.sum()),
            "num_clusters_scored": len(np.unique(cluster_N[scored_N])),
        }
        selection = Selection(
            rows_Q=rows_Q, decision="guided", columns_N=columns_N, notes=notes, warnings=self.unused(progress)
        )
        return selection, state

    def rank(self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        return ranked_by_cluster(self._scores(signals), state["cluster_N"], state["distance_N"], state["trainable_N"])

    def _scores(self, signals: Signals) -> np.ndarray:
        """Of the representatives, float64, shape (N,); NaN for the others."""
        return aggregated(signals["similarities"], signals["target_sizes"] if self.aggregate == "mean" else None)


def clusters(
    embeddings_NxE: np.ndarray, cluster_size: int, num_iterations: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Spherical k-means into ceil(N / cluster_size) clusters.

    Starts from rows drawn without replacement; a cluster that loses all its rows begins again with the row that is
    farthest from its own centroid.

    Args:
        embeddings_NxE: unit rows.

    Returns:
        Cluster of each row, int64, and its distance ``1 - cosine`` to that cluster's centroid, to 1e-5, both of shape
        (N,).

    Source: in-house method of DataFlex; no paper.
    """
    num_rows = len(embeddings_NxE)
    num_clusters = -(-num_rows // cluster_size)
    # By content, so that the order of the pool does not matter.
    by_content = np.lexsort(np.asarray(embeddings_NxE[:, :CONTENT], dtype=np.float64).T[::-1])
    start = by_content[np.sort(rng.permutation(num_rows)[:num_clusters])]
    centroids_CxE = np.nan_to_num(np.asarray(embeddings_NxE[start], dtype=np.float64))
    cluster_N, distance_N, sums_CxE = _nearest(embeddings_NxE, centroids_CxE)
    for _ in range(num_iterations):
        empty = np.flatnonzero(np.bincount(cluster_N, minlength=num_clusters) == 0)
        far = np.argsort(np.where(distance_N == UNKNOWN, 0, -distance_N), kind="stable")[: len(empty)]
        sums_CxE[empty] = np.nan_to_num(np.asarray(embeddings_NxE[far], dtype=np.float64))
        norms_C = np.linalg.norm(sums_CxE, axis=1, keepdims=True)
        centroids_CxE = np.divide(sums_CxE, norms_C, out=centroids_CxE.copy(), where=norms_C > 0)
        before_N = cluster_N
        cluster_N, distance_N, sums_CxE = _nearest(embeddings_NxE, centroids_CxE)
        if np.array_equal(cluster_N, before_N):
            break
    # Two rows of a cluster are equally far from its centroid but for rounding, which another number of ranks changes:
    # what is nearly equal is put in the order of content.
    rank_N = np.empty(num_rows)
    rank_N[by_content] = np.arange(num_rows)
    return cluster_N, np.round(distance_N, DIGITS) + rank_N / num_rows * 10.0 ** -(DIGITS + 2)


def _nearest(embeddings_NxE: np.ndarray, centroids_CxE: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest centroid of each row, the distance to it, and the sum of each cluster's rows.

    A row without an embedding is far from all: in cluster 0, a part of no sum.
    """
    cluster_N = np.zeros(len(embeddings_NxE), dtype=np.int64)
    distance_N = np.full(len(embeddings_NxE), UNKNOWN)
    sums_CxE = np.zeros_like(centroids_CxE)
    size = min(BLOCK, max(1, (1 << 23) // max(1, len(centroids_CxE))))
    for start in range(0, len(embeddings_NxE), size):
        rows_BxE = np.asarray(embeddings_NxE[start : start + size], dtype=np.float64)
        known = np.flatnonzero(np.isfinite(rows_BxE).all(axis=1))
        cosines_BxC = rows_BxE[known] @ centroids_CxE.T
        best_B = cosines_BxC.argmax(axis=1)
        cluster_N[start + known] = best_B
        distance_N[start + known] = 1 - cosines_BxC[np.arange(len(best_B)), best_B]
        np.add.at(sums_CxE, best_B, rows_BxE[known])
    return cluster_N, distance_N, sums_CxE


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
    rows = np.flatnonzero(allowed_N)
    keys_N = -distance_N if pick == "farthest" else distance_N
    if pick == "random":
        # Dealt out by cluster and distance, so that the order of the pool does not matter.
        keys_N = np.empty(len(cluster_N))
        keys_N[np.lexsort((distance_N, cluster_N))] = rng.random(len(cluster_N))
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
