"""How many rows the configured data sets hold, counted before anything is loaded or tokenised."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.cli.config import dataset_names
from dataflex.cli.host_numbers import number, positive
from dataflex.core.errors import ConfigError, shown
from dataflex.core.json_rows import ENDINGS, json_lines


@dataclass(frozen=True)
class PoolSize:
    """Number of raw rows, where the files can be counted."""

    num_rows: int | None
    note: str


def pool_size(host: dict[str, Any]) -> PoolSize:
    """Count the raw rows of the configured data sets, as far as they are files at hand.

    Rows that LLaMA-Factory drops while it converts are counted here; nothing is tokenised.
    """
    names = dataset_names(host)
    if names is None:
        raise ConfigError("dataset is missing; name a data set of dataset_info.json")
    directory = Path(str(host.get("dataset_dir", "data")))
    try:
        info = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return PoolSize(None, f"{directory / 'dataset_info.json'} cannot be read here ({type(error).__name__})")
    if not isinstance(info, dict):
        raise ConfigError(f"{directory / 'dataset_info.json'} holds no mapping of data set names")
    total = 0
    for name in names:
        if not isinstance(info.get(name) if isinstance(name, str) else None, dict):
            raise ConfigError(
                f"data set {shown(name)} is not in {directory / 'dataset_info.json'}; known: {', '.join(info)}"
            )
        file_name = info[name].get("file_name")
        if info[name].get("num_samples") is not None:  # LLaMA-Factory draws or repeats rows until it has this many
            total += _limited(host, positive(f"num_samples of {shown(name)}", info[name]["num_samples"]))
            continue
        if not isinstance(file_name, str) or not _is_file(directory / file_name):
            return PoolSize(None, f"the rows of {shown(name)} are not in a file at hand")
        counted = _count_rows(directory / file_name)
        if counted is None:
            return PoolSize(None, f"{file_name} is of a format that is not counted here")
        total += _limited(host, counted)
    if total == 0:
        raise ConfigError(f"the data set {', '.join(names)} is empty")
    val_size = number(host, "val_size", 0.0)
    if val_size < 0:
        raise ConfigError(f"val_size is {shown(val_size)}; it must be a share below 1 or a number of rows")
    held_out = int(val_size) if val_size >= 1 else math.ceil(val_size * total)
    if held_out >= total:
        raise ConfigError(f"val_size is {val_size}, which leaves nothing of the {total} rows to train on")
    return PoolSize(total - held_out, "raw rows counted, before bad ones are dropped")


def _limited(host: dict[str, Any], num_rows: int) -> int:
    if host.get("max_samples") is None:
        return num_rows
    return min(num_rows, positive("max_samples", host["max_samples"]))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the file system does not take
        return False


def _count_rows(path: Path) -> int | None:
    """Rows of a .jsonl, .json or .parquet file; None for another format or a file that is not what its name says."""
    try:
        if path.suffix == ".parquet":
            return pq.read_metadata(path).num_rows
        if path.suffix not in ENDINGS:
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError, pa.ArrowException):
        return None
    try:
        content = json.loads(text) if path.suffix == ".json" else None
    except (ValueError, RecursionError):  # one object a line, under the other ending
        content = None
    if content is None:
        return len(json_lines(text))
    return len(content) if isinstance(content, list) else None
