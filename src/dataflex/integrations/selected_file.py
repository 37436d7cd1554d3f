"""Chosen rows as they were in their data set, with the reasons, in a file that LLaMA-Factory reads again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.core.errors import ConfigError
from dataflex.integrations.row_trace import RowTrace, Source

PREFIX = "dataflex_"
FORMATS = (".jsonl", ".parquet")
# Of LLaMA-Factory's DatasetAttr: where its entry in dataset_info.json keeps them. The rest says where the data lies.
COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios")
COLUMNS += ("chosen", "rejected", "kto_tag")
TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")


def dataset_entry(trace: RowTrace, file_name: str) -> dict[str, Any]:
    """The entry of dataset_info.json for a file of chosen rows.

    Raises:
        ConfigError: rows of several data sets that are read in different ways.
    """
    found = [(source, _reading(source.attr)) for source, _, _ in trace.origins()]
    first, entry = found[0]
    for source, other in found[1:]:
        if other != entry:
            raise ConfigError(
                f"the data sets {first.name!r} and {source.name!r} differ in format or columns, so that no one file "
                "holds rows of both; select from one at a time"
            )
    return {"file_name": file_name, **entry}


def _reading(attr: Any) -> dict[str, Any]:
    """How a data set is read, as its entry in dataset_info.json says it; defaults are left out."""
    defaults = {f.name: f.default for f in fields(attr) if f.default is not MISSING}
    differ = {name: getattr(attr, name) for name in defaults if getattr(attr, name) != defaults[name]}
    entry: dict[str, Any] = {name: differ[name] for name in ("formatting", "ranking") if name in differ}
    for key, names in (("columns", COLUMNS), ("tags", TAGS)):
        if any(name in differ for name in names):  # one that is named makes LLaMA-Factory forget its defaults
            given = {name: getattr(attr, name) for name in names}
            entry[key] = {name: value for name, value in given.items() if value is not None}
    return entry


def selected_table(trace: RowTrace, rows_Q: np.ndarray, columns_N: Mapping[str, np.ndarray]) -> pa.Table:
    """The raw rows in the order of ``rows_Q``, each with its pool row and what it was chosen by.

    Columns of ours that an earlier selection left in the data are replaced.
    """
    tables, pool_rows = [], []
    for source, rows, positions in trace.origins():
        chosen = np.isin(rows, rows_Q)
        if chosen.any():
            tables.append(_raw(source, positions[chosen]))
            pool_rows.append(rows[chosen])
    table = pa.concat_tables(tables, promote_options="permissive")
    found = np.concatenate(pool_rows)
    order = np.argsort(found)
    table = table.take(pa.array(order[np.searchsorted(found[order], rows_Q)]))
    reasons = {"row": rows_Q, **{name: values[rows_Q] for name, values in columns_N.items()}}
    for name, values in reasons.items():
        table = table.append_column(f"{PREFIX}{name}", pa.array(values))
    return table


def _raw(source: Source, positions: np.ndarray) -> pa.Table:
    table = source.raw.select(positions).with_format("arrow")[:]
    return table.drop_columns([name for name in table.column_names if name.startswith(PREFIX)])


def file_bytes(table: pa.Table, suffix: str) -> bytes:
    """The table as ``.jsonl`` or ``.parquet``.

    Raises:
        ConfigError: a value that JSON cannot hold.
    """
    if suffix == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(None), sink, compression="zstd")
        return sink.getvalue().to_pybytes()
    lines = []
    for row in table.to_pylist():
        ours = {name: _number(value) for name, value in row.items() if name.startswith(PREFIX)}
        lines.append(json.dumps({**row, **ours}, ensure_ascii=False, default=_unfit))
    return "".join(f"{line}\n" for line in lines).encode("utf-8")


def _number(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unfit(value: Any) -> Any:
    raise ConfigError(f"the data holds a value of type {type(value).__name__}, which JSON cannot; write to a .parquet")
