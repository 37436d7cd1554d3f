"""Files that are either whole or absent, whenever the process is killed or the disk fails."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.core.errors import LedgerError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)
# Some network file systems cannot flush a folder; the files in it are flushed all the same.
NO_FLUSH_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP)


def out_of_space(error: BaseException, directory: Path) -> bool:
    """True when an error of any library comes from a full disk; PyTorch's own says only that a write failed."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    text = str(error)
    if "No space left" in text or "os error 28" in text or "Disk quota" in text:
        return True
    if not isinstance(error, RuntimeError) or "write" not in text or not directory.is_dir():
        return False
    return shutil.disk_usage(directory).free < 1 << 20


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into one sentence: the path, the reason, the remedy.

    Raises:
        LedgerError: the disk is full, read-only or broken, or a right is missing.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            remedy = "free some space there"
        elif error.errno in FORBIDDEN:
            remedy = "make it writable"
        elif error.errno in IN_THE_WAY:
            remedy = "move away what is in its place"
        else:
            remedy = "check the disk"
        raise LedgerError(
            f"{path} cannot be written ({error.strerror or error}); {remedy}, then give the same command again with "
            "overwrite_output_dir: false: nothing that was recorded is lost"
        ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, then move it into place.

    Raises:
        LedgerError: it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Append one line and flush it to the disk.

    Raises:
        LedgerError: it cannot be written; the file is cut back to the lines that it had.
    """
    with writing(path):
        size = path.stat().st_size if path.exists() else None
        try:
            with open(path, "ab") as file:
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())
            sync_directory(path.parent)
        except OSError:
            # Should this fail as well: an unfinished line is no damage, and a whole one has its arrays on the disk.
            with contextlib.suppress(OSError):
                if size is None:
                    path.unlink(missing_ok=True)
                else:
                    os.truncate(path, size)
            raise


def remove_leftovers(directories: Iterable[Path]) -> None:
    """Remove temporary files that a killed process left; harmless, but they take space."""
    for directory in directories:
        for path in directory.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def sync_directory(directory: Path) -> None:
    """Make a rename or a new file in ``directory`` outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def parquet_bytes(columns: Mapping[str, object]) -> bytes:
    """One parquet file of the given columns (arrays or lists)."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def read_columns(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The named columns of a parquet file, or all.

    Raises:
        LedgerError: it is missing or damaged.
    """
    try:
        # Not through a memory map, where a file that is cut while it is read would end the process.
        with pq.ParquetFile(path, memory_map=False) as file:
            table = file.read(columns=list(names) if names is not None else None, use_threads=False)
        return {name: table[name].to_numpy() for name in names or table.column_names}
    except OSError as error:
        raise LedgerError(f"{path} cannot be read ({_line(error.strerror or error)}); {RESTORE}") from error
    # Arrow raises several types of its own, and plain ones for values that numpy has no type for.
    except (pa.ArrowException, ValueError, TypeError, KeyError, NotImplementedError, MemoryError) as error:
        raise LedgerError(f"{path} is damaged ({_line(error)}); {RESTORE}") from error


RESTORE = "restore the dataflex folder of the run, or start anew with overwrite_output_dir: true"


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]


def array_digest(columns: Mapping[str, np.ndarray]) -> str:
    """sha256 of named arrays: names, types, shapes and bytes; independent of the parquet writer's version."""
    digest = hashlib.sha256()
    for name, values in columns.items():
        array = np.ascontiguousarray(values)
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
