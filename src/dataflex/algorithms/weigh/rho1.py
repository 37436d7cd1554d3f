"""Rho-1: only the tokens with the largest excess loss over a reference are trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import State, TrainedBatch, WeigherBase, Weights
from dataflex.algorithms.checks import require_range
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Rho1(WeigherBase):
    """Keep the ceil(keep x T) of a micro-batch's T label tokens whose excess loss over a reference is largest.

    The label set is changed: loss = sum over kept tokens / number kept. With the host's own count T below, kept tokens
    have the coefficient T / kept, the others 0. Equal excesses are kept by row, then by position.

    Args:
        reference: a model, or an adapter's folder, of the same vocabulary; its loss of the same tokens is measured in a
            further forward of each micro-batch.
        keep: share of the tokens, in (0, 1].

    Raises:
        ConfigError: no reference, or a parameter out of range.

    Source: Rho-1 (2404.07965). No training code was released. The scope is one micro-batch over all ranks.
    """

    reference: str
    keep: float = 0.6

    needs: ClassVar[frozenset[str]] = frozenset({"loss", "token_loss", "reference_token_loss"})
    source: ClassVar[str] = "Rho-1 2404.07965"

    def __post_init__(self) -> None:
        if not self.reference:
            raise ConfigError(
                "reference is missing; name the model whose losses say which tokens can be learned, such as one that "
                "was trained on clean data"
            )
        require_range("keep", self.keep, above=0, at_most=1)

    def weigh(self, state: State, batch: TrainedBatch) -> tuple[Weights, State]:
        losses_BxT = np.asarray(batch.token_losses_BxT, dtype=np.float64)
        reference_BxT = np.asarray(batch.reference_losses_BxT, dtype=np.float64)
        kept_BxT = kept_tokens(losses_BxT, reference_BxT, self.keep)
        num_kept, num_labels = int(kept_BxT.sum()), int(np.asarray(batch.tokens_B)[batch.scored_B].sum())
        weights_BxT = kept_BxT * (num_labels / num_kept if num_kept else 0.0)
        notes = {"num_kept": num_kept, "num_tokens": num_labels}
        return Weights(weights_B=batch.scored_B.astype(float), token_weights_BxT=weights_BxT, notes=notes), state


def kept_tokens(losses_BxT: np.ndarray, reference_BxT: np.ndarray, keep: float) -> np.ndarray:
    """The tokens of largest excess, bool, shape (B, T); one whose losses are not both finite is none of them."""
    with np.errstate(invalid="ignore"):
        excess_BxT = losses_BxT - reference_BxT
    known = np.flatnonzero(np.isfinite(losses_BxT) & np.isfinite(reference_BxT))
    # Against rounding: .6 of 5 tokens are 3.
    count = math.ceil(round(keep * len(known), 9))
    order = known[np.lexsort((known, -excess_BxT.ravel()[known]))]
    kept = np.zeros(losses_BxT.size, dtype=bool)
    kept[order[:count]] = True
    return kept.reshape(losses_BxT.shape)
