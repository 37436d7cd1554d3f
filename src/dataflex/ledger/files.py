"""Files that are either whole or absent, whenever the process is killed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, then move it into place."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it to the disk."""
    with open(path, "ab") as file:
        file.write(line.encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename or a new file in ``directory`` outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parquet_bytes(columns: Mapping[str, object]) -> bytes:
    """One parquet file of the given columns (arrays or lists)."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def array_digest(columns: Mapping[str, np.ndarray]) -> str:
    """sha256 of named arrays: names, types, shapes and bytes; independent of the parquet writer's version."""
    digest = hashlib.sha256()
    for name, values in columns.items():
        array = np.ascontiguousarray(values)
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
