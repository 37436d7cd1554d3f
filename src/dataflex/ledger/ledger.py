"""The append-only history of a run: one line a segment, its arrays beside it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dataflex.core.errors import LedgerError
from dataflex.ledger.files import append_line, array_digest, parquet_bytes, write_atomic
from dataflex.ledger.fingerprint import differences

DIRECTORY = "dataflex"


class Ledger:
    """``<output_dir>/dataflex``: run.yaml, rows.parquet, ledger.jsonl, segments/ and signals/.

    A segment counts once its line is complete: arrays are on the disk before the line is, and the line is before a
    step is trained on it. A line of kind ``rollback`` cancels all segments from its ``from_segment`` on; only then can
    they be recorded anew. Each line carries the sha256 of the line before it.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.root = Path(output_dir) / DIRECTORY
        self.path = self.root / "ledger.jsonl"

    # reading

    def exists(self) -> bool:
        """True when a run has been recorded here."""
        return (self.root / "run.yaml").exists() or self.path.exists()

    def run(self) -> dict[str, Any]:
        """The content of run.yaml."""
        try:
            content = yaml.safe_load((self.root / "run.yaml").read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise LedgerError(
                f"{self.root / 'run.yaml'} cannot be read ({error}); this directory holds no complete run of DataFlex"
            ) from error
        if not isinstance(content, dict):
            raise LedgerError(f"{self.root / 'run.yaml'} is damaged: it holds no mapping")
        return content

    def run_id(self) -> str | None:
        """The id of the run recorded here, or None."""
        return self.run().get("run_id") if self.exists() else None

    def lines(self) -> list[dict[str, Any]]:
        """All complete lines, oldest first; an unfinished last line (a kill while writing) does not count."""
        if not self.path.exists():
            return []
        lines = []
        # Split at \n alone: str.splitlines would also split at characters that a path may hold.
        for number, text in enumerate(self._complete_bytes().split(b"\n")[:-1], start=1):
            try:
                line = json.loads(text)
            except ValueError as error:  # of JSON or of UTF-8
                raise LedgerError(f"line {number} of {self.path} is damaged; restore it or start anew") from error
            if not isinstance(line, dict) or "kind" not in line:
                raise LedgerError(f"line {number} of {self.path} is damaged (no 'kind'); restore it or start anew")
            lines.append(line)
        return lines

    def segments(self) -> dict[int, dict[str, Any]]:
        """The line in force of each segment, by segment number."""
        in_force: dict[int, dict[str, Any]] = {}
        for line in self.lines():
            if line["kind"] == "rollback":
                in_force = {k: old for k, old in in_force.items() if k < line["from_segment"]}
            elif line["kind"] == "segment":
                in_force[line["segment"]] = line
        return in_force

    def rows_of(self, line: Mapping[str, Any]) -> np.ndarray:
        """Pool rows of a segment in training order, int64; checked against the line's sha256."""
        rows_Q = self._column(self._array_path("segments", line["segment"]), "row").astype(np.int64)
        if array_digest({"row": rows_Q}) != line["sha256"]["rows"]:
            raise LedgerError(f"{self._array_path('segments', line['segment'])} does not match its ledger line")
        return rows_Q

    def signals_of(self, line: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The recorded columns of a segment, one entry per pool row; empty where none was recorded."""
        if "signals" not in line["sha256"]:
            return {}
        path = self._array_path("signals", line["segment"])
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise LedgerError(f"{path} cannot be read ({error}); restore it or start anew") from error
        columns = {name: table[name].to_numpy() for name in table.column_names}
        if array_digest(columns) != line["sha256"]["signals"]:
            raise LedgerError(f"{path} does not match its ledger line")
        return columns

    # claiming a directory

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
        os.rename(self.root, target)
        return target

    # writing

    def begin(self, run: Mapping[str, Any], rows: Mapping[str, Any]) -> None:
        """Write what is known before the first decision: rows.parquet, then run.yaml."""
        for directory in ("segments", "signals"):
            (self.root / directory).mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / "rows.parquet", parquet_bytes(rows))
        self._write_run(run)

    def _write_run(self, run: Mapping[str, Any]) -> None:
        # Through JSON, so that one object in two places does not become a YAML anchor and its alias.
        plain = json.loads(json.dumps(dict(run)))
        text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        if yaml.safe_load(text) != plain:  # PyYAML loses a few line-end characters unless they are escaped
            text = yaml.safe_dump(plain, sort_keys=False)
        write_atomic(self.root / "run.yaml", text.encode("utf-8"))

    def update_run(self, values: Mapping[str, Any]) -> None:
        """Add values to run.yaml, such as a batch size that was calibrated."""
        self._write_run({**self.run(), **values})

    def append(
        self, line: Mapping[str, Any], rows_Q: np.ndarray, columns_N: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Record one segment: arrays, then the line. Returns the line as written.

        Raises:
            LedgerError: the segment is recorded already with other rows, or a column holds no numbers.
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
        in_force = self.segments().get(line["segment"])
        if in_force is not None:
            if in_force["sha256"] == sha256:  # written by a process that was killed right after
                return in_force
            raise LedgerError(
                f"segment {line['segment']} is in {self.path} with other rows; roll it back before recording it anew"
            )
        rows_table = {"position": np.arange(len(rows_Q)), "row": rows_Q}
        write_atomic(self._array_path("segments", line["segment"]), parquet_bytes(rows_table))
        if columns_N:
            write_atomic(self._array_path("signals", line["segment"]), parquet_bytes(columns_N))
        return self._append({"kind": "segment", **line, "sha256": sha256})

    def note(self, line: Mapping[str, Any]) -> None:
        """Append a line of another kind, such as where the run ended."""
        self._append(dict(line))

    def rollback(self, from_segment: int, reason: str) -> None:
        """Cancel all segments from ``from_segment`` on; the old lines stay in the file."""
        self._append({"kind": "rollback", "from_segment": from_segment, "reason": reason})

    def _append(self, line: dict[str, Any]) -> dict[str, Any]:
        complete = self._complete_bytes() if self.path.exists() else b""
        if self.path.exists() and len(complete) < self.path.stat().st_size:
            os.truncate(self.path, len(complete))  # an unfinished line of a killed process
        last = complete.rstrip(b"\n").rsplit(b"\n", 1)[-1]
        line = {**line, "previous": hashlib.sha256(last).hexdigest()}
        append_line(self.path, json.dumps(line, ensure_ascii=False, allow_nan=False, default=_plain))
        return line

    def _complete_bytes(self) -> bytes:
        data = self.path.read_bytes()
        return data[: data.rfind(b"\n") + 1]

    def _array_path(self, directory: str, segment: int) -> Path:
        return self.root / directory / f"{segment:06d}.parquet"

    def _column(self, path: Path, name: str) -> np.ndarray:
        try:
            return pq.read_table(path, columns=[name])[name].to_numpy()
        except (OSError, KeyError, pa.ArrowException) as error:
            raise LedgerError(f"{path} cannot be read ({error}); restore it or start anew") from error


def _plain(value: Any) -> Any:
    """A numpy number as Python's own, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise LedgerError(f"a note holds {type(value).__name__} {value!r}; notes must be JSON values")
