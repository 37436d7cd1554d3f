"""Numbers of pool rows on disk, written a block at a time, so that a killed pass goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dataflex.core.errors import DataFlexError

# Of each kind of array: its columns and its type.
Parts = Mapping[str, tuple[int, str]]


class RowStore:
    """Memory-mapped arrays of N rows, and a list of the blocks of rows that are whole in them.

    A block is in the list only after its values are on the disk; its rows and values are in the list as hashes, which
    are compared when the store is opened again. A folder made under another key is replaced.

    Args:
        directory: of this store alone.
        key: everything the numbers depend on.
        parts: the arrays, by name.
    """

    def __init__(self, directory: Path, key: Mapping[str, str], num_rows: int, parts: Parts) -> None:
        self.directory = directory
        self._told = {"key": dict(key), "num_rows": num_rows, "parts": {n: list(p) for n, p in parts.items()}}
        try:
            if self._read_header() != self._told:
                self._begin(num_rows, parts)
            self.arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="r+") for name in parts}
        except OSError as error:
            raise DataFlexError(
                f"{directory} cannot be written ({error.strerror or error}); free some space there or make it writable"
            ) from error
        self._done = self._read_done()

    def has(self, rows_R: np.ndarray) -> bool:
        """True when exactly this block was written, and reads as it was written."""
        wanted = self._done.get(_digest(rows_R))
        return wanted is not None and wanted == self._values_digest(rows_R)

    def write(self, rows_R: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Write a block; it counts from when this returns."""
        try:
            for name, array in self.arrays.items():
                array[rows_R] = values[name]
                array.flush()
            block = _digest(rows_R)
            self._done[block] = self._values_digest(rows_R)
            with open(self.directory / "blocks.jsonl", "a", encoding="utf-8") as file:
                # The line before may have been cut short by a kill.
                file.write("\n" + json.dumps({"rows": block, "values": self._done[block]}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataFlexError(
                f"{self.directory} cannot be written ({error.strerror or error}); free some space there"
            ) from error

    @property
    def num_bytes(self) -> int:
        """What lies on the disk."""
        return sum(path.stat().st_size for path in self.directory.iterdir())

    def note(self, name: str, value: int) -> None:
        """Keep a number for the pass that goes on."""
        _write(self.directory / f"{name}.json", value)

    def noted(self, name: str) -> int | None:
        """The number that was kept under this name."""
        found = _read(self.directory / f"{name}.json")
        return found if isinstance(found, int) else None

    def discard(self) -> None:
        """Remove it all."""
        self.arrays = {}
        shutil.rmtree(self.directory, ignore_errors=True)

    def _begin(self, num_rows: int, parts: Parts) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        for name, (columns, dtype) in parts.items():
            # Sparse: takes no space before it is written.
            np.lib.format.open_memmap(self.directory / f"{name}.npy", "w+", dtype, (num_rows, columns)).flush()
        _write(self.directory / "key.json", self._told)  # last: without it nothing of this counts

    def _read_header(self) -> object:
        return _read(self.directory / "key.json")

    def _read_done(self) -> dict[str, str]:
        path = self.directory / "blocks.jsonl"
        done = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                block = json.loads(line)
                done[block["rows"]] = block["values"]
            except (ValueError, KeyError, TypeError):  # the line that a kill cut short
                continue
        return done

    def _values_digest(self, rows_R: np.ndarray) -> str:
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            digest.update(np.ascontiguousarray(self.arrays[name][rows_R]).tobytes())
        return digest.hexdigest()


def _digest(rows_R: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows_R, dtype=np.int64).tobytes()).hexdigest()


def _write(path: Path, value: object) -> None:
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, sort_keys=True))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
