"""S2L: samples spread evenly over groups whose losses went alike in an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dataflex.algorithms.base import MeasuredOnce, Progress, Selection, Signals, State
from dataflex.algorithms.checks import require_range
from dataflex.core.draw import check_quota, least_used_first
from dataflex.core.errors import ConfigError

ROWS_A_CLUSTER = 10


@dataclass(frozen=True, kw_only=True)
class S2L(MeasuredOnce):
    """Take equal shares of the clusters of loss trajectories.

    The losses that an earlier run, of this model or of a small one, measured of every sample at its decisions are the
    sample's trajectory; k-means groups those that went alike. A decision's quota is shared out equally among the
    clusters, the smallest first, what a cluster lacks going to the larger ones; inside a cluster the samples that were
    trained least come first, in random order. Every decision shares out anew, so that small
    clusters come again while large ones still have samples that were never trained.

    Args:
        path: output_dir of that run.
        n_clusters: at most one for ten samples.
        by_source: share out among data sets first, then among the clusters of each.
        min_cluster: clusters of fewer samples are served after the others.
        num_iterations: of k-means at most.
        seed: of its start.

    Raises:
        ConfigError: no path, or a parameter out of range.

    Source: S2L (2403.07384). Departures: losses that were not measured are the checkpoint's median, not 0; small
    clusters are served like others unless ``min_cluster`` says so.
    """

    path: str
    n_clusters: int = 100
    by_source: bool = False
    min_cluster: int = 0
    num_iterations: int = 20
    seed: int = 0

    source: ClassVar[str] = "S2L 2403.07384"

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(
                "path is missing; name the output_dir of a run of delta_loss or loss, whose record holds the losses of "
                "every sample"
            )
        for name in ("n_clusters", "num_iterations"):
            require_range(name, getattr(self, name), at_least=1)
        for name in ("min_cluster", "seed"):
            require_range(name, getattr(self, name), at_least=0)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"trajectories", "times_trained", *(["source"] if self.by_source else [])})

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        state = self._clustered(state, signals)
        cluster_N, source_N, times_N = state["cluster_N"], state["source_N"], signals["times_trained"]
        known_N = cluster_N >= 0
        check_quota(quota, int(known_N.sum()))
        counts_SxC = self._counts(cluster_N, source_N, quota)
        # The samples of each group that were trained least, in random order.
        order = least_used_first(times_N, int(known_N.sum()), rng, known_N)
        group_M = source_N[order] * counts_SxC.shape[1] + cluster_N[order]
        by_group = np.argsort(group_M, kind="stable")
        grouped_M = group_M[by_group]
        place_M = np.arange(len(order)) - np.searchsorted(grouped_M, grouped_M)
        taken_M = place_M < counts_SxC.ravel()[grouped_M]
        sizes_C = np.bincount(cluster_N[known_N])
        selection = Selection(
            rows_Q=order[np.sort(by_group[taken_M])].astype(np.int64),
            decision="guided",
            columns_N={"cluster": cluster_N},
            notes={
                "num_clusters": int((sizes_C > 0).sum()),
                "smallest_cluster": int(sizes_C[sizes_C > 0].min()),
                "num_imputed": int(state["num_imputed"]),
            },
        )
        return selection, state

    def _counts(self, cluster_N: np.ndarray, source_N: np.ndarray, quota: int) -> np.ndarray:
        """Rows to take of each source and cluster, shape (S, C)."""
        known_N = cluster_N >= 0
        num_sources, num_clusters = int(source_N.max()) + 1, int(cluster_N.max()) + 1
        sizes_SxC = np.zeros((num_sources, num_clusters), dtype=np.int64)
        np.add.at(sizes_SxC, (source_N[known_N], cluster_N[known_N]), 1)
        of_source_S = water_fill(sizes_SxC.sum(axis=1), quota)
        return np.stack([self._shared(sizes_C, total) for sizes_C, total in zip(sizes_SxC, of_source_S, strict=True)])

    def _shared(self, sizes_C: np.ndarray, total: int) -> np.ndarray:
        large_C = np.where(sizes_C >= self.min_cluster, sizes_C, 0)
        counts_C = water_fill(large_C, min(total, int(large_C.sum())))
        return counts_C + water_fill(sizes_C - large_C, total - int(counts_C.sum()))

    def _clustered(self, state: State, signals: Signals) -> State:
        if "cluster_N" in state:
            return state
        trainable_N = state["trainable_N"]
        trajectories_NxC = np.asarray(signals["trajectories"], dtype=np.float32)
        known_N = trainable_N & np.isfinite(trajectories_NxC).any(axis=1)
        cluster_N = np.full(len(trainable_N), -1, dtype=np.int64)
        imputed_MxC, num_imputed = impute(trajectories_NxC[known_N])
        if known_N.any():
            most = max(1, min(self.n_clusters, int(known_N.sum()) // ROWS_A_CLUSTER))
            cluster_N[known_N] = k_means(imputed_MxC, most, self.num_iterations, self.seed)
        source_N = np.zeros(len(trainable_N), dtype=np.int64)
        if self.by_source:
            source_N = np.asarray(signals["source"], dtype=np.int64)
            if not np.any(source_N >= 0):
                raise ConfigError(
                    "by_source is True, but where the rows come from is not known (no column dataset); set it to false"
                )
            source_N = source_N - min(0, int(source_N.min()))  # unknown ones are a source of their own
        return {**state, "cluster_N": cluster_N, "source_N": source_N, "num_imputed": np.array(num_imputed)}


def water_fill(sizes_C: np.ndarray, total: int) -> np.ndarray:
    """Equal shares of ``total``, the smallest first, each at most its size: n = min(size, rest // clusters left).

    Of equal sizes the later one takes what does not divide.

    >>> water_fill(np.array([10, 3, 7, 1, 20]), 20).tolist()
    [5, 3, 5, 1, 6]
    """
    counts_C = np.zeros(len(sizes_C), dtype=np.int64)
    rest = total
    for place, cluster in enumerate(np.argsort(sizes_C, kind="stable")):
        counts_C[cluster] = min(int(sizes_C[cluster]), rest // (len(sizes_C) - place))
        rest -= int(counts_C[cluster])
    return counts_C


def impute(trajectories_NxC: np.ndarray) -> tuple[np.ndarray, int]:
    """Trajectories with the median of each checkpoint in place of what is not finite, and how many those are."""
    finite_NxC = np.isfinite(trajectories_NxC)
    known = np.where(finite_NxC, trajectories_NxC, np.nan)[:, finite_NxC.any(axis=0)]
    if known.shape[1] == 0:
        return np.zeros((len(trajectories_NxC), 1)), int((~finite_NxC).sum())
    medians_C = np.nanmedian(known, axis=0)
    return np.where(np.isfinite(known), known, medians_C).astype(np.float64), int((~finite_NxC).sum())


def k_means(points_MxC: np.ndarray, num_clusters: int, num_iterations: int, seed: int) -> np.ndarray:
    """Cluster of each point, int64; by content, so that the order of the pool does not matter.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ConfigError(f"s2l needs scikit-learn ({error}); install it with pip install 'dataflex[embed]'") from error
    by_content = np.lexsort(points_MxC.T[::-1])
    once: Any = 1  # its stub knows "auto" alone
    model = KMeans(num_clusters, max_iter=num_iterations, n_init=once, random_state=seed)
    cluster_M = np.empty(len(points_MxC), dtype=np.int64)
    cluster_M[by_content] = model.fit_predict(points_MxC[by_content])
    return cluster_M
