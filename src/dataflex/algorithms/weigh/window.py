"""The last losses of all ranks, so that a weigher can compare a row with more than its micro-batch."""

from __future__ import annotations

import numpy as np

from dataflex.algorithms.base import State, TrainedBatch

WINDOW = 1024  # losses


def empty_window() -> dict[str, np.ndarray]:
    """No loss seen yet."""
    return {
        "window_W": np.zeros(0),
        "pending_P": np.zeros(0),  # of the optimizer step in progress
        "pending_step": np.array(-1, dtype=np.int64),
    }


def window_of(state: State, batch: TrainedBatch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The finite losses of the optimizer steps before this one, at most ``WINDOW``, and the state with the batch's.

    A step's own losses enter when the next step begins, so that cutting the step into other micro-batches or ranks
    changes no coefficient.
    """
    window_W, pending_P = state["window_W"], state["pending_P"]
    if batch.step != int(state["pending_step"]):
        window_W = np.concatenate([window_W, pending_P])[-WINDOW:]
        pending_P = np.zeros(0)
    losses_B = np.asarray(batch.losses_B, dtype=np.float64)[batch.scored_B]
    new = {
        "window_W": window_W,
        "pending_P": np.concatenate([pending_P, losses_B]),
        "pending_step": np.array(batch.step, dtype=np.int64),
    }
    return window_W, {**state, **new}
