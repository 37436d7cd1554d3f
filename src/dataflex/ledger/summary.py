"""A record in a few lines, for the head of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dataflex.ledger.audit import Audit


def summary(audit: Audit) -> list[tuple[str, str]]:
    """What was run, how far it came, what was drawn and what choosing cost; names and texts."""
    run, facts, history = audit.run, audit.facts, audit.history
    lines = [entry.content for _, entry in sorted(history.in_force.items())]
    found = [("method", str(run.get("method", "unknown")))]
    if isinstance(run.get("params"), dict):
        found.append(("parameters", ", ".join(f"{name}={value}" for name, value in run["params"].items()) or "none"))
    ends = history.of_kind("end")
    ended = f", ended at step {ends[-1].content['step']}" if history.has_ended else ", no end recorded"
    planned = f" of {facts.plan.num_steps}" if facts else ""
    found.append(("steps", f"{history.num_steps}{planned} recorded{ended}"))
    warmups = sum(line["update"] is None for line in lines)
    found.append(("segments", f"{len(lines)}, {warmups} of them warm-up"))
    drawn = sum(line["num_rows"] for line in lines)
    counts_N = audit.times_trained_N
    distinct = f", {np.count_nonzero(counts_N):,} distinct" if counts_N is not None else ""
    pool = f" of a pool of {facts.num_rows:,}" if facts else ""
    found.append(("rows drawn", f"{drawn:,}{distinct}{pool}"))
    found.append(("cost of choosing", _cost(ends[-1].content if ends else {}, lines)))
    again = {kind: len(history.of_kind(kind)) for kind in ("resume", "rollback")}
    found.append(("interruptions", f"{again['resume']} resumes, {again['rollback']} rollbacks"))
    versions = lines[-1]["versions"] if lines else run.get("versions")
    if isinstance(versions, dict):
        found.append(("versions", ", ".join(f"{name} {number}" for name, number in versions.items())))
    return found


def _cost(end: Mapping[str, Any], lines: list[Mapping[str, Any]]) -> str:
    """Of the whole run where its end says it, else of the segments in force."""
    cost = end.get("choosing", {})
    passes = [line["scoring"] for line in lines if line["scoring"] and line["scoring"].get("source") == "measured"]
    num_passes = cost.get("num_passes", len(passes))
    num_tokens = cost.get("num_tokens", sum(scoring["num_tokens"] for scoring in passes))
    seconds = cost.get("seconds", sum(line["seconds"].get("total", 0) for line in lines))
    share = cost.get("share_of_run", lines[-1]["share_of_run"] if lines else 0)
    if not all(isinstance(value, (int, float)) for value in (num_passes, num_tokens, seconds, share)):
        return "unknown"
    return f"{seconds:.1f} s, {share:.0%} of the run's time; {num_passes} passes over the pool, {num_tokens:,} tokens"
