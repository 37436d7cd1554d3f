"""Two processes on one output_dir: the second is refused, a dead one is forgotten, a disk without locks is served."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dataflex.core.errors import LedgerError
from dataflex.ledger import lock
from dataflex.ledger.ledger import LOCK_FILE, Ledger


class Child:
    """A forked process that does something and then waits to be told to end."""

    def __init__(self, act: Callable[[], object]) -> None:
        ready, tell_ready = os.pipe()
        wait, self._end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = b"?"
            try:
                act()
                code = b"y"
            except LedgerError:
                code = b"n"
            finally:
                os.write(tell_ready, code)
                os.close(self._end)
                os.read(wait, 1)
                os._exit(0)
        os.close(tell_ready)
        os.close(wait)
        self.answer = os.read(ready, 1).decode()
        os.close(ready)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def end(self) -> None:
        self._reap()

    def _reap(self) -> None:
        os.close(self._end)
        os.waitpid(self.pid, 0)


@pytest.fixture(autouse=True)
def nothing_held():
    yield
    for path in list(lock._held):
        lock.release(path)


def test_a_second_process_is_refused_in_one_sentence(tmp_path: Path) -> None:
    child = Child(Ledger(tmp_path / "run").lock)
    assert child.answer == "y"
    with pytest.raises(LedgerError, match=f"being written by another run .process {child.pid} on ") as caught:
        Ledger(tmp_path / "run").lock()
    assert "\n" not in str(caught.value)
    assert "another output_dir" in str(caught.value)
    assert Ledger(tmp_path / "other").lock() is None
    child.end()


def test_the_lock_of_a_killed_process_is_gone(tmp_path: Path) -> None:
    child = Child(Ledger(tmp_path).lock)
    child.kill()
    assert (tmp_path / LOCK_FILE).exists()
    assert Ledger(tmp_path).lock() is None


def test_one_process_may_ask_twice(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    assert first.lock() is None
    assert first.lock() is None
    assert Ledger(tmp_path).lock() is None


def test_a_worker_that_outlives_its_killed_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    """Loader workers are forked after the lock was taken, and live on for seconds after a SIGKILL."""
    told, tell = os.pipe()

    def lock_and_fork() -> None:
        Ledger(tmp_path).lock()
        worker = os.fork()
        if worker == 0:
            while True:
                signal.pause()
        os.write(tell, str(worker).encode())

    child = Child(lock_and_fork)
    worker = int(os.read(told, 20))
    try:
        child.kill()
        assert Ledger(tmp_path).lock() is None
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(told)
        os.close(tell)


def test_a_lock_that_is_given_back_leaves_no_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.lock()
    ledger.unlock()
    ledger.unlock()
    assert not list(tmp_path.iterdir())
    child = Child(ledger.lock)
    assert child.answer == "y"
    child.end()


def test_a_file_that_was_removed_while_it_was_waited_for_is_not_locked(tmp_path: Path, monkeypatch) -> None:
    flock, path, seen = fcntl.flock, tmp_path / LOCK_FILE, []

    def removed_first(file, how) -> None:
        if not seen:
            path.unlink()
        seen.append(os.fstat(file.fileno()).st_ino)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    assert Ledger(tmp_path).lock() is None
    assert len(seen) == 2
    assert path.stat().st_ino == seen[1]


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_said_and_the_run_goes_on(tmp_path: Path, monkeypatch, reason: int) -> None:
    def refuse(file, how) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = Ledger(tmp_path).lock()
    assert said is not None
    assert "has no locks" in said
    assert os.strerror(reason) in said
    Ledger(tmp_path).unlock()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(LedgerError, match="move away what is in its place"):
        Ledger(tmp_path / "run").lock()


def test_the_lock_outlives_moving_the_record_aside(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.begin({"fingerprint": {}}, {"row": [0]})
    ledger.lock()
    ledger.move_aside()
    child = Child(Ledger(tmp_path).lock)
    assert child.answer == "n"
    child.end()


def test_a_full_disk_does_not_keep_a_run_from_its_lock(tmp_path: Path, monkeypatch) -> None:
    """Whose lock it is serves a sentence only."""
    monkeypatch.setattr(os, "write", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert Ledger(tmp_path).lock() is None
