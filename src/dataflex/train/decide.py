"""One decision as a pure function of what is recorded of it, so that a resume and an audit can derive it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dataflex.algorithms.base import Progress, Selection
from dataflex.core.draw import passes
from dataflex.core.seeds import segment_rng


def decide(
    selector: Any,
    progress: Progress,
    *,
    state: Mapping[str, np.ndarray],
    signals: Mapping[str, np.ndarray],
    scorable_N: np.ndarray,
    quota: int,
    seed: int,
) -> tuple[Selection, np.ndarray, dict[str, np.ndarray]]:
    """Choose the rows of one segment: a uniform warm-up draw, or what the method says.

    Args:
        selector: the method.
        progress: where in the run the decision falls.
        state: the method's state before it.
        signals: what the method asked for, one entry per pool row.
        scorable_N: rows that a warm-up may draw, bool, shape (N,).
        quota: samples of the segment.
        seed: of the run.

    Returns:
        The selection, its rows in training order (int64, shape (quota,)), and the method's state after it.
    """
    if progress.is_warmup and not selector.serves_warmup:
        state = dict(selector.observe(state, signals, progress)) if signals else dict(state)
        rows_Q = passes(scorable_N, quota, segment_rng(seed, progress.segment, "warmup"))
        columns_N = {name: values for name, values in signals.items() if name == "loss"}
        # Shuffled already, a pass at a time; shuffling over passes would repeat rows before all were seen.
        return Selection(rows_Q=rows_Q, decision="warm-up", ordered=True, columns_N=columns_N), rows_Q, state
    rng = segment_rng(seed, progress.segment, "select")
    selection, state = selector.select(state, signals, quota, progress, rng)
    if "loss" in signals:  # on record, whatever the method keeps: a resume decides from it again
        selection = replace(selection, columns_N={"loss": signals["loss"], **selection.columns_N})
    rows_Q = selection.rows_Q
    if not selection.ordered:
        rows_Q = rows_Q[np.argsort(segment_rng(seed, progress.segment, "order").random(len(rows_Q)))]
    return selection, rows_Q, dict(state)
