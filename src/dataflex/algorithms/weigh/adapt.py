"""ADAPT: rows count by how near they lie to anchors, rows of a target, in the model's own hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import State, TrainedBatch, WeigherBase, Weights
from dataflex.algorithms.checks import require_one_of, require_range

ANCHORS = "anchors_MxE"  # of the state, put there by the trainer


@dataclass(frozen=True, kw_only=True)
class Adapt(WeigherBase):
    """c_i = sigmoid(mean cosine of row i with the anchors / tau), a learning rate of the row's own, about a half.

    A row's vector is the mean of its last hidden states, later positions weighing more, as its own training forward
    makes them; the anchors' are made in evaluation mode every ``refresh`` steps.

    Args:
        tau: temperature, > 0.
        refresh: optimizer steps between two readings of the anchors, at least 1.
        clip: largest coefficient, > 0; None: no limit.
        normalize: ``none``, an absolute rate; ``mean_one`` divides by the mean over the micro-batch.

    Raises:
        ConfigError: a parameter out of range.

    Source: ADAPT (2605.05227) by its abstract and DataFlex's code; its equations could not be read. Departures: the
    training forward's own states in place of a second one with dropout; positions are counted among the row's tokens.
    """

    tau: float = 1.0
    refresh: int = 50
    clip: float | None = None
    normalize: Literal["none", "mean_one"] = "none"

    needs: ClassVar[frozenset[str]] = frozenset({"loss", "embedding"})
    source: ClassVar[str] = "ADAPT 2605.05227"

    def __post_init__(self) -> None:
        require_range("tau", self.tau, above=0)
        require_range("refresh", self.refresh, at_least=1)
        if self.clip is not None:
            require_range("clip", self.clip, above=0)
        require_one_of("normalize", self.normalize, ("none", "mean_one"))

    def init(self) -> State:
        return {ANCHORS: np.zeros((0, 0), dtype=np.float32)}

    def weigh(self, state: State, batch: TrainedBatch) -> tuple[Weights, State]:
        embeddings_BxE = np.asarray(batch.embeddings_BxE, dtype=np.float64)
        known_B = np.isfinite(embeddings_BxE).all(axis=1) & batch.scored_B
        weights_B = np.zeros(len(batch))
        weights_B[known_B] = coefficients(embeddings_BxE[known_B], state[ANCHORS], self.tau)
        if self.clip is not None:
            weights_B = np.minimum(weights_B, self.clip)
        if self.normalize == "mean_one" and known_B.any():
            weights_B = weights_B / weights_B[known_B].mean()
        return Weights(weights_B=weights_B), state


def coefficients(embeddings_BxE: np.ndarray, anchors_MxE: np.ndarray, tau: float) -> np.ndarray:
    """sigmoid(mean cosine / tau) of unit rows, float64, shape (B,).

    >>> unit = np.array([[1.0, 0.0]])
    >>> coefficients(unit, np.array([[1.0, 0.0], [0.0, 1.0]]), 0.5).round(6).tolist()
    [0.731059]
    """
    mean_E = np.asarray(anchors_MxE, dtype=np.float64).mean(axis=0)
    return 1 / (1 + np.exp(-(embeddings_BxE @ mean_E) / tau))
