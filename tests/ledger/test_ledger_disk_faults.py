"""A disk that is full, read-only or broken: one sentence with a remedy, nothing half written, nothing lost."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex.core.errors import LedgerError
from dataflex.ledger import files
from dataflex.ledger.ledger import Ledger

REASONS = [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.EPERM, errno.EFBIG]
MOST_CALLS = 40


def begun(output_dir: Path) -> Ledger:
    ledger = Ledger(output_dir)
    ledger.begin({"run_id": "a", "fingerprint": {}}, {"row": np.arange(4)})
    return ledger


def record(ledger: Ledger, segment: int) -> None:
    ledger.append({"segment": segment}, np.array([segment, 3]), {"loss": np.full(4, float(segment))})


def two_segments(output_dir: Path) -> Ledger:
    ledger = begun(output_dir)
    record(ledger, 0)
    record(ledger, 1)
    return ledger


def leftovers(output_dir: Path) -> list[str]:
    return [path.name for path in output_dir.rglob(".*.tmp")]


def assert_one_sentence(error: LedgerError, reason: int) -> None:
    said = str(error)
    assert os.strerror(reason) in said
    assert "\n" not in said
    assert "overwrite_output_dir: false" in said
    assert "nothing that was recorded is lost" in said


class Failing:
    """The n-th flush, rename, truncation or folder fails; later ones too, as on a disk that stays full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, reason: int) -> None:
        self.at, self.reason, self.calls, self.failed = at, reason, 0, False
        for name in ("fsync", "replace", "rename", "mkdir", "open"):
            monkeypatch.setattr(os, name, self._around(getattr(os, name)))

    def _around(self, original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls >= self.at:
                self.failed = True
                raise OSError(self.reason, os.strerror(self.reason))
            return original(*args, **kwargs)

        return call


CASES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "begin": (lambda d: None, begun),
    "a segment": (two_segments, lambda d: record(Ledger(d), 2)),
    "a rollback": (two_segments, lambda d: Ledger(d).rollback(1, "resumed")),
    "a value added to run.yaml": (two_segments, lambda d: Ledger(d).update_run({"score_batch_tokens": 1})),
    "moving the record aside": (two_segments, lambda d: Ledger(d).move_aside()),
}


@pytest.mark.parametrize("reason", REASONS, ids=errno.errorcode.get)
@pytest.mark.parametrize(("prepare", "act"), CASES.values(), ids=CASES.keys())
def test_a_failure_at_any_call_is_one_sentence_and_loses_nothing(tmp_path: Path, prepare, act, reason: int) -> None:
    for at in range(1, MOST_CALLS):
        run = tmp_path / f"fails-{at}"
        prepare(run)
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = Failing(monkeypatch, at, reason)
            try:
                act(run)
            except LedgerError as error:
                assert_one_sentence(error, reason)
                assert disk.failed
        if not disk.failed:
            break
        assert not leftovers(run)
        for path, content in before.items():
            # A flush of the folder that fails comes after the new file is in place.
            assert not path.exists() or path.read_bytes() == content or path.name == "run.yaml"
        if before and act is not CASES["moving the record aside"][1]:
            assert sorted(Ledger(run).segments()) == [0, 1], "the line is not there unless all of it was flushed"
            act(run)
            act_again = Ledger(run)
            assert act_again.lines()[:2] == Ledger(run).lines()[:2]
    assert not disk.failed
    assert at > 1, "nothing ever failed"


@pytest.mark.parametrize(("reason", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "make it writable")])
def test_the_remedy_fits_the_reason(tmp_path: Path, monkeypatch, reason: int, remedy: str) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(reason, os.strerror(reason))))
    with pytest.raises(LedgerError, match=remedy):
        files.write_atomic(tmp_path / "x", b"1")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_line_that_a_full_device_refuses(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(LedgerError) as caught:
        files.append_line(path, b"{}")
    assert_one_sentence(caught.value, errno.ENOSPC)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("limit", [0, 10, 100, 200, 600, 1000, 1400])
def test_a_limit_on_the_size_of_files_in_the_middle_of_a_write(tmp_path: Path, limit: int) -> None:
    """A real short write by the kernel, in a process of its own: whatever it leaves, the two segments stand."""
    ledger = two_segments(tmp_path)
    complete = ledger.path.read_bytes()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            Ledger(tmp_path).append({"segment": 2, "notes": {"a": "x" * 700}}, np.array([2]), {"loss": np.zeros(4)})
        except LedgerError as error:
            code = 0 if "File too large" in str(error) and "free some space" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ledger.path.read_bytes() == complete
    assert not leftovers(tmp_path)
    record(Ledger(tmp_path), 2)
    assert sorted(Ledger(tmp_path).segments()) == [0, 1, 2]


def test_an_append_that_fails_half_way_is_cut_back(tmp_path: Path, monkeypatch) -> None:
    ledger = two_segments(tmp_path)
    complete = ledger.path.read_bytes()

    def fail(descriptor: int) -> None:
        assert len(ledger.path.read_bytes()) > len(complete), "the line is in the file by now"
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LedgerError, match="check the disk"):
        ledger.rollback(0, "x")
    monkeypatch.undo()
    assert ledger.path.read_bytes() == complete
    assert sorted(ledger.segments()) == [0, 1]
    record(ledger, 2)
    assert len(Ledger(tmp_path).lines()) == 3


def test_a_first_line_that_fails_leaves_no_file(tmp_path: Path, monkeypatch) -> None:
    ledger = begun(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(LedgerError, match="broken"):
        ledger.rollback(0, "x")
    assert not ledger.path.exists()


@pytest.mark.parametrize("in_the_way", ["dataflex", "dataflex/segments", "dataflex/signals"])
def test_a_file_in_place_of_a_folder(tmp_path: Path, in_the_way: str) -> None:
    """Root has every right, but not this one."""
    path = tmp_path / in_the_way
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file of the user's")
    with pytest.raises(LedgerError, match="move away what is in its place") as caught:
        begun(tmp_path)
    assert str(path) in str(caught.value)
    assert path.read_text() == "a file of the user's"


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    ledger = two_segments(tmp_path)
    (ledger.root / "segments" / "000002.parquet").mkdir()
    with pytest.raises(LedgerError, match=r"000002\.parquet cannot be written"):
        record(ledger, 2)
    assert not leftovers(tmp_path)


def test_a_folder_that_cannot_be_flushed_is_no_error_on_network_file_systems(tmp_path: Path, monkeypatch) -> None:
    fsync = os.fsync

    def only_files(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", only_files)
    assert sorted(two_segments(tmp_path).segments()) == [0, 1]


# what a killed process left


@pytest.mark.parametrize("act", [begun, lambda d: record(Ledger(d), 2)], ids=["begin", "the first segment"])
def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path, act) -> None:
    ledger = two_segments(tmp_path)
    for name in (".run.yaml.tmp", "segments/.000007.parquet.tmp", "signals/.000007.parquet.tmp"):
        (ledger.root / name).write_bytes(b"half")
    (ledger.root / "notes.tmp").write_text("a file of the user's")
    act(tmp_path)
    assert not leftovers(tmp_path)
    assert (ledger.root / "notes.tmp").exists()
