"""NEAR: the samples nearest to the target's rows in the space of embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import Progress, Selection, Signals, State
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.algorithms.neighbours import INDEXES, Index, nearest
from dataflex.algorithms.select.embedding import EmbeddingSelector
from dataflex.algorithms.select.ranked import REUSE, Reuse, take_ranked
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Near(EmbeddingSelector):
    """Take samples in the order of a walk through the nearest neighbours of the target's rows.

    ``column``: the nearest neighbours of all target rows, then the second nearest of all, and so on. ``round_robin``:
    each target row in turn takes its nearest sample that none has taken. Either way each sample comes once; every
    decision takes the next ones.

    Args:
        walk: ``column`` or ``round_robin``.
        k_max: neighbours of each target row; more, where they are too few for a decision.
        index: ``exact``, or ``ivf`` or ``hnsw`` of faiss.
        indices_path: neighbours that were found before, a .npy file of row numbers (queries, neighbours); no
            embeddings are made then.
        reuse: rows already trained come again ``after_exhaustion`` of the others, ``never`` or ``always``.
        encoder, pooling, cache_dir: see ``EmbeddingSelector``.

    Raises:
        ConfigError: a parameter out of range.

    Source: DataFlex's NEAR (column walk); RDS+ (2503.01807), round robin.
    """

    walk: Literal["column", "round_robin"] = "column"
    k_max: int = 1000
    index: Index = "exact"
    indices_path: str | None = None
    reuse: Reuse = "after_exhaustion"

    source: ClassVar[str] = "DataFlex; RDS+ 2503.01807"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("walk", self.walk, ("column", "round_robin"))
        require_range("k_max", self.k_max, at_least=1)
        require_one_of("index", self.index, INDEXES)
        require_one_of("reuse", self.reuse, REUSE)
        if self.indices_path == "":
            raise ConfigError("indices_path is ''; name a .npy file, or leave it out to find neighbours by embeddings")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        given = {"embeddings", "target_embeddings"} if self.indices_path is None else {"neighbours_file"}
        return frozenset(given | {"times_trained"})

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        state = self._listed(state, signals, quota)
        scores_N = state["scores_N"]
        listed_N = np.isfinite(scores_N)
        rows_Q = take_ranked(np.nan_to_num(scores_N), signals["times_trained"], quota, self.reuse, listed_N)
        selection = Selection(
            rows_Q=rows_Q,
            decision="guided",
            columns_N={"score": scores_N.astype(np.float32)},
            notes={"num_listed": int(listed_N.sum()), "neighbours": int(state["k"])},
        )
        return selection, state

    def rank(self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        scores_N = self._listed(state, signals, 1)["scores_N"]
        return take_ranked(np.nan_to_num(scores_N), signals["times_trained"], None, self.reuse, np.isfinite(scores_N))

    def _listed(self, state: State, signals: Signals, quota: int) -> State:
        """The state with every listed row's score: minus its place in the walk, NaN for the others."""
        if "scores_N" in state:
            return state
        trainable_N = state["trainable_N"]
        if self.indices_path is not None:
            neighbours_MxK = signals["neighbours_file"]
            walked = self._walked(neighbours_MxK)
            walked, k = walked[trainable_N[walked]], neighbours_MxK.shape[1]
        else:
            walked, k = self._found(signals, trainable_N, quota)
        scores_N = np.full(len(trainable_N), np.nan)
        scores_N[walked] = -np.arange(len(walked), dtype=np.float64)
        return {**state, "scores_N": scores_N, "k": np.array(k)}

    def _found(self, signals: Signals, trainable_N: np.ndarray, quota: int) -> tuple[np.ndarray, int]:
        """Rows in the order of the walk, and the number of neighbours that were enough for the quota."""
        k = self.k_max
        while True:
            rows_MxK, _ = nearest(
                signals["embeddings"], signals["target_embeddings"], k, index=self.index, allowed_N=trainable_N
            )
            walked = self._walked(rows_MxK)
            if len(walked) >= quota or rows_MxK.shape[1] < k:
                return walked, rows_MxK.shape[1]
            k *= 2

    def _walked(self, neighbours_MxK: np.ndarray) -> np.ndarray:
        return (column_walk if self.walk == "column" else round_robin_walk)(neighbours_MxK)


def column_walk(neighbours_MxK: np.ndarray) -> np.ndarray:
    """Distinct rows, int64: the first column from top to bottom, then the second, and so on; -1 is no row.

    >>> column_walk(np.array([[0, 6, 2], [0, 1, 6]])).tolist()
    [0, 6, 1, 2]
    """
    flat = np.asarray(neighbours_MxK, dtype=np.int64).T.ravel()
    flat = flat[flat >= 0]
    _, first = np.unique(flat, return_index=True)
    return flat[np.sort(first)]


def round_robin_walk(neighbours_MxK: np.ndarray) -> np.ndarray:
    """Distinct rows, int64: each query in turn takes its nearest row that is not taken; -1 is no row.

    >>> round_robin_walk(np.array([[0, 6, 2], [0, 1, 6]])).tolist()
    [0, 1, 6, 2]
    """
    lists = [iter(row) for row in np.asarray(neighbours_MxK).tolist()]
    taken: dict[int, None] = {}  # in order
    while lists:
        still = []
        for queue in lists:
            row = next((row for row in queue if row >= 0 and row not in taken), None)
            if row is not None:
                taken[row] = None
                still.append(queue)
        lists = still
    return np.fromiter(taken, dtype=np.int64, count=len(taken))
