"""Losses of each row over a former run, from its record; and where rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex.core.errors import ConfigError, LedgerError
from dataflex.ledger.files import read_columns
from dataflex.ledger.ledger import Ledger

PLACE = ("dataset", "source_row")  # what tells rows of one source apart, whatever the tokenizer


def trajectories(path: str, num_rows: int, digest: str, columns: Mapping[str, Any]) -> np.ndarray:
    """The losses that a former run recorded at its decisions, float32, shape (N, C), in the order of its steps.

    The run may have been of another, smaller model with another tokenizer, if the rows come from the same places of
    the same data sets.

    Args:
        path: of the run: its output_dir.
        digest: of this run's data.
        columns: of its rows.

    Raises:
        ConfigError, LedgerError: no record there, of other rows, or one without losses.
    """
    ledger = Ledger(path)
    if not ledger.exists():
        raise ConfigError(f"path {path!r} holds no record of a run; name the output_dir of a run of delta_loss or loss")
    if ledger.run().get("fingerprint", {}).get("data") != digest and not _same_rows(ledger, num_rows, columns):
        raise LedgerError(
            f"{path} recorded a run on other rows; losses over a run are known of the same data sets, read in the same "
            "way (max_samples, val_size) alone"
        )
    found = []
    for _, line in sorted(ledger.segments().items()):
        losses_N = ledger.signals_of(line).get("loss")
        if losses_N is not None and len(losses_N) == num_rows:
            found.append(np.asarray(losses_N, dtype=np.float32))
    if not found:
        raise LedgerError(
            f"{path} recorded no losses; run a method there that measures them at its decisions, such as loss"
        )
    return np.stack(found, axis=1)


def _same_rows(ledger: Ledger, num_rows: int, columns: Mapping[str, Any]) -> bool:
    if not all(name in columns for name in PLACE):
        return False
    try:
        recorded = read_columns(ledger.root / "rows.parquet", PLACE)
    except LedgerError:
        return False
    return all(len(recorded[name]) == num_rows and _values(recorded[name]) == _values(columns[name]) for name in PLACE)


def _values(column: Any) -> list[Any]:
    return column.to_pylist() if isinstance(column, (pa.Array, pa.ChunkedArray)) else list(np.asarray(column).tolist())


def source_codes(columns: Mapping[str, Any], num_rows: int) -> np.ndarray:
    """Data set of each row, counted from 0 in the order of their first rows, int64; -1 where it is not known."""
    if "dataset" not in columns:
        return np.full(num_rows, -1, dtype=np.int64)
    names = _values(columns["dataset"])
    code_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([code_of[name] for name in names], dtype=np.int64)
