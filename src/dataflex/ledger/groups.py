"""Columns that sort the rows of a pool into groups: a task, a source, a domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc_typed

pc: Any = pc_typed  # its functions are made when it is imported, and type checkers see few of them

PREFERRED = ("task", "source", "domain", "dataset", "category", "subset", "type", "topic")
MAX_GROUPS = 200


@dataclass(frozen=True)
class Groups:
    """A column with few distinct values."""

    column: str
    labels: list[str]  # the largest group first
    codes_N: np.ndarray  # position in ``labels``

    def shares(self, rows: np.ndarray) -> np.ndarray:
        """Share of each group in ``rows``, one number per label."""
        return np.bincount(self.codes_N[rows], minlength=len(self.labels)) / max(len(rows), 1)


def groups_of(name: str, column: pa.ChunkedArray, most: int = MAX_GROUPS) -> Groups | None:
    """The groups of one column; None where it has one value, too many, or other values than texts and whole numbers."""
    kind = column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)):
        if not pa.types.is_boolean(kind):
            return None
        column = column.cast(pa.string())
    encoded = pc.dictionary_encode(column, null_encoding="encode").combine_chunks()
    values = ["" if value is None else str(value) for value in encoded.dictionary.to_pylist()]
    codes_N = encoded.indices.to_numpy(zero_copy_only=False)
    if not 2 <= len(values) <= min(most, max(2, len(codes_N) // 2)):
        return None
    order = np.argsort(-np.bincount(codes_N, minlength=len(values)), kind="stable")
    position = np.empty(len(order), dtype=np.int64)
    position[order] = np.arange(len(order))
    return Groups(name, [values[code] for code in order], position[codes_N])
