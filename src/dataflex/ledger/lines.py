"""The lines of a ledger file: each sealed by its own checksum and by the hash of the line before it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.core.errors import LedgerError
from dataflex.ledger.files import RESTORE, append_line, writing

_SEAL = re.compile(rb', "checksum": "([0-9a-f]{64})"\}\Z')


def seal(content: Mapping[str, Any], previous: str) -> bytes:
    """The text of a line, without its line end; the checksum, its last key, is over the text without that key.

    Raises:
        LedgerError: the content is no JSON.
    """
    whole = {**content, "previous": previous}
    try:
        try:
            body = json.dumps(whole, ensure_ascii=False, allow_nan=False, default=_plain).encode("utf-8")
        except UnicodeEncodeError:  # a path may hold bytes that are no UTF-8
            body = json.dumps(whole, allow_nan=False, default=_plain).encode("ascii")
    except ValueError as error:
        raise LedgerError(
            f"a ledger line holds what JSON does not have ({error}); notes must be JSON values"
        ) from error
    return body[:-1] + b', "checksum": "' + digest(body).encode() + b'"}'


def digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


@dataclass(frozen=True)
class Read:
    """A line as it was read: its content, None where it is no JSON object, and what is wrong with it."""

    content: dict[str, Any] | None
    problem: str | None
    follows: bool  # on the line before


def unseal(text: bytes, previous: str | None) -> Read:
    """Read one line and verify it; ``previous`` is the hash that it must carry, None where that is not known."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # of JSON or of UTF-8
        return Read(None, "it is no JSON", True)
    if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
        return Read(None, "it has no 'kind'", True)
    follows = previous is None or content.get("previous") == previous
    sealed = _SEAL.search(text)
    if sealed is None:
        return Read(content, "its checksum is missing", follows)
    if digest(text[: sealed.start()] + b"}") != sealed.group(1).decode():
        return Read(content, "it was changed since it was written: its checksum does not match", follows)
    return Read(content, None, follows)


def complete_lines(data: bytes) -> list[bytes]:
    """The lines of a file without their ends; an unfinished last one (a kill while writing) does not count."""
    # Split at \n alone: bytes.splitlines would also split at \r.
    return data.split(b"\n")[:-1]


@dataclass
class _Verified:
    """What is known of the file as it was when ``stamp`` was taken."""

    stamp: tuple[int, ...] | None = None
    size: int = 0  # bytes of the complete lines
    last: str | None = None  # hash that the next line must carry, where it is known
    lines: list[dict[str, Any]] = field(default_factory=list)
    in_force: dict[int, dict[str, Any]] = field(default_factory=dict)

    def take(self, content: dict[str, Any], text: bytes) -> None:
        self.size += len(text) + 1
        self.last = digest(text)
        self.lines.append(content)
        if content["kind"] == "rollback":
            first = content["from_segment"]
            for segment in [segment for segment in self.in_force if segment >= first]:
                del self.in_force[segment]
        elif content["kind"] == "segment":
            self.in_force[content["segment"]] = content


class Lines:
    """The verified lines of one file.

    The file is read and verified once and again whenever it was changed by somebody else (other size, inode or time);
    what this object appends it knows already. So a decision costs the same however long the run is.
    """

    def __init__(self, path: Path, anchor: Callable[[], str | None]) -> None:
        """
        Args:
            anchor: the hash that the first line must carry, None where it cannot be known.
        """
        self.path, self._anchor = path, anchor
        self._verified = _Verified()

    def verified(self) -> _Verified:
        """The lines as they are on the disk now.

        Raises:
            LedgerError: a line is damaged, changed, missing or out of order.
        """
        stamp = self._stamp()
        if self._verified.stamp is None or stamp != self._verified.stamp:
            self._verified = self._read(stamp)
        return self._verified

    def append(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write one line behind the others and return it as it will be read.

        Raises:
            LedgerError: the lines before it are damaged, or it cannot be written.
        """
        known = self.verified()
        text = seal(content, (known.last if known.lines else self._anchor()) or digest(b""))
        if self.path.exists() and self.path.stat().st_size > known.size:
            with writing(self.path):
                os.truncate(self.path, known.size)  # an unfinished line of a killed process
        append_line(self.path, text)
        written = json.loads(text)
        known.take(written, text)
        known.stamp = self._stamp()
        return written

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = self.path.stat()
        except OSError:
            return ()
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def _read(self, stamp: tuple[int, ...]) -> _Verified:
        fresh = _Verified(stamp=stamp)
        if not stamp:
            return fresh
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be read ({error.strerror or error}); {RESTORE}") from error
        fresh.last = self._anchor()
        for number, text in enumerate(complete_lines(data), start=1):
            read = unseal(text, fresh.last)
            problem = read.problem
            if problem is None and not read.follows:
                problem = not_following(number)
            if problem is not None or read.content is None:
                raise LedgerError(f"line {number} of {self.path} is damaged: {problem}; {RESTORE}")
            try:
                fresh.take(read.content, text)
            except (KeyError, TypeError) as error:
                raise LedgerError(f"line {number} of {self.path} is damaged: it names no segment; {RESTORE}") from error
        return fresh


def not_following(number: int) -> str:
    """What is wrong with a line that does not carry the hash of the one before it."""
    if number == 1:
        return "it is not the first line of this run: lines before it are missing, or they belong to another run"
    return f"it does not follow line {number - 1}: a line between them was removed, inserted or moved"


def _plain(value: Any) -> Any:
    """A numpy number as Python's own, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise LedgerError(f"a note holds {type(value).__name__} {value!r}; notes must be JSON values")
