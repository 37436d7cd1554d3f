"""The append-only history of a run: one line a segment, its arrays beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.core.errors import LedgerError
from dataflex.ledger import lock
from dataflex.ledger.files import (
    RESTORE,
    array_digest,
    parquet_bytes,
    read_columns,
    remove_leftovers,
    write_atomic,
    writing,
)
from dataflex.ledger.fingerprint import differences
from dataflex.ledger.lines import Lines, digest
from dataflex.ledger.run_file import read_run, seal_problem, write_run

DIRECTORY = "dataflex"
ROLLED_BACK = ".rolled-back-"  # in the names of arrays of a cancelled line: 000003.rolled-back-1.parquet
LOCK_FILE = ".dataflex.lock"  # beside the record: it stays when an old record is moved aside


class Ledger:
    """``<output_dir>/dataflex``: run.yaml, rows.parquet, ledger.jsonl, segments/ and signals/.

    A segment counts once its line is complete: arrays are on the disk before the line is, and the line is before a
    step is trained on it. A line of kind ``rollback`` cancels all segments from its ``from_segment`` on; only then can
    they be recorded anew. Each line carries its own checksum and the sha256 of the line before it (the first one that
    of the run's id); both are verified whenever lines are read. What a method returns is shared: do not change it.
    """

    def __init__(self, output_dir: str | Path, *, directory: str = DIRECTORY) -> None:
        self.root = Path(output_dir) / directory
        self.path = self.root / "ledger.jsonl"
        self._lines = Lines(self.path, self._anchor)
        self._swept = False

    # reading

    def exists(self) -> bool:
        """True when a run has been recorded here."""
        return (self.root / "run.yaml").exists() or self.path.exists()

    def run(self) -> dict[str, Any]:
        """The content of run.yaml.

        Raises:
            LedgerError: it is missing, damaged or was edited.
        """
        return self._sealed_run()[0]

    def _sealed_run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        content, seal = read_run(self.root / "run.yaml")
        problem = seal_problem(content, seal)
        if problem is not None:
            raise LedgerError(f"{self.root / 'run.yaml'} is damaged: {problem}; {RESTORE}")
        return content, seal

    def run_id(self) -> str | None:
        """The id of the run recorded here, or None."""
        return self.run().get("run_id") if self.exists() else None

    def _anchor(self) -> str | None:
        """What the first line must carry; None where run.yaml does not say, which is told when it is asked for."""
        try:
            return digest(str(read_run(self.root / "run.yaml")[0].get("run_id") or "").encode())
        except LedgerError:
            return None

    def lines(self) -> list[dict[str, Any]]:
        """All complete lines, oldest first; an unfinished last line (a kill while writing) does not count.

        Raises:
            LedgerError: a line is damaged, changed, missing or out of order.
        """
        return list(self._lines.verified().lines)

    def segments(self) -> dict[int, dict[str, Any]]:
        """The line in force of each segment, by segment number."""
        return dict(self._lines.verified().in_force)

    def line_of(self, segment: int) -> dict[str, Any] | None:
        """The line in force of one segment; its cost does not depend on the length of the run."""
        return self._lines.verified().in_force.get(segment)

    def rows_of(self, line: Mapping[str, Any]) -> np.ndarray:
        """Pool rows of a segment in training order, int64; checked against the line's sha256."""
        path = self.array_path("segments", line["segment"])
        rows = read_columns(path).get("row")
        if rows is None or rows.dtype.kind not in "iu":
            raise LedgerError(f"{path} is damaged (it has no column 'row' of whole numbers); {RESTORE}")
        rows_Q = rows.astype(np.int64)
        if array_digest({"row": rows_Q}) != line["sha256"]["rows"]:
            raise LedgerError(f"{path} does not match its ledger line; {RESTORE}")
        return rows_Q

    def signals_of(self, line: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The recorded columns of a segment, one entry per pool row; empty where none was recorded."""
        if "signals" not in line["sha256"]:
            return {}
        path = self.array_path("signals", line["segment"])
        for kept in (*sorted(path.parent.glob(f"{path.stem}{ROLLED_BACK}*.parquet")), path):
            columns = read_columns(kept)
            if array_digest(columns) == line["sha256"]["signals"]:
                return columns
        raise LedgerError(f"{path} does not match its ledger line; {RESTORE}")

    def array_path(self, directory: str, segment: int) -> Path:
        """The file of a segment's arrays in ``segments`` or ``signals``."""
        return self.root / directory / f"{segment:06d}.parquet"

    # claiming a directory

    def lock(self) -> str | None:
        """Keep other processes from writing here until ``unlock`` or the death of this one.

        Returns:
            None, or a sentence to say when the file system has no locks.

        Raises:
            LedgerError: another process is writing here.
        """
        return lock.take(self.root.parent / LOCK_FILE)

    def unlock(self) -> None:
        """Let other processes write here."""
        lock.release(self.root.parent / LOCK_FILE)

    def claim(self, fingerprint: Mapping[str, Any], *, overwrite: bool) -> str:
        """Say what starting a run here means, writing nothing: "new", "replace" (move the old one aside) or "continue".

        Raises:
            LedgerError: another run is recorded here and ``overwrite`` is false.
        """
        if not self.exists():
            return "new"
        if overwrite:
            return "replace"
        recorded = self.run().get("fingerprint")
        if not isinstance(recorded, dict):
            raise LedgerError(
                f"{self.root / 'run.yaml'} is damaged: it holds no fingerprint; choose another output_dir, or set "
                "overwrite_output_dir: true to move the old record aside"
            )
        if recorded != fingerprint:
            raise LedgerError(
                f"{self.root.parent} holds another run: {differences(recorded, fingerprint)}; "
                "choose another output_dir, or set overwrite_output_dir: true to move the old record aside"
            )
        return "continue"

    def move_aside(self) -> Path:
        """Rename the record of an old run to ``dataflex.old-K`` and return the new path."""
        number = 1
        while (target := self.root.with_name(f"{DIRECTORY}.old-{number}")).exists():
            number += 1
        with writing(target):
            os.rename(self.root, target)
        return target

    # writing

    def begin(self, run: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
        """Write what is known before the first decision: rows.parquet, then run.yaml, which seals both."""
        for directory in ("segments", "signals"):
            with writing(self.root / directory):
                (self.root / directory).mkdir(parents=True, exist_ok=True)
        self._sweep()
        content, path = parquet_bytes(rows), self.root / "rows.parquet"
        # Not written again where it is the same: it and run.yaml, which seals it, then never part in a kill.
        if not path.is_file() or path.read_bytes() != content:
            write_atomic(path, content)
        write_run(self.root / "run.yaml", run, hashlib.sha256(content).hexdigest())

    def update_run(self, values: Mapping[str, Any]) -> None:
        """Add values to run.yaml, such as a batch size that was calibrated."""
        run, seal = self._sealed_run()
        write_run(self.root / "run.yaml", {**run, **values}, seal.get("rows"))

    def append(
        self, line: Mapping[str, Any], rows_Q: np.ndarray, columns_N: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Record one segment: arrays, then the line. Returns the line as written.

        Raises:
            LedgerError: the segment is recorded already with other rows, a column holds no numbers, the record is
                damaged, or it cannot be written.
        """
        for name, values in columns_N.items():
            if values.dtype.kind not in "biuf":
                raise LedgerError(f"column {name!r} holds {values.dtype}; a signal column must hold numbers")
        if len({len(values) for values in columns_N.values()}) > 1:
            raise LedgerError(f"the columns {', '.join(columns_N)} differ in length; each has one entry per pool row")
        rows_Q = np.asarray(rows_Q, dtype=np.int64)
        sha256 = {"rows": array_digest({"row": rows_Q})}
        if columns_N:
            sha256["signals"] = array_digest(columns_N)
        in_force = self.line_of(line["segment"])
        if in_force is not None:
            if in_force["sha256"] == sha256:  # written by a process that was killed right after
                return in_force
            raise LedgerError(
                f"segment {line['segment']} is in {self.path} with other rows; roll it back before recording it anew"
            )
        self._sweep()
        self._keep_rolled_back(line["segment"], sha256)
        rows_table = {"position": np.arange(len(rows_Q)), "row": rows_Q}
        write_atomic(self.array_path("segments", line["segment"]), parquet_bytes(rows_table))
        if columns_N:
            write_atomic(self.array_path("signals", line["segment"]), parquet_bytes(columns_N))
        return self._append({"kind": "segment", **line, "sha256": sha256})

    def _keep_rolled_back(self, segment: int, sha256: Mapping[str, str]) -> None:
        """Move the arrays of a rolled-back line aside, unless the new ones are the same: what was recorded stays."""
        if not self.array_path("segments", segment).exists() and not self.array_path("signals", segment).exists():
            return
        old = [line for line in self.lines() if line["kind"] == "segment" and line["segment"] == segment]
        for directory, name in (("segments", "rows"), ("signals", "signals")):
            path = self.array_path(directory, segment)
            if old and path.exists() and old[-1]["sha256"].get(name) != sha256.get(name):
                number = 1
                while (target := path.with_name(f"{path.stem}{ROLLED_BACK}{number}.parquet")).exists():
                    number += 1
                with writing(target):
                    os.rename(path, target)

    def note(self, line: Mapping[str, Any]) -> None:
        """Append a line of another kind, such as where the run ended."""
        self._append(line)

    def rollback(self, from_segment: int, reason: str) -> None:
        """Cancel all segments from ``from_segment`` on; the old lines stay in the file."""
        self._append({"kind": "rollback", "from_segment": from_segment, "reason": reason})

    def _append(self, line: Mapping[str, Any]) -> dict[str, Any]:
        return self._lines.append(line)

    def _sweep(self) -> None:
        """Once a process: remove temporary files of one that was killed."""
        if not self._swept:
            remove_leftovers([self.root, self.root / "segments", self.root / "signals"])
            self._swept = True
