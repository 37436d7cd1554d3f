"""Scores from a file: row ids in order of preference, or one score a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.core.errors import ConfigError

FINGERPRINT_KEY = b"dataflex_data"


def read_scores(path: str, num_rows: int, data_digest: str) -> np.ndarray:
    """Read a .npy, .json or .parquet file as one score per pool row.

    Whole numbers are row ids of the tokenised training set, best first; fractions are scores, one a row. A parquet
    file holds a column ``row``, a column ``score`` or both; its metadata may name the digest of the data it was made
    for (``dataflex_data``), which is then checked.

    Returns:
        Scores, float64, shape (num_rows,); NaN for rows that are not listed.

    Raises:
        ConfigError: no such file, another format, ids out of range or twice, or scores of another length.
    """
    try:
        ids, scores = _read(Path(path), data_digest)
    except OSError as error:
        raise ConfigError(f"path {path!r} cannot be read ({error.strerror or error}); check the file name") from error
    except (ValueError, EOFError, RecursionError, pa.ArrowException) as error:
        raise ConfigError(f"path {path!r} is not a list of rows or scores ({' '.join(str(error).split())})") from error
    scores_N = np.full(num_rows, np.nan)
    if ids is None:
        if scores is None or len(scores) != num_rows:
            found = 0 if scores is None else len(scores)
            raise ConfigError(f"{path!r} has {found} scores but the training set has {num_rows} rows; make it again")
        return scores.astype(np.float64)
    outside = ids[(ids < 0) | (ids >= num_rows)]
    if len(outside):
        raise ConfigError(f"{path!r} names row {outside[0]}, but the training set has rows 0 to {num_rows - 1}")
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise ConfigError(f"{path!r} names row {unique[counts > 1][0]} more than once; list each row once")
    scores_N[ids] = np.arange(len(ids), 0, -1) if scores is None else scores
    return scores_N


def _read(path: Path, data_digest: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return (ids, scores), either of them None."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        made_for = (table.schema.metadata or {}).get(FINGERPRINT_KEY, data_digest.encode()).decode()
        if made_for != data_digest:
            raise ValueError(f"it was made for other data ({made_for[:12]}, this run has {data_digest[:12]})")
        if not {"row", "score"} & set(table.column_names):
            raise ValueError(f"it has no column 'row' or 'score', only {', '.join(table.column_names)}")
        ids = _numbers(table["row"].to_numpy(), whole=True) if "row" in table.column_names else None
        return ids, _numbers(table["score"].to_numpy()) if "score" in table.column_names else None
    if path.suffix == ".npy":
        values = np.load(path, allow_pickle=False)
    elif path.suffix == ".json":
        values = np.asarray(json.loads(path.read_text(encoding="utf-8")))
    else:
        raise ValueError(f"its ending is {path.suffix!r}; use .npy, .json or .parquet")
    values = _numbers(values)
    return (None, values) if values.dtype.kind == "f" else (values.astype(np.int64), None)


def _numbers(values: Any, *, whole: bool = False) -> np.ndarray:
    """``values`` if it is one flat array of numbers (whole ones)."""
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in ("iu" if whole else "iuf"):
        what = f"{values.dtype} values of shape {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise ValueError(f"it holds {what}; one flat list of {'whole ' if whole else ''}numbers is needed")
    return values


def read_neighbours(path: str, num_rows: int) -> np.ndarray:
    """Nearest pool rows of each query from a .npy file, int64, shape (M, K); -1 where a query has fewer.

    Raises:
        ConfigError: no such file, another form, or rows outside of the pool.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except OSError as error:
        raise ConfigError(
            f"indices_path {path!r} cannot be read ({error.strerror or error}); check its name"
        ) from error
    except (ValueError, EOFError) as error:
        raise ConfigError(f"indices_path {path!r} is no .npy file ({' '.join(str(error).split())})") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iu" or values.size == 0:
        form = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else "an archive"
        raise ConfigError(
            f"indices_path {path!r} holds {form}; row numbers of shape (queries, neighbours) are needed, nearest first"
        )
    outside = values[(values < -1) | (values >= num_rows)]
    if outside.size:
        raise ConfigError(
            f"indices_path {path!r} names row {outside[0]}, but the training set has rows 0 to {num_rows - 1}; make it "
            "again of the tokenised training set"
        )
    return values.astype(np.int64)
