"""Numbers of a decision for the host's loggers; docs/metrics.md explains each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dataflex.ledger.groups import Groups

PREFIX = "dataflex/"
LEVELS = ("0.05", "0.25", "0.5", "0.75", "0.95")  # of the quantiles that a ledger line keeps
ESTIMATE = ("rank_correlation", "window_overlap", "window_hit")  # what a ledger line says of estimated losses
SPREAD = ("loss", "delta")  # columns whose mean and quantiles are logged


def metrics(
    line: Mapping[str, Any],
    rows_Q: np.ndarray,
    columns_N: Mapping[str, np.ndarray],
    sources: Groups | None = None,
    finished: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Numbers of one decision, under ``dataflex/``; those that were not measured are left out.

    The same decision gives the same numbers after a resume, except those whose names end in ``share_of_run``,
    ``seconds`` or ``tokens_per_s``.

    Args:
        line: the ledger line.
        rows_Q: the rows that were drawn.
        columns_N: what the decision was made from, one entry per pool row.
        sources: where the rows come from, if that is known.
        finished: what training showed of the segment before.
    """
    notes, window, scoring = line["notes"], line["window"], line["scoring"]
    values: dict[str, float] = {"segment": line["segment"], "share_of_run": line["share_of_run"]}
    if window:
        values |= {"window_start": window["start_share"], "window_end": window["end_share"]}
    if notes.get("num_scored") and "num_improved" in notes:
        values["improved"] = notes["num_improved"] / notes["num_scored"]
    if "num_from_window" in notes:
        values["from_window"] = notes["num_from_window"] / line["num_rows"]
    if scoring:
        values["scoring_seconds"] = scoring["seconds"]
        if scoring["source"] == "measured":
            values["scoring_tokens_per_s"] = scoring["tokens_per_s"]
        budget = scoring.get("budget", {})
        values |= {f"estimate_{name}": budget[name] for name in ESTIMATE if budget.get(name) is not None}
    for name in SPREAD:
        if name in line["quantiles"]:
            column_N = columns_N[name].astype(np.float64)
            values[f"{name}_mean"] = float(column_N[np.isfinite(column_N)].mean())
            for level in LEVELS:
                values[f"{name}_q{round(float(level) * 100):02d}"] = line["quantiles"][name][level]
    if sources is not None:
        values |= _shares("draw_share", sources, rows_Q)
        if line["segment"] == 0:  # the pool stays what it is
            values |= _shares("pool_share", sources, np.arange(len(sources.codes_N)))
    if "mix" in line:
        proportions, counts = line["mix"]["proportions"], line["mix"]["counts"]
        values |= {f"proportion/{_metric_name(name)}": value for name, value in proportions.items()}
        values |= {f"rows/{_metric_name(name)}": value for name, value in counts.items()}
    for name, loss in (finished or {}).get("domain_losses", {}).items():
        values[f"domain_loss/{_metric_name(name)}"] = loss
    for name, value in (finished or {}).get("weights", {}).items():
        values[f"weight_{name}"] = value
    return {f"{PREFIX}{name}": value for name, value in values.items()}


def _metric_name(domain: str) -> str:
    """A domain's name without what separates parts of a metric's."""
    return re.sub(r"[^\w.-]+", "_", domain) or "_"


def _shares(name: str, sources: Groups, rows: np.ndarray) -> dict[str, float]:
    shares = sources.shares(rows)
    return {f"{name}/{label}": float(share) for label, share in zip(sources.labels, shares, strict=True)}
