"""What a run did with each row: how often it was trained, and its first and last measured loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataflex.core.errors import LedgerError
from dataflex.report.decision import CURVE_POINTS, Condensed, condense, losses_of
from dataflex.report.record import Record, is_guided

MAX_PERIODS = 60
TOTAL_CURVE_POINTS = 60_000  # over all decisions of a run: bounds the page of a run with thousands


@dataclass
class Tally:
    """All of a run's segments added up; N rows of the pool."""

    times_N: np.ndarray
    guided_times_N: np.ndarray
    periods: list[dict[str, Any]] = field(default_factory=list)
    period_rows: list[np.ndarray] = field(default_factory=list)  # rows trained in each period
    decisions: list[tuple[int, Condensed]] = field(default_factory=list)
    first_N: np.ndarray | None = None
    last_N: np.ndarray | None = None
    first_segment: int | None = None
    first_sha256: str | None = None
    last_segment: int | None = None
    problems: list[str] = field(default_factory=list)


class Memory:
    """What was condensed before, by the hashes in the ledger line: who follows a run reads only what is new."""

    def __init__(self) -> None:
        self.condensed: dict[tuple[Any, ...], Condensed | None] = {}
        self.rows: dict[str, np.ndarray] = {}


def tally(record: Record, num_rows: int, memory: Memory) -> Tally:
    """Add up all segments in force, reading one segment's arrays at a time."""
    total = Tally(np.zeros(num_rows, dtype=np.int64), np.zeros(num_rows, dtype=np.int64))
    _find_losses(record, total)
    with_signals = sum("signals" in line["sha256"] for line in record.segments)
    curve_points = max(30, min(CURVE_POINTS, TOTAL_CURVE_POINTS // max(with_signals, 1)))
    per_period = -(-len(record.segments) // MAX_PERIODS) or 1
    for number, line in enumerate(record.segments):
        rows_Q = _rows(record, line, memory, total)
        trained = rows_Q[: record.num_trained(line)]
        counts_N = np.bincount(trained, minlength=num_rows)[:num_rows]
        total.times_N += counts_N
        if is_guided(line):
            total.guided_times_N += counts_N
        if number % per_period == 0:
            total.periods.append({"start": line["start"], "decisions": []})
            total.period_rows.append(trained[:0])
        period = total.periods[-1]
        period["stop"] = line["stop"]
        period["decisions"] = sorted({*period["decisions"], line["decision"]})
        total.period_rows[-1] = np.concatenate([total.period_rows[-1], trained])
        condensed = _condensed(record, line, rows_Q, memory, total, curve_points)
        if condensed is not None:
            total.decisions.append((line["segment"], condensed))
    return total


def _find_losses(record: Record, total: Tally) -> None:
    """The first and the last losses that are on record, searched from both ends."""
    for line in record.segments:
        losses_N = losses_of(_signals(record, line, total))
        if losses_N is not None:
            total.first_N, total.first_segment = losses_N, line["segment"]
            total.first_sha256 = line["sha256"]["signals"]
            break
    for line in reversed(record.segments):
        if line["segment"] == total.first_segment:
            break
        losses_N = losses_of(_signals(record, line, total)) if "signals" in line["sha256"] else None
        if losses_N is not None and total.first_N is not None and len(losses_N) == len(total.first_N):
            total.last_N, total.last_segment = losses_N, line["segment"]
            break


def _condensed(
    record: Record, line: dict[str, Any], rows_Q: np.ndarray, memory: Memory, total: Tally, curve_points: int
) -> Condensed | None:
    if "signals" not in line["sha256"]:
        return None
    key = (line["sha256"]["rows"], line["sha256"]["signals"], line["segment"], total.first_sha256, curve_points)
    if key not in memory.condensed:
        columns = _signals(record, line, total)
        if not columns:
            return None
        first_N = total.first_N if line["segment"] != total.first_segment else None
        memory.condensed[key] = condense(line, rows_Q, columns, first_N, curve_points)
    return memory.condensed[key]


def _rows(record: Record, line: dict[str, Any], memory: Memory, total: Tally) -> np.ndarray:
    key = line["sha256"]["rows"]
    if key not in memory.rows:
        try:
            memory.rows[key] = record.ledger.rows_of(line)
        except LedgerError as error:
            _note(total, str(error))
            return np.empty(0, dtype=np.int64)
    rows_Q = memory.rows[key]
    inside = (rows_Q >= 0) & (rows_Q < len(total.times_N))
    if not inside.all():
        _note(total, f"segment {line['segment']} names rows that are not in rows.parquet")
    return rows_Q[inside]


def _signals(record: Record, line: dict[str, Any], total: Tally) -> dict[str, np.ndarray]:
    try:
        columns = record.ledger.signals_of(line)
    except LedgerError as error:
        _note(total, str(error))
        return {}
    lengths = {len(values) for values in columns.values()}
    if lengths - {len(total.times_N)}:
        _note(total, f"the signals of segment {line['segment']} have another length than rows.parquet")
        return {}
    return columns


def _note(total: Tally, problem: str) -> None:
    if problem not in total.problems:
        total.problems.append(problem)
