"""One process at a time writes a run: a lock that the kernel releases when its process dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TextIO

from dataflex.core.errors import LedgerError
from dataflex.ledger.files import writing

# Locks of this process, by path. Asked for again they are held already: a process does not race with itself.
_held: dict[Path, TextIO] = {}


def take(path: Path) -> str | None:
    """Lock a file, made where it is missing, until ``release`` or the death of this process.

    Returns:
        None, or a sentence when the file system has no locks: the run goes on without one.

    Raises:
        LedgerError: another process holds it, or the folder cannot be written.
    """
    path = path.absolute()
    while path not in _held:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  kept open: closing it gives the lock away
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(file)
            file.close()
            raise LedgerError(
                f"{path.parent} is being written by another run ({holder}); wait until it has ended, or choose another "
                "output_dir"
            ) from error
        except OSError as error:
            file.close()
            return (
                f"the file system of {path.parent} has no locks ({error.strerror or error}): nothing keeps a second "
                "run from writing there at the same time"
            )
        if _is_at(file, path):
            _held[path] = file
            with contextlib.suppress(OSError):  # whose lock it is serves only a sentence
                os.truncate(file.fileno(), 0)
                os.write(file.fileno(), f"process {os.getpid()} on {os.uname().nodename}".encode())
        else:  # taken from a process that removed it on leaving
            file.close()
    return None


def release(path: Path) -> None:
    """Give a lock back and remove its file; nothing happens where it is not held."""
    file = _held.pop(path.absolute(), None)
    if file is not None:
        with contextlib.suppress(OSError):  # removed first: who opened it in between sees that it is gone
            path.unlink(missing_ok=True)
        file.close()


def _holder(file: TextIO) -> str:
    try:
        file.seek(0)
        return file.read(200).strip() or "of unknown number"
    except (OSError, ValueError):
        return "of unknown number"


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _forget() -> None:
    """In a forked child, such as a loader's worker: it must not keep the lock when its parent is killed."""
    for file in _held.values():
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_forget)
