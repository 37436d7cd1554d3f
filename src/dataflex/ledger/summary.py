"""A record in a few lines, for the head of an audit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dataflex.ledger.audit import Audit
from dataflex.ledger.run_facts import Facts


def summary(audit: Audit) -> list[tuple[str, str]]:
    """What was run, how far it came, what was drawn and what choosing cost; names and texts."""
    run, facts, history = audit.run, audit.facts, audit.history
    lines = [entry.content for _, entry in sorted(history.in_force.items())]
    parts: dict[str, Any] = run["parts"] if isinstance(run.get("parts"), dict) else {}
    found = []
    if not parts or not (facts and nothing_selects(facts)):
        found = [("method", str(run.get("method", "unknown"))), ("parameters", _listed(run.get("params")))]
    found += [(name, f"{part.get('method')}: {_listed(part.get('params'))}") for name, part in components(parts)]
    if isinstance(run.get("domains"), dict):
        names = run["domains"].get("names")
        found.append(("domains", f"{run['domains'].get('column')}: {', '.join(map(str, names or []))}"))
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


def components(parts: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Mixer, weighers and orders of a run, each with the word for what it decides."""
    named = [("mix", parts.get("mix"))]
    named += [(word, part) for word in ("weigh", "order") for part in parts.get(word) or []]
    return [(word, part) for word, part in named if isinstance(part, dict)]


def nothing_selects(facts: Facts) -> bool:
    """True: no selector chose the rows; they came by mixture or order, or as the host has them."""
    return facts.method == "static" and not facts.params.get("path")


def _listed(params: Any) -> str:
    if not isinstance(params, dict):
        return "unknown"
    return ", ".join(f"{name}={value}" for name, value in params.items()) or "none"


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
