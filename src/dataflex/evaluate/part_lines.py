"""A part that grows row by row: a first line that says what it depends on, then a line for each finished row."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.ledger.files import write_atomic
from dataflex.ledger.lines import complete_lines


def read(part: Path, identity: str) -> dict[int, Any]:
    """Values by row; {} where the part is missing, damaged, or of another identity."""
    try:
        lines = [json.loads(line) for line in complete_lines(part.read_bytes())]
        if not lines or lines[0].get("identity") != identity:
            return {}
        return {int(line["row"]): line["value"] for line in lines[1:]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def begin(part: Path, identity: str) -> dict[int, Any]:
    """Values by row that are there; a part without any is begun anew."""
    found = read(part, identity)
    if not found:
        part.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(part, json.dumps({"identity": identity}).encode() + b"\n")
    return found


def append(part: Path, values: Mapping[int, Any]) -> None:
    """Whole lines, on the disk; an unfinished one, as a kill leaves it, is cut off first."""
    kept = sum(len(line) + 1 for line in complete_lines(part.read_bytes()))
    lines = [{"row": row, "value": value} for row, value in values.items()]
    with part.open("r+b") as file:
        file.truncate(kept)
        file.seek(kept)
        file.write(b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
