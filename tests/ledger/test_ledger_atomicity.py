"""Killed at any write, flush or rename: afterwards the ledger reads as before or as after, never half."""

from __future__ import annotations

import builtins
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex.ledger import files
from dataflex.ledger.ledger import Ledger

FINGERPRINT = {"learning_rate": 1e-4}
MOST_CALLS = 60


class Killed(BaseException):
    """No Exception: nothing may catch and clean up, since a killed process does not."""


class Killer:
    """Counts writes, flushes and renames, and kills at the n-th; a write is done up to ``share`` before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, share: float) -> None:
        self.at, self.share, self.calls, self.dead = at, share, 0, False
        for name in ("fsync", "replace", "truncate", "rename"):
            monkeypatch.setattr(os, name, self._around(getattr(os, name)))
        monkeypatch.setattr(files, "open", self._open, raising=False)

    def tick(self) -> bool:
        self.calls += 1
        return self.calls == self.at

    def die(self) -> None:
        self.dead = True
        raise Killed

    def _around(self, original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.tick():
                self.die()
            return original(*args, **kwargs)

        return call

    def _open(self, path: Any, mode: str = "r", **kwargs: Any) -> Any:
        # Without a buffer, so that what was written is in the file at once.
        return _File(builtins.open(path, mode, buffering=0, **kwargs), self)


class _File:
    def __init__(self, file: Any, killer: Killer) -> None:
        self._file, self._killer = file, killer

    def write(self, data: bytes) -> int:
        if self._killer.tick():
            self._file.write(data[: int(len(data) * self._killer.share)])
            self._killer.die()
        return self._file.write(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def record(ledger: Ledger, segment: int, base: int) -> None:
    rows = np.array([base, base + 1, base + 2])
    ledger.append({"segment": segment, "base": base}, rows, {"loss": np.full(4, float(base))})


def read(output_dir: Path) -> Any:
    """All that a resumed run reads."""
    ledger = Ledger(output_dir)
    if not ledger.exists():
        return None
    run = ledger.run()
    segments = {
        k: (line["base"], ledger.rows_of(line).tolist(), ledger.signals_of(line)["loss"].tolist())
        for k, line in sorted(ledger.segments().items())
    }
    return run, segments


def begun(output_dir: Path) -> Ledger:
    ledger = Ledger(output_dir)
    ledger.begin({"fingerprint": FINGERPRINT}, {"row": np.arange(4)})
    return ledger


def two_segments(output_dir: Path) -> Ledger:
    ledger = begun(output_dir)
    record(ledger, 0, 10)
    record(ledger, 1, 20)
    return ledger


def rolled_back(output_dir: Path) -> Ledger:
    ledger = two_segments(output_dir)
    ledger.rollback(1, "resumed")
    return ledger


def torn(output_dir: Path) -> Ledger:
    ledger = two_segments(output_dir)
    with open(ledger.path, "ab") as file:
        file.write(b'{"kind": "segment", "segm')
    return ledger


CASES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "begin in an empty directory": (lambda d: None, begun),
    "begin again in the same run": (two_segments, begun),
    "the first segment": (begun, lambda d: record(Ledger(d), 0, 10)),
    "the next segment": (two_segments, lambda d: record(Ledger(d), 2, 30)),
    "a segment decided anew after a rollback": (rolled_back, lambda d: record(Ledger(d), 1, 99)),
    "a rollback": (two_segments, lambda d: Ledger(d).rollback(1, "resumed")),
    "a segment after a torn line": (torn, lambda d: record(Ledger(d), 2, 30)),
    "moving the record aside": (two_segments, lambda d: Ledger(d).move_aside()),
}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("prepare", "act"), CASES.values(), ids=CASES.keys())
def test_killed_at_every_call(tmp_path: Path, prepare: Callable, act: Callable, share: float) -> None:
    prepare(tmp_path / "whole")
    before = read(tmp_path / "whole")
    act(tmp_path / "whole")
    after = read(tmp_path / "whole")
    assert before != after or act is begun
    for at in range(1, MOST_CALLS):
        run = tmp_path / f"killed-{at}"
        prepare(run)
        with pytest.MonkeyPatch.context() as monkeypatch:
            killer = Killer(monkeypatch, at, share)
            with contextlib.suppress(Killed):
                act(run)
        if not killer.dead:
            break
        assert read(run) in (before, after), f"killed at call {at}"
        # The next process does it again and ends as if nothing had happened.
        if act is not CASES["moving the record aside"][1]:
            act(run)
            assert read(run) == after, f"done again after a kill at call {at}"
    assert not killer.dead
    assert at > 1, "nothing was ever killed"


@pytest.mark.parametrize("kept", [1, 5, -2, -1])
def test_a_torn_last_line_is_ignored_and_then_written_over(tmp_path: Path, kept: int) -> None:
    ledger = two_segments(tmp_path)
    complete = ledger.path.read_bytes()
    record(ledger, 2, 30)
    last = ledger.path.read_bytes()[len(complete) :]
    ledger.path.write_bytes(complete + last[:kept])
    assert sorted(Ledger(tmp_path).segments()) == [0, 1]
    record(Ledger(tmp_path), 2, 40)
    assert ledger.path.read_bytes().startswith(complete)
    assert read(tmp_path)[1][2] == (40, [40, 41, 42], [40.0] * 4)
    assert len(ledger.path.read_bytes().splitlines()) == 3


def test_a_first_line_that_is_torn(tmp_path: Path) -> None:
    ledger = begun(tmp_path)
    ledger.path.write_bytes(b'{"kind')
    assert ledger.lines() == []
    record(ledger, 0, 10)
    assert [line["segment"] for line in ledger.lines()] == [0]


def test_the_arrays_are_on_the_disk_before_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = begun(tmp_path)
    seen: list[list[str]] = []

    def append_line(path: Path, line: bytes) -> None:
        seen.append(sorted(p.parent.name for p in ledger.root.rglob("000000.parquet")))

    monkeypatch.setattr("dataflex.ledger.lines.append_line", append_line)
    record(ledger, 0, 10)
    assert seen == [["segments", "signals"]]


def test_a_file_is_flushed_before_it_is_moved_into_place_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *args: (order.append("replace"), replace(*args)))
    files.write_atomic(tmp_path / "x", b"content")
    assert order == ["fsync", "replace", "fsync"]
    assert (tmp_path / "x").read_bytes() == b"content"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_line_is_flushed_to_the_disk_before_anything_is_trained_on_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flushed: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")), fsync(descriptor))
    )
    files.append_line(tmp_path / "ledger.jsonl", b"{}")
    assert flushed == [str(tmp_path / "ledger.jsonl"), str(tmp_path)]
