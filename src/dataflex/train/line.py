"""A decision as the ledger keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dataflex.algorithms.base import Selection
from dataflex.core.segment import Segment
from dataflex.ledger.quantiles import quantiles
from dataflex.train.settings import Method


def segment_line(
    segment: Segment,
    method: Method,
    selection: Selection,
    rows_Q: np.ndarray,
    *,
    seed: int,
    warnings: Sequence[str],
    scoring: Mapping[str, Any],
    seconds: Mapping[str, float],
    share_of_run: float,
    versions: Mapping[str, str],
    trained: str,
) -> dict[str, Any]:
    """The ledger line of one segment, without what the ledger adds.

    Args:
        rows_Q: the rows in training order.
        warnings: sentences beside those of the selection.
        scoring: the cost of the pass, empty where there was none.
        seconds: what the decision took.
        share_of_run: share of the run's time so far that choosing took.
        trained: hash of the rows that were trained before.
    """
    return {
        "segment": segment.index,
        "start": segment.start,
        "stop": segment.stop,
        "cycle": segment.cycle,
        "update": segment.update,
        "decision": selection.decision,
        "method": method.name,
        "params": method.params,
        "seed": seed,
        "num_rows": len(rows_Q),
        "num_distinct_rows": len(np.unique(rows_Q)),
        "window": dict(selection.window) if selection.window else None,
        "notes": dict(selection.notes),
        "warnings": [*warnings, *selection.warnings],
        "quantiles": quantiles(selection.columns_N),
        "scoring": dict(scoring) or None,
        "seconds": dict(seconds),
        "share_of_run": share_of_run,
        "versions": dict(versions),
        "trained": trained,
    }
