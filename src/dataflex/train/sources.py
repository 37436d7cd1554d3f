"""Where the rows of a pool come from: the data sets of a mixed run, or a column that says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from dataflex.core.errors import ConfigError
from dataflex.ledger.groups import PREFERRED, Groups, groups_of

MOST_SOURCES = 50  # each is a curve of its own for the loggers
MOST_CHARACTERS = 60


def find_sources(columns: Mapping[str, Any]) -> Groups | None:
    """The data set of each row where there are several, else the first column of a well-known name, else None.

    Args:
        columns: those of rows.parquet, one entry per pool row.
    """
    for name in ("dataset", *(name for name in PREFERRED if name != "dataset")):
        if name not in columns:
            continue
        values = columns[name]
        column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
        found = groups_of(name, column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column]))
        if found is not None and len(found.labels) <= MOST_SOURCES:
            return Groups(found.column, _names(found.labels), found.codes_N)
    return None


def require_sources(found: Groups | None) -> Groups:
    """Raise where ``log_source_loss`` has nothing to tell apart."""
    if found is None:
        raise ConfigError(
            "log_source_loss is true, but the data has no sources: name several data sets, keep a column such as task "
            f"or source with 2 to {MOST_SOURCES} different values, or remove log_source_loss"
        )
    return found


def _names(labels: list[str]) -> list[str]:
    """Labels as loggers take them in a metric's name: no separators, none twice."""
    names: list[str] = []
    for label in labels:
        name = re.sub(r"[^\w.-]+", "_", label)[:MOST_CHARACTERS] or "_"
        number = 2
        unique = name
        while unique in names:
            unique, number = f"{name}_{number}", number + 1
        names.append(unique)
    return names
