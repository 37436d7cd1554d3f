"""The columns of a decision against what its line says of them, and against the rows that were drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dataflex.ledger.quantiles import quantiles

KINDS = {"row": "iu", "times_trained": "iu", "rank": "iu", "in_window": "b"}  # of numpy, for columns of a known meaning
TOLERANCE = 1e-9


def audit_columns(
    columns_N: Mapping[str, np.ndarray],
    line: Mapping[str, Any],
    rows_Q: np.ndarray | None,
    counts_N: np.ndarray | None,
    num_rows: int | None,
) -> Iterator[str]:
    """Yield one sentence for each contradiction.

    Args:
        columns_N: the recorded columns, verified against the line's sha256.
        line: the ledger line of the segment.
        rows_Q: its rows, None where they are damaged.
        counts_N: how often each row was trained before, None where that is not known.
        num_rows: of the pool, None where that is not known.
    """
    length = len(next(iter(columns_N.values()))) if columns_N else 0
    if num_rows is not None and length != num_rows:
        yield f"its columns have {length} entries, the pool has {num_rows} rows"
        return
    for name, values in columns_N.items():
        if values.dtype.kind not in KINDS.get(name, "biuf"):
            yield f"its column {name!r} holds {values.dtype}"
            return
    if "row" in columns_N and not np.array_equal(columns_N["row"], np.arange(length)):
        yield f"its rows are not numbered 0 to {length - 1} in order"
    if counts_N is not None and "times_trained" in columns_N:
        wrong = np.flatnonzero(columns_N["times_trained"] != counts_N)
        if len(wrong):
            yield (
                f"times_trained of row {wrong[0]} is {columns_N['times_trained'][wrong[0]]}, but the segments before "
                f"trained it {counts_N[wrong[0]]} times"
            )
    drawn = rows_Q if rows_Q is not None and np.all((rows_Q >= 0) & (rows_Q < length)) else None
    yield from _wrong_weights(columns_N, drawn)
    yield from _wrong_quantiles(columns_N, line)
    yield from _wrong_notes(columns_N, line["notes"], drawn)
    yield from _wrong_window(columns_N, line["window"], line["notes"])


def _wrong_weights(columns_N: Mapping[str, np.ndarray], rows_Q: np.ndarray | None) -> Iterator[str]:
    if "weight" not in columns_N:
        return
    weights_N = columns_N["weight"]
    if not np.all(np.isfinite(weights_N)) or np.any(weights_N < 0):
        yield "a weight is negative or not finite"
    elif rows_Q is not None and np.any(weights_N[rows_Q] == 0):
        yield f"row {rows_Q[weights_N[rows_Q] == 0][0]} was drawn, but its weight is 0"


def _wrong_quantiles(columns_N: Mapping[str, np.ndarray], line: Mapping[str, Any]) -> Iterator[str]:
    found = quantiles({name: values for name, values in columns_N.items() if name not in ("row", "times_trained")})
    if found.keys() != line["quantiles"].keys():
        theirs, ours = (", ".join(names) or "nothing" for names in (line["quantiles"], found))
        yield f"its line has quantiles of {theirs}, its columns give those of {ours}"
    for name, numbers in found.items():
        recorded = line["quantiles"].get(name, numbers)
        if recorded.keys() != numbers.keys() or not all(_near(recorded[level], numbers[level]) for level in numbers):
            yield f"the quantiles of {name!r} in its line are not those of the column"


def _wrong_notes(
    columns_N: Mapping[str, np.ndarray], notes: Mapping[str, Any], rows_Q: np.ndarray | None
) -> Iterator[str]:
    """The counts of a note, where the column that is counted is there."""
    scores = next((columns_N[name] for name in ("delta", "loss", "initial_loss") if name in columns_N), None)
    counted: dict[str, int] = {}
    if scores is not None and scores.dtype.kind == "f":
        scored_N = np.isfinite(scores)
        counted |= {"num_scored": int(scored_N.sum()), "num_unscored": int((~scored_N).sum())}
        if "delta" in columns_N:
            counted["num_improved"] = int(np.count_nonzero(scores[scored_N] >= 0))
    if "in_window" in columns_N and rows_Q is not None:
        counted["num_from_window"] = int(np.count_nonzero(columns_N["in_window"][rows_Q]))
    for name, number in counted.items():
        if name in notes and notes[name] != number:
            yield f"its line says {name} {notes[name]}, its columns give {number}"


def _wrong_window(
    columns_N: Mapping[str, np.ndarray], window: Mapping[str, Any] | None, notes: Mapping[str, Any]
) -> Iterator[str]:
    """Rows in the window are those whose rank lies in it."""
    if window is None or not {"rank", "in_window"} <= columns_N.keys() or not {"start", "end"} <= window.keys():
        return
    start, end = window["start"], window["end"]
    ranks_N = columns_N["rank"]
    ranked = np.sort(ranks_N[ranks_N >= 0])
    if not np.array_equal(ranked, np.arange(len(ranked))):
        yield "its ranks are not 0, 1, 2 and so on, each once"
    if not np.array_equal(columns_N["in_window"], (ranks_N >= start) & (ranks_N < end)):
        yield f"in_window does not mark the ranks of the window {start} to {end} that its line names"
    for name, edge in (("start_share", start), ("end_share", end)):
        if name in window and not _near(window[name], edge / max(len(ranked), 1)):
            yield f"its line says {name} {window[name]}, which is not {edge} of {len(ranked)} ranks"


def _near(left: Any, right: float) -> bool:
    return isinstance(left, (int, float)) and math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
