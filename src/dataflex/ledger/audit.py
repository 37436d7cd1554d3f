"""Is a record what a run wrote? run.yaml, rows.parquet, lines and arrays, against one another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataflex.core.errors import LedgerError
from dataflex.ledger.audit_arrays import audit_arrays
from dataflex.ledger.audit_checkpoints import audit_checkpoints
from dataflex.ledger.files import read_columns
from dataflex.ledger.findings import Finding, damage, note
from dataflex.ledger.fingerprint import comparable
from dataflex.ledger.history import FILE, History, read_history
from dataflex.ledger.ledger import Ledger
from dataflex.ledger.run_facts import Facts, contradictions, facts_of
from dataflex.ledger.run_file import read_run, seal_problem

MOST_UNPROVED_ROWS = 2**24


@dataclass(kw_only=True)
class Audit:
    """A record as far as it can be read, and everything that is wrong with it."""

    ledger: Ledger
    run: Mapping[str, Any]  # empty where run.yaml cannot be read
    facts: Facts | None  # None where run.yaml does not say
    history: History
    times_trained_N: np.ndarray | None  # over all segments in force; None where rows of one cannot be read
    findings: list[Finding] = field(default_factory=list)


def audit(ledger: Ledger) -> Audit:
    """Verify the record of a finished, crashed or running run; damage is found, never raised.

    A guard against accident, not against forgery: who rewrites lines, checksums and arrays together is found only as
    far as they contradict one another, or do not follow from the recorded signals.
    """
    findings: list[Finding] = []
    run, seal = _read_run(ledger, findings)
    facts = _facts(run, findings)
    run_id = run.get("run_id")
    num_rows = _audit_rows(ledger, seal.get("rows"), facts, findings)
    history = read_history(ledger.path, run_id if isinstance(run_id, str) else None, facts)
    findings += history.findings
    found, counts_N = audit_arrays(ledger, history, facts, num_rows)
    findings += found
    findings += audit_checkpoints(ledger.root.parent, run_id if isinstance(run_id, str) else None, history)
    findings += _notes(ledger, history, facts)
    return Audit(ledger=ledger, run=run, facts=facts, history=history, times_trained_N=counts_N, findings=findings)


def _read_run(ledger: Ledger, findings: list[Finding]) -> tuple[dict[str, Any], dict[str, Any]]:
    path = ledger.root / "run.yaml"
    if not path.exists():
        findings.append(damage("run.yaml", "it is missing"))
        return {}, {}
    try:
        run, seal = read_run(path)
    except LedgerError as error:
        findings.append(damage("run.yaml", str(error)))
        return {}, {}
    problem = seal_problem(run, seal)
    if problem is not None:
        findings.append(damage("run.yaml", problem))
    return run, seal


def _facts(run: Mapping[str, Any], findings: list[Finding]) -> Facts | None:
    if not run:
        return None
    try:
        facts = facts_of(run)
    except LedgerError as error:
        findings.append(damage("run.yaml", str(error)))
        return None
    findings += [damage("run.yaml", said) for said in contradictions(run, facts, comparable(run["config"]))]
    return facts


def _audit_rows(ledger: Ledger, sha256: Any, facts: Facts | None, findings: list[Finding]) -> int | None:
    """Verify rows.parquet and return the number of rows of the pool, None where nothing says it."""
    name = "rows.parquet"
    path, expected = ledger.root / name, facts.num_rows if facts else None
    if not path.is_file():
        findings.append(damage(name, "it is missing"))
        return _believed(expected)
    try:
        same = sha256 is None or hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        columns = read_columns(path, ("row", "num_tokens", "num_label_tokens"))
    except (OSError, LedgerError) as error:
        findings.append(damage(name, f"it cannot be read: {error}"))
        return _believed(expected)
    if not same:
        findings.append(damage(name, "it is not the file that this run wrote: its checksum in run.yaml does not match"))
    for column, values in columns.items():
        if values.dtype.kind not in "iu":
            findings.append(damage(name, f"its column {column!r} holds {values.dtype}, whole numbers are meant"))
            return _believed(expected)
    found = len(columns["row"])
    if expected is not None and found != expected:
        findings.append(damage(name, f"it has {found} rows, the pool of this run has {expected}"))
    if not np.array_equal(columns["row"], np.arange(found)):
        findings.append(damage(name, f"its rows are not numbered 0 to {found - 1} in order"))
    if np.any((columns["num_label_tokens"] < 0) | (columns["num_label_tokens"] > columns["num_tokens"])):
        findings.append(damage(name, "a row has more label tokens than tokens"))
    return found if expected == found or _believed(expected) is None else expected


def _believed(num_rows: int | None) -> int | None:
    """A number of rows that no file proves, unless arrays of that many would fill the memory."""
    return num_rows if num_rows is not None and num_rows <= MOST_UNPROVED_ROWS else None


def _notes(ledger: Ledger, history: History, facts: Facts | None) -> list[Finding]:
    """What a person should know of a record that is in order."""
    notes = []
    planned = f" of {facts.plan.num_steps}" if facts else ""
    if not history.has_ended:
        notes.append(
            note(
                FILE,
                f"it has no line 'end' after step {history.num_steps}{planned}: the run is going on, or its process "
                "died",
            )
        )
    elif facts and history.entries[-1].content["step"] < facts.plan.num_steps:
        notes.append(note(FILE, f"training ended at step {history.entries[-1].content['step']}{planned}"))
    used: dict[str, int] = {}
    for segment, entry in sorted(history.in_force.items()):
        versions = ", ".join(f"{name} {number}" for name, number in sorted(entry.content["versions"].items()))
        if used and versions not in used:
            notes.append(note(f"segment {segment}", f"from here on other versions were installed: {versions}"))
        used[versions] = segment
    return notes
