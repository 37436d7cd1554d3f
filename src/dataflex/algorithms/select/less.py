"""LESS: the samples whose Adam update points where the gradients of a target do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import PoolInfo, Progress, Selection, Signals, State
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.algorithms.select.gradient import GradientSelector, group_columns
from dataflex.core.draw import check_quota, draw, top_k


@dataclass(frozen=True, kw_only=True)
class Less(GradientSelector):
    """Take the samples of highest similarity to the target group that each serves best.

    With u_i the update that Adam would make of sample i's gradient, and q_j the gradient of target j::

        s_ik    = mean over j in group k of cos(u_i, q_j)
        score_i = max_k s_ik, or the mean over all targets

    With ``memory: lr_sum``, s_ik is the mean over all decisions so far, each weighing as its learning rate::

        s_ik = sum_c e_c s_ikc / sum_c e_c

    The ``quota`` of highest score, ties by row, or a draw by the scores. Samples without a gradient (no label token)
    are never taken.

    Args:
        aggregate: ``max`` over groups, so that no group is drowned by larger ones, or ``mean`` over all targets.
        draw: ``top``; ``weighted`` by max(score, 0); or ``softmax`` of score / temperature; both without replacement.
        temperature: of the softmax, > 0.
        memory: ``none``, the present model alone; or ``lr_sum``, the decisions before it too, as in the paper.
        gradient_type, engine, bias_correction, proj_dim, seed, cache_dir: see ``GradientSelector``.

    Raises:
        ConfigError: a parameter out of range.

    Source: LESS (2402.04333), sec. 3.1 and 4. Departures: one checkpoint, the present one, unless ``memory`` says
    otherwise; target gradients are averaged, not projected and stored.
    """

    aggregate: Literal["max", "mean"] = "max"
    draw: Literal["top", "weighted", "softmax"] = "top"
    temperature: float = 0.05
    memory: Literal["none", "lr_sum"] = "none"

    source: ClassVar[str] = "LESS 2402.04333"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("aggregate", self.aggregate, ("max", "mean"))
        require_one_of("draw", self.draw, ("top", "weighted", "softmax"))
        require_range("temperature", self.temperature, above=0)
        require_one_of("memory", self.memory, ("none", "lr_sum"))

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        sizes = ["target_sizes"] if self.aggregate == "mean" else []
        rate = ["learning_rate"] if self.memory == "lr_sum" else []
        return frozenset({"similarities", *sizes, *rate})

    def init(self, pool: PoolInfo) -> State:
        return {}

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        similarities_NxG = signals["similarities"]
        scores_N, state = self._scores(state, signals)
        scored_N = np.isfinite(scores_N)
        columns_N = {"score": scores_N.astype(np.float32), **group_columns(similarities_NxG)}
        if self.draw == "top":
            check_quota(quota, int(scored_N.sum()))
            rows_Q = top_k(scores_N, quota, allowed_N=scored_N)
        else:
            columns_N["weight"] = drawn_weights(scores_N, self.temperature if self.draw == "softmax" else None)
            rows_Q = draw(columns_N["weight"], quota, rng)
        notes: dict[str, Any] = {"num_scored": int(scored_N.sum()), "num_unscored": int((~scored_N).sum())}
        if self.memory == "lr_sum":
            notes["learning_rate"] = float(signals["learning_rate"][0])
        return (
            Selection(
                rows_Q=rows_Q, decision="guided", columns_N=columns_N, notes=notes, warnings=self.unused(progress)
            ),
            state,
        )

    def rank(self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        scores_N, _ = self._scores(state, signals)
        scored_N = np.isfinite(scores_N)
        return top_k(scores_N, int(scored_N.sum()), allowed_N=scored_N)

    def _scores(self, state: State, signals: Signals) -> tuple[np.ndarray, State]:
        """Scores now, float64, shape (N,), NaN without a gradient; and the state with this decision in its sums."""
        similarities_NxG = np.asarray(signals["similarities"], dtype=np.float64)
        sizes_G = signals["target_sizes"] if self.aggregate == "mean" else None
        if self.memory == "none":
            return aggregated(similarities_NxG, sizes_G), state
        sums_NxG = state.get("sums_NxG", np.zeros_like(similarities_NxG))
        rates_N = state.get("rates_N", np.zeros(len(similarities_NxG)))
        sums_NxG, rates_N = add_checkpoint(sums_NxG, rates_N, similarities_NxG, float(signals["learning_rate"][0]))
        with np.errstate(invalid="ignore", divide="ignore"):
            # A learning rate of 0 so far says nothing: then the present similarity is all there is.
            means_NxG = np.where(rates_N[:, None] > 0, sums_NxG / rates_N[:, None], similarities_NxG)
        known_N = np.isfinite(similarities_NxG).all(axis=1)
        scores_N = np.where(known_N, aggregated(means_NxG, sizes_G), np.nan)
        return scores_N, {**state, "sums_NxG": sums_NxG, "rates_N": rates_N}


def aggregated(similarities_NxG: np.ndarray, sizes_G: np.ndarray | None = None) -> np.ndarray:
    """The largest similarity to any group, or with ``sizes_G`` the mean over all targets, float64, shape (N,).

    NaN for a row that is NaN to any group.

    >>> aggregated(np.array([[0.9, 0.3], [0.2, 0.6]])).tolist()
    [0.9, 0.6]
    """
    similarities_NxG = np.asarray(similarities_NxG, dtype=np.float64)
    if sizes_G is None:
        return similarities_NxG.max(axis=1)
    return similarities_NxG @ (np.asarray(sizes_G) / np.sum(sizes_G))


def add_checkpoint(
    sums_NxG: np.ndarray, rates_N: np.ndarray, similarities_NxG: np.ndarray, learning_rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """One more checkpoint of ``s_ik = sum_c e_c s_ikc / sum_c e_c``: the new sums, and each row's new sum of rates.

    A row without a gradient in a checkpoint has that one in neither.
    """
    known_N = np.asarray(np.isfinite(similarities_NxG).all(axis=1))
    added_NxG = np.where(known_N[:, None], learning_rate * np.asarray(similarities_NxG, dtype=np.float64), 0.0)
    return sums_NxG + added_NxG, rates_N + learning_rate * known_N


def drawn_weights(scores_N: np.ndarray, temperature: float | None) -> np.ndarray:
    """max(score, 0), or the softmax of score / temperature; 0 for a row without a score."""
    scored_N = np.isfinite(scores_N)
    weights_N = np.zeros(len(scores_N))
    if temperature is None:
        weights_N[scored_N] = np.maximum(scores_N[scored_N], 0.0)
    elif scored_N.any():
        # Bounded: a low temperature would give weights of 0, which are never drawn.
        powers = np.maximum((scores_N[scored_N] - scores_N[scored_N].max()) / temperature, -700.0)
        weights_N[scored_N] = np.exp(powers)
    return weights_N
