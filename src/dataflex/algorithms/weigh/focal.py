"""Focal: tokens that the model is sure of count less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import State, TrainedBatch, WeigherBase, Weights
from dataflex.algorithms.checks import require_range


@dataclass(frozen=True, kw_only=True)
class Focal(WeigherBase):
    """c_it = (1 - p_it) ** gamma, p_it the probability of the label token, exp(-loss).

    >>> Focal().coefficients(-np.log(np.array([0.9, 0.5, 0.1]))).round(9).tolist()
    [0.01, 0.25, 0.81]

    Args:
        gamma: >= 0; 0 changes nothing.
        detach: the coefficient is a constant; false: the gradient is that of (1 - p) ** gamma x loss, by the
            coefficient (1 - p)^gamma + gamma (1 - p)^(gamma - 1) p l, the derivative of it by l.

    Raises:
        ConfigError: a parameter out of range.

    Source: arXiv 1708.02002, Eq. 4, there for classes of images; detached by default, as weights are.
    """

    gamma: float = 2.0
    detach: bool = True

    needs: ClassVar[frozenset[str]] = frozenset({"loss", "token_loss"})
    source: ClassVar[str] = "1708.02002"

    def __post_init__(self) -> None:
        require_range("gamma", self.gamma, at_least=0)

    def weigh(self, state: State, batch: TrainedBatch) -> tuple[Weights, State]:
        losses_BxT = np.asarray(batch.token_losses_BxT, dtype=np.float64)
        labelled_BxT = np.isfinite(losses_BxT)
        token_weights_BxT = np.zeros(losses_BxT.shape)
        token_weights_BxT[labelled_BxT] = self.coefficients(losses_BxT[labelled_BxT])
        return Weights(weights_B=batch.scored_B.astype(np.float64), token_weights_BxT=token_weights_BxT), state

    def coefficients(self, losses: np.ndarray) -> np.ndarray:
        """c of finite token losses >= 0, any shape."""
        losses = np.maximum(losses, 0.0)  # half precision gives -1e-7 where p is 1
        unsure = -np.expm1(-losses)  # 1 - p, exact near p = 1
        if self.detach or self.gamma == 0:
            return unsure**self.gamma
        # (1 - p)^(gamma - 1) p l with l <= (1 - p) / p: bounded as p -> 1 for any gamma, by l / (1 - p) -> 1.
        ratio = np.divide(losses, unsure, out=np.ones_like(losses), where=unsure > 0)
        return unsure**self.gamma * (1 + self.gamma * np.exp(-losses) * ratio)
