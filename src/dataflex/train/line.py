"""A decision as the ledger keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dataflex.core.segment import Segment
from dataflex.ledger.quantiles import quantiles
from dataflex.train.decide import Decision
from dataflex.train.domains import Domains
from dataflex.train.method import Method


def segment_line(
    segment: Segment,
    method: Method,
    decision: Decision,
    *,
    domains: Domains | None,
    domain_signals: Mapping[str, np.ndarray],
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
        domains, domain_signals: of a run with a mixer, and what its mixer was given.
        warnings: sentences beside those of the selection.
        scoring: the cost of the pass, empty where there was none.
        seconds: what the decision took.
        share_of_run: share of the run's time so far that choosing took.
        trained: hash of the rows that were trained before.
    """
    selection, rows_Q = decision.selection, decision.rows_Q
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
        **_parts(method, decision, domains, domain_signals),
    }


def _parts(
    method: Method, decision: Decision, domains: Domains | None, domain_signals: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What the other components decided; nothing where there is none."""
    said: dict[str, Any] = {}
    if method.mixer is not None and decision.mixed is not None and domains is not None:
        mixture, names = decision.mixed.mixture, domains.info.names
        said["mix"] = {
            "method": method.mixer.name,
            "decision": mixture.decision,
            "proportions": _by_name(names, mixture.proportions_D),
            "counts": {name: int(count) for name, count in zip(names, decision.mixed.counts_D, strict=True)},
            "columns": {column: _by_name(names, values_D) for column, values_D in mixture.columns_D.items()},
            "signals": {signal: _by_name(names, values_D) for signal, values_D in domain_signals.items()},
            "notes": dict(mixture.notes),
        }
    if method.weighers:
        said["weigh"] = [part.name for part in method.weighers]
    if method.orders:
        said["order"] = [part.name for part in method.orders]
    return said


def _by_name(names: Sequence[str], values_D: np.ndarray) -> dict[str, float | None]:
    """One number a domain; None where it is not finite, which JSON does not have."""
    return {
        name: float(value) if np.isfinite(value) else None
        for name, value in zip(names, np.asarray(values_D, dtype=np.float64), strict=True)
    }
