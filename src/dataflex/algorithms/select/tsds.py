"""TSDS: samples drawn by an optimal transport to the target that does not crowd on near duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import Progress, Selection, Signals, State
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.algorithms.neighbours import BLOCK_BYTES, INDEXES, Index, nearest
from dataflex.algorithms.select.embedding import EmbeddingSelector
from dataflex.algorithms.select.ranked import REUSE, Reuse, take_ranked, take_weighted
from dataflex.core.draw import check_quota
from dataflex.core.errors import ConfigError

EXACT_DENSITY = 20_000  # rows up to which every pair is looked at
PROBED_LISTS = 10


@dataclass(frozen=True, kw_only=True)
class Tsds(EmbeddingSelector):
    """Draw samples by probabilities that carry the target's rows to the pool at least cost.

    With d_ij the distance of target row i to sample j, and rho_j how many samples lie around j (a kernel of width
    ``sigma``), the transport gamma, of 1/M from each target row, minimises::

        alpha / C * sum_ij gamma_ij d_ij  +  (1 - alpha) * M * max_ij rho_j gamma_ij

    and p_j = sum_i gamma_ij. Copies of one sample share what the sample would have alone.

    Args:
        alpha: weight of nearness against spread, in [0, 1].
        C: scale of the distances, > 0.
        sigma: width of the kernel, in the embeddings' unit; 0: density 1 everywhere.
        max_K: neighbours of each target row that may carry its mass.
        kde_K: samples around a sample that count for its density, where there are more than 20,000 candidates.
        draw: ``weighted`` without replacement, or ``multinomial`` with, as the released code.
        probs_path: probabilities that were found before, in a file as of ``static``; no embeddings are made then.
        index: ``exact``, or ``ivf`` or ``hnsw`` of faiss.
        reuse: of ``draw: weighted``: rows already trained come again ``after_exhaustion``, ``never`` or ``always``.
        encoder, pooling, cache_dir: see ``EmbeddingSelector``.

    Raises:
        ConfigError: a parameter out of range.

    Source: TSDS (2410.11303), KNN-KDE. Departures: the linear program is solved to its breakpoint by sorting, not by a
    heap; drawn without replacement unless told; limits of neighbours follow the pool's size down to 2.
    """

    alpha: float = 0.6
    C: float = 5.0
    sigma: float = 0.75
    max_K: int = 5000
    kde_K: int = 1000
    draw: Literal["weighted", "multinomial"] = "weighted"
    probs_path: str | None = None
    index: Index = "exact"
    reuse: Reuse = "after_exhaustion"

    source: ClassVar[str] = "TSDS 2410.11303"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("alpha", self.alpha, at_least=0, at_most=1)
        require_range("C", self.C, above=0)
        require_range("sigma", self.sigma, at_least=0)
        for name in ("max_K", "kde_K"):
            require_range(name, getattr(self, name), at_least=2)
        require_one_of("draw", self.draw, ("weighted", "multinomial"))
        require_one_of("index", self.index, INDEXES)
        require_one_of("reuse", self.reuse, REUSE)
        if self.probs_path == "":
            raise ConfigError("probs_path is ''; name a file, or leave it out to find probabilities by embeddings")

    @property
    def path(self) -> str | None:
        """The file of the signal ``file``."""
        return self.probs_path

    @property
    def replacement(self) -> bool:
        """A decision may have more rows than the pool."""
        return self.draw == "multinomial"

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        given = {"embeddings", "target_embeddings"} if self.probs_path is None else {"file"}
        return frozenset(given | {"times_trained"})

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        state, warnings = self._solved(state, signals), []
        weights_N, carried_N = state["probabilities_N"], state["probabilities_N"] > 0
        num_carried, num_trainable = int(carried_N.sum()), int(state["trainable_N"].sum())
        if progress.is_first_selection and self.probs_path is None and 2 * num_carried > num_trainable > quota:
            warnings.append(
                f"{num_carried} of {num_trainable} samples carry the target's mass, which is hardly a choice: "
                f"distances differ too little for alpha {self.alpha:g}, C {self.C:g} and sigma {self.sigma:g}; raise "
                "alpha, lower sigma, or name a sentence encoder"
            )
        if self.draw == "multinomial":
            check_quota(1, num_carried)
            rows_Q = rng.choice(len(weights_N), size=quota, p=weights_N / weights_N.sum())
        elif num_carried >= quota:
            rows_Q = take_weighted(weights_N, signals["times_trained"], quota, self.reuse, carried_N, rng)
        else:
            rows_Q, said = self._beyond(state, signals, quota, carried_N)
            warnings.append(said)
        selection = Selection(
            rows_Q=rows_Q.astype(np.int64),
            decision="guided",
            columns_N={"weight": weights_N},
            notes={"num_carried": num_carried, "spread": float(state["s"])},
            warnings=tuple(warnings),
        )
        return selection, state

    def _beyond(self, state: State, signals: Signals, quota: int, carried_N: np.ndarray) -> tuple[np.ndarray, str]:
        """All rows that carry mass, then the nearest to any target row."""
        distances_N = state["distances_N"]
        near_N = np.isfinite(distances_N) & state["trainable_N"] & ~carried_N
        missing = quota - int(carried_N.sum())
        check_quota(quota, int(carried_N.sum() + near_N.sum()))
        rest = take_ranked(
            -np.nan_to_num(distances_N, posinf=0.0), signals["times_trained"], missing, self.reuse, near_N
        )
        return np.concatenate([np.flatnonzero(carried_N), rest]), (
            f"{int(carried_N.sum())} samples carry the target's mass and {quota} are drawn: the other {missing} are "
            "the nearest to it; raise max_K or lower alpha to spread the mass"
        )

    def _solved(self, state: State, signals: Signals) -> State:
        """The state with each row's probability."""
        if "probabilities_N" in state:
            return state
        trainable_N = state["trainable_N"]
        if self.probs_path is not None:
            probabilities_N = np.where(trainable_N, np.nan_to_num(signals["file"]), 0.0)
            if np.any(probabilities_N < 0) or probabilities_N.sum() <= 0:
                raise ConfigError(
                    f"probs_path {self.probs_path!r} holds numbers below 0, or none above; probabilities are needed"
                )
            distances_N, s = np.full(len(trainable_N), np.nan), 0.0
        else:
            probabilities_N, distances_N, s = self._transport(signals, trainable_N)
        return {
            **state,
            "probabilities_N": probabilities_N,
            "distances_N": distances_N.astype(np.float32),
            "s": np.array(s),
        }

    def _transport(self, signals: Signals, trainable_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Probabilities, the distance of each row to the nearest target row, and s."""
        embeddings_NxE, queries_MxE = signals["embeddings"], signals["target_embeddings"]
        most = max(2, min(self.max_K, int(trainable_N.sum()) - 1))
        rows_MxK, distances_MxK = nearest(embeddings_NxE, queries_MxE, most, index=self.index, allowed_N=trainable_N)
        union, place_MxK = np.unique(rows_MxK, return_inverse=True)
        place_MxK = place_MxK.reshape(rows_MxK.shape)
        density_U = density(np.asarray(embeddings_NxE[union]), self.sigma, self.kde_K)
        p_U, s = transport(distances_MxK, place_MxK, density_U, alpha=self.alpha, scale=self.C)
        probabilities_N = np.zeros(len(trainable_N))
        probabilities_N[union] = p_U
        # Beyond the neighbours the order by distance matters only where those are fewer than a decision's rows.
        distances_N = np.full(len(trainable_N), np.inf)
        np.minimum.at(distances_N, rows_MxK.ravel(), distances_MxK.ravel())
        if most < int(trainable_N.sum()):
            distances_N = np.minimum(distances_N, _distance_to_any(embeddings_NxE, queries_MxE))
        return probabilities_N, distances_N, s


def _distance_to_any(embeddings_NxE: np.ndarray, queries_MxE: np.ndarray) -> np.ndarray:
    """Distance of each row to the nearest query, float32, shape (N,); inf for a row without an embedding."""
    queries_MxE = np.asarray(queries_MxE, dtype=np.float32)
    squares_M = np.einsum("me,me->m", queries_MxE, queries_MxE)
    found_N = np.empty(len(embeddings_NxE), dtype=np.float32)
    size = max(1, BLOCK_BYTES // (4 * max(queries_MxE.shape)))
    for start in range(0, len(embeddings_NxE), size):
        block_BxE = np.asarray(embeddings_NxE[start : start + size], dtype=np.float32)
        squares_B = np.einsum("be,be->b", block_BxE, block_BxE)
        nearest_B = (squares_M[:, None] - 2 * (queries_MxE @ block_BxE.T)).min(axis=0) + squares_B
        found_N[start : start + size] = np.sqrt(np.maximum(nearest_B, 0))
    return np.nan_to_num(found_N, nan=np.inf)


def transport(
    distances_MxK: np.ndarray, place_MxK: np.ndarray, density_U: np.ndarray, *, alpha: float, scale: float
) -> tuple[np.ndarray, float]:
    """Mass that each candidate receives, and the spread s at which the program has its minimum.

    At spread s a query gives ``1 / (M s rho_j)`` to its nearest candidates and what is left to the next one. Spreading
    further saves ``(1 - alpha) M`` of the second term for each unit and costs ``alpha / scale`` times the way that the
    mass has to go farther, a step function whose steps are where a query's next candidate is reached.

    Args:
        distances_MxK: of each query's candidates, ascending.
        place_MxK: which of the U candidates they are.
        density_U: rho, at least 1.

    Returns:
        p, float64, shape (U,), sum 1; s.
    """
    num_queries = len(distances_MxK)
    shares_MxK = 1 / density_U[place_MxK]
    reached_MxK = np.cumsum(shares_MxK, axis=1)  # s at which a query's candidate k is full
    costs_MxJ = reached_MxK[:, :-1] * np.diff(distances_MxK, axis=1)
    steps_L, costs_L = reached_MxK[:, :-1].ravel(), costs_MxJ.ravel()
    order = np.argsort(steps_L, kind="stable")
    enough = np.flatnonzero(alpha / scale * np.cumsum(costs_L[order]) >= (1 - alpha) * num_queries)
    last = float(reached_MxK[:, -1].min())  # beyond it a query has no candidate left
    s = min(float(steps_L[order[enough[0]]]), last) if len(enough) else last
    full_MxK = np.minimum(reached_MxK, s)
    # What candidate k adds to the filled mass; all of it is s, so that the one where it is reached takes the rest.
    parts_MxK = np.diff(full_MxK, axis=1, prepend=0.0) / (num_queries * s)
    return np.bincount(place_MxK.ravel(), weights=parts_MxK.ravel(), minlength=len(density_U)), s


def density(embeddings_UxE: np.ndarray, sigma: float, most: int) -> np.ndarray:
    """``rho_j = sum over candidates of max(0, 1 - d^2 / sigma^2)``, itself counted as 1, float64, shape (U,).

    Of more than 20,000 candidates an estimate from below: a row is compared with those of the lists nearest to its own,
    the rows being sorted into about sqrt(U) lists by nearness, and the ``most`` nearest of them count.
    """
    num_rows = len(embeddings_UxE)
    if sigma == 0:
        return np.ones(num_rows)
    embeddings_UxE = np.ascontiguousarray(embeddings_UxE, dtype=np.float32)
    if num_rows <= EXACT_DENSITY:
        everyone = np.arange(num_rows)
        size = max(1, BLOCK_BYTES // (4 * num_rows))
        parts = [
            _kernel_sums(embeddings_UxE, everyone[start : start + size], everyone, sigma, num_rows)
            for start in range(0, num_rows, size)
        ]
        return np.concatenate(parts)
    return _density_by_lists(embeddings_UxE, sigma, most)


def _density_by_lists(embeddings_UxE: np.ndarray, sigma: float, most: int) -> np.ndarray:
    num_rows = len(embeddings_UxE)
    num_lists = int(np.sqrt(num_rows))
    # Every so many-th row in an order of content, so that the order of the pool does not matter.
    by_content = np.lexsort(embeddings_UxE[:, :8].T[::-1])
    centres_LxE = embeddings_UxE[by_content[:: max(1, num_rows // num_lists)]]
    list_U = np.empty(num_rows, dtype=np.int64)
    size = max(1, BLOCK_BYTES // (4 * len(centres_LxE)))
    squares_L = np.einsum("le,le->l", centres_LxE, centres_LxE)
    for start in range(0, num_rows, size):
        block_BxE = embeddings_UxE[start : start + size]
        list_U[start : start + size] = (squares_L - 2 * (block_BxE @ centres_LxE.T)).argmin(axis=1)
    order = np.argsort(list_U, kind="stable")
    bounds = np.searchsorted(list_U[order], np.arange(len(centres_LxE) + 1))
    near_LxP, _ = nearest(centres_LxE, centres_LxE, PROBED_LISTS)
    density_U = np.ones(num_rows)
    for number, lists_P in enumerate(near_LxP):
        rows_A = order[bounds[number] : bounds[number + 1]]
        if len(rows_A) == 0:
            continue
        others = np.concatenate([order[bounds[other] : bounds[other + 1]] for other in {number, *lists_P.tolist()}])
        step = max(1, BLOCK_BYTES // (4 * len(others)))
        for start in range(0, len(rows_A), step):
            rows_B = rows_A[start : start + step]
            density_U[rows_B] = _kernel_sums(embeddings_UxE, rows_B, others, sigma, most)
    return density_U


def _kernel_sums(
    embeddings_UxE: np.ndarray, rows_B: np.ndarray, others_C: np.ndarray, sigma: float, most: int
) -> np.ndarray:
    """Kernel of ``rows_B`` with ``others_C``, the ``most`` nearest, themselves counted as exactly 1."""
    left_BxE, right_CxE = embeddings_UxE[rows_B], embeddings_UxE[others_C]
    squares_B, squares_C = (np.einsum("be,be->b", part, part) for part in (left_BxE, right_CxE))
    kernel_BxC = left_BxE @ right_CxE.T
    kernel_BxC *= 2
    kernel_BxC -= squares_C
    kernel_BxC -= squares_B[:, None]  # minus the squared distance
    kernel_BxC /= sigma**2
    np.clip(kernel_BxC + 1, 0, 1, out=kernel_BxC)
    kernel_BxC[rows_B[:, None] == others_C] = 1.0
    if kernel_BxC.shape[1] > most and int((kernel_BxC > 0).sum(axis=1).max()) > most:
        kernel_BxC = -np.partition(-kernel_BxC, most - 1, axis=1)[:, :most]
    return kernel_BxC.sum(axis=1, dtype=np.float64)
