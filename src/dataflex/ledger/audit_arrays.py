"""The arrays of a record against its lines: rows of each segment, and the columns they were chosen from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.core.errors import LedgerError
from dataflex.ledger.audit_columns import audit_columns
from dataflex.ledger.files import array_digest, read_columns
from dataflex.ledger.findings import Finding, damage, note
from dataflex.ledger.history import Entry, History
from dataflex.ledger.ledger import ROLLED_BACK, Ledger
from dataflex.ledger.run_facts import Facts


def audit_arrays(
    ledger: Ledger, history: History, facts: Facts | None, num_rows: int | None
) -> tuple[list[Finding], np.ndarray | None]:
    """Verify the arrays of all segments in force, and that there are no others.

    Returns:
        What is wrong, and how often each row was trained; None where the rows of a segment cannot be read.
    """
    findings: list[Finding] = []
    # How often each row was trained before a segment; None once the rows of one cannot be read.
    counts_N = np.zeros(num_rows, dtype=np.int64) if num_rows is not None else None
    for segment, entry in sorted(history.in_force.items()):
        rows_Q = _audit_rows(ledger, entry, findings)
        if rows_Q is not None:
            findings += [damage(_rows_file(segment), said) for said in _wrong_rows(rows_Q, entry.content, num_rows)]
            if facts is not None:
                findings += [damage(f"segment {segment}", said) for said in _wrong_quota(entry.content, facts)]
        _audit_signals(ledger, entry, rows_Q, counts_N, num_rows, findings)
        counts_N = _counted(counts_N, rows_Q)
    findings += _lost(ledger, history)
    findings += _unrecorded(ledger.root, history)
    return findings, counts_N


def _lost(ledger: Ledger, history: History) -> Iterator[Finding]:
    """Lines that were rolled back keep their arrays: under their own name, or moved aside for the segment's next."""
    in_force = {entry.number for entry in history.in_force.values()}
    for entry in history.of_kind("segment"):
        if entry.number in in_force:
            continue
        line = entry.content
        for directory, name in (("segments", "rows"), ("signals", "signals")):
            path = ledger.array_path(directory, line["segment"])
            kept = [path, *sorted(path.parent.glob(f"{path.stem}{ROLLED_BACK}*.parquet"))]
            if name in line["sha256"] and not any(_holds(p, directory, line["sha256"][name]) for p in kept):
                yield damage(
                    f"{directory}/{path.name}", f"the arrays of line {entry.number}, which was rolled back, are lost"
                )


def _holds(path: Path, directory: str, sha256: str) -> bool:
    try:
        columns = read_columns(path) if path.is_file() else {}
    except LedgerError:
        return False
    if directory == "segments":
        return "row" in columns and array_digest({"row": columns["row"].astype(np.int64)}) == sha256
    return bool(columns) and array_digest(columns) == sha256


def _counted(counts_N: np.ndarray | None, rows_Q: np.ndarray | None) -> np.ndarray | None:
    if counts_N is None or rows_Q is None or np.any((rows_Q < 0) | (rows_Q >= len(counts_N))):
        return None
    return counts_N + np.bincount(rows_Q, minlength=len(counts_N))


def _rows_file(segment: int) -> str:
    return f"segments/{segment:06d}.parquet"


def _read(path: Path, where: str, entry: Entry, findings: list[Finding]) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        findings.append(damage(where, f"it is missing, but line {entry.number} records it"))
        return None
    try:
        return read_columns(path)
    except LedgerError as error:
        findings.append(damage(where, str(error)))
        return None


def _audit_rows(ledger: Ledger, entry: Entry, findings: list[Finding]) -> np.ndarray | None:
    """The rows of a segment when they are the recorded ones."""
    segment = entry.content["segment"]
    where = _rows_file(segment)
    columns = _read(ledger.array_path("segments", segment), where, entry, findings)
    if columns is None:
        return None
    if not {"row", "position"} <= columns.keys() or any(columns[n].dtype.kind not in "iu" for n in ("row", "position")):
        findings.append(damage(where, "it has no columns 'position' and 'row' of whole numbers"))
        return None
    rows_Q = columns["row"].astype(np.int64)
    if array_digest({"row": rows_Q}) != entry.content["sha256"]["rows"]:
        findings.append(damage(where, f"its rows are not those of line {entry.number}: the sha256 does not match"))
        return None
    if not np.array_equal(columns["position"], np.arange(len(rows_Q))):
        findings.append(damage(where, f"its positions are not 0 to {len(rows_Q) - 1} in order"))
    return rows_Q


def _wrong_rows(rows_Q: np.ndarray, line: Mapping[str, Any], num_rows: int | None) -> Iterator[str]:
    if num_rows is not None:
        outside = rows_Q[(rows_Q < 0) | (rows_Q >= num_rows)]
        if len(outside):
            yield f"it names row {outside[0]}, but the pool has rows 0 to {num_rows - 1}"
    for name, found in (("num_rows", len(rows_Q)), ("num_distinct_rows", len(np.unique(rows_Q)))):
        if line[name] != found:
            yield f"it has {name} {found}, its ledger line says {line[name]}"


def _wrong_quota(line: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    quota = (line["stop"] - line["start"]) * facts.global_batch
    # In the host's own order the last step of a pass may be short.
    may_be_short = facts.follows_host and line["stop"] % facts.plan.steps_per_epoch == 0
    least = quota - facts.global_batch + 1 if may_be_short else quota
    if not least <= line["num_rows"] <= quota:
        yield (
            f"it has {line['num_rows']} rows for the steps {line['start']}-{line['stop']}, which need {quota}: "
            f"{facts.global_batch} a step"
        )


def _audit_signals(
    ledger: Ledger,
    entry: Entry,
    rows_Q: np.ndarray | None,
    counts_N: np.ndarray | None,
    num_rows: int | None,
    findings: list[Finding],
) -> None:
    line = entry.content
    if "signals" not in line["sha256"]:
        return
    where = f"signals/{line['segment']:06d}.parquet"
    columns = _read(ledger.array_path("signals", line["segment"]), where, entry, findings)
    if columns is None:
        return
    if array_digest(columns) != line["sha256"]["signals"]:
        findings.append(damage(where, f"its columns are not those of line {entry.number}: the sha256 does not match"))
        return
    findings += [damage(where, said) for said in audit_columns(columns, line, rows_Q, counts_N, num_rows)]


def _unrecorded(root: Path, history: History) -> Iterator[Finding]:
    """Arrays that no line records; lines that were rolled back count."""
    recorded = {entry.content["segment"] for entry in history.of_kind("segment")}
    next_segment = max(history.in_force, default=-1) + 1
    for directory in ("segments", "signals"):
        found = sorted((root / directory).iterdir()) if (root / directory).is_dir() else []
        for path in found:
            where = f"{directory}/{path.name}"
            if path.name.startswith(".") and path.name.endswith(".tmp"):
                yield note(where, "a temporary file that a killed process left; it is removed when the run goes on")
                continue
            number = path.stem.split(ROLLED_BACK)[0]
            path = path.with_name(f"{number}{path.suffix}")  # moved aside or not
            is_array = path.suffix == ".parquet" and number.isdecimal() and path.name == f"{int(number):06d}.parquet"
            if is_array and int(number) in recorded:
                continue
            if is_array and int(number) == next_segment and not history.has_ended:
                yield note(where, "no line records it: its process died before the line was written")
            else:
                yield damage(where, "no line records it")
