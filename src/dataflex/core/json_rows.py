"""Rows of a .json or .jsonl file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENDINGS = (".json", ".jsonl")


def json_lines(text: str) -> list[str]:
    """The lines that hold something; not ``splitlines``, which cuts at characters that may stand in a JSON string."""
    return [line for line in text.split("\n") if line.strip()]


def read_json(path: Path) -> Any:
    """What the file holds: a list of rows, where it is as it should be; one row a line is one whatever the ending.

    Raises:
        OSError, ValueError, RecursionError: it cannot be read, or is no JSON.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in json_lines(text)]
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            return [json.loads(line) for line in json_lines(text)]
        except ValueError:
            raise error from None  # what is wrong with it as the file that its name says
