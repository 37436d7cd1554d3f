"""One weigher on one micro-batch: warm-up, rows without a loss, and that the coefficients can be used."""

from __future__ import annotations

import numpy as np

from dataflex.algorithms.base import State, TrainedBatch, Weigher, Weights
from dataflex.core.errors import DataFlexError


def weigh(weigher: Weigher, state: State, batch: TrainedBatch, warmup_step: int = 0) -> tuple[Weights, State]:
    """Coefficients of a micro-batch, 1 before optimizer step ``warmup_step``; the state is kept up to date from step 0.

    A row without a label token or with a loss that is not finite has the coefficient 0 whatever the weigher says;
    ``num_unscored`` in the notes counts them.

    Raises:
        DataFlexError: the weigher returned something else than a finite number for each row, or token.
    """
    weights, state = weigher.weigh(state, batch)
    weights_B = np.asarray(weights.weights_B, dtype=np.float64)
    tokens_BxT = weights.token_weights_BxT
    if batch.step < warmup_step:
        weights_B, tokens_BxT = np.ones(len(batch)), None
    scored_B = batch.scored_B
    if weights_B.shape != scored_B.shape or not np.all(np.isfinite(weights_B[scored_B])):
        raise DataFlexError(
            f"the weigher {type(weigher).__name__} returned {weights_B.shape} weights for {scored_B.shape} rows, or "
            "some that are not finite; it must return a finite number for each row"
        )
    if tokens_BxT is not None:
        tokens_BxT, losses_BxT = np.asarray(tokens_BxT, dtype=np.float64), np.asarray(batch.token_losses_BxT)
        if tokens_BxT.shape != losses_BxT.shape or not np.all(np.isfinite(tokens_BxT)):
            raise DataFlexError(
                f"the weigher {type(weigher).__name__} returned {tokens_BxT.shape} weights for {losses_BxT.shape} "
                "tokens, or some that are not finite; it must return a finite number for each, 0 where no label is"
            )
    weights_B = np.where(scored_B, weights_B, 0.0)
    notes = {**weights.notes, "num_unscored": int((~scored_B).sum())}
    return Weights(weights_B=weights_B, token_weights_BxT=tokens_BxT, notes=notes), state
