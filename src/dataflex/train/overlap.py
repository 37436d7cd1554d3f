"""How many of the rows that an estimate leads to would be chosen by exact losses, by the estimate's own errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dataflex.core.seeds import segment_rng
from dataflex.core.segment import Progress
from dataflex.train.decide import Decision, Situation, decide
from dataflex.train.method import Method

DRAWS = 4


def expected_overlap(
    method: Method,
    progress: Progress,
    state: Mapping[str, np.ndarray],
    at: Situation,
    decision: Decision,
    errors: np.ndarray,
) -> dict[str, float]:
    """Agreement of a decision with those that exact losses might have led to; {} where it draws from no window.

    The losses of rows that were not scored are moved by errors of the rows that were left out of the estimate, and the
    method decides again. Pure.

    Args:
        state: before the decision.
        errors: of the estimate, where it was checked.

    Returns:
        ``window_overlap``: mean Jaccard index of both windows; ``window_hit``: mean share of the decision's rows that
        lie in the other window.
    """
    if "in_window" not in decision.selection.columns_N or "scored" not in at.signals:
        return {}
    window_N = np.asarray(decision.selection.columns_N["in_window"], dtype=bool)
    rng = segment_rng(at.seed, progress.segment, "errors")
    overlaps, hits = [], []
    for _ in range(DRAWS):
        moved_N = at.signals["loss"] + errors[rng.integers(0, len(errors), len(window_N))]
        losses_N = np.where(at.signals["scored"], at.signals["loss"], moved_N).astype(np.float32)
        other = decide(method, progress, state, replace(at, signals={**at.signals, "loss": losses_N}))
        other_N = np.asarray(other.selection.columns_N["in_window"], dtype=bool)
        overlaps.append(np.count_nonzero(window_N & other_N) / max(1, np.count_nonzero(window_N | other_N)))
        hits.append(float(other_N[decision.rows_Q].mean()))
    return {"window_overlap": float(np.mean(overlaps)), "window_hit": float(np.mean(hits))}
