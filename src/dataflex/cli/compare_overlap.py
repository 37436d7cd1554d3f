"""Held-out rows that are trained on as well: the same question and answer in two files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.cli.compare_inputs import dataset_files, entries_of, held_out_files
from dataflex.cli.config import dataset_names
from dataflex.core.errors import ConfigError
from dataflex.core.json_rows import ENDINGS, read_json

# Columns of LLaMA-Factory's alpaca and sharegpt forms, by what they hold; an entry's ``columns`` renames them.
COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "system": "system",
    "history": "history",
    "messages": "conversations",
}


def held_out_rows_trained(base: Mapping[str, Any], dataset: str | None, file: str | None) -> int:
    """How many held-out rows are rows of the pool too, as far as both are .json, .jsonl or .parquet files at hand.

    Raises:
        ConfigError: all of them are.
    """
    entry = entries_of(base, [dataset])[dataset] if dataset is not None else {}
    held = [text for path in held_out_files(base, dataset, file) for text in _texts(path, entry)]
    wanted, found = set(held), set()
    for name, trained in entries_of(base, dataset_names(base) or []).items():
        for path in dataset_files(base, [name]):
            found |= wanted.intersection(_texts(path, trained))
    num = sum(text in found for text in held)
    if held and num == len(held):
        raise ConfigError(f"held_out: all {num} rows are trained on as well; name rows that are not")
    return num


def _texts(path: Path, entry: Mapping[str, Any]) -> Iterator[str]:
    """Each row's question and answer as one text; nothing of a file that is of another kind."""
    columns = {**COLUMNS, **(entry.get("columns") or {})}
    for row in _rows(path):
        if isinstance(row, dict):
            values = {role: row.get(column) for role, column in columns.items() if role in COLUMNS}
            yield json.dumps({role: value for role, value in values.items() if value}, sort_keys=True, default=str)


def _rows(path: Path) -> list[Any]:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path).to_pylist()
        found = read_json(path) if path.suffix in ENDINGS else []
        return found if isinstance(found, list) else []
    except (OSError, ValueError, RecursionError, pa.ArrowException):  # LLaMA-Factory says what is wrong with it
        return []
