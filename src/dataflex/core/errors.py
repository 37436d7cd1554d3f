"""Errors that one sentence explains: the value, the limit, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DataFlexError(Exception):
    """A condition that the user can mend; commands print its one sentence and exit with code 2."""

    told_by_another_rank = False  # True where the error was raised on another rank, which prints it


class ConfigError(DataFlexError):
    """A key, a value or a combination of them that cannot be served."""


class LedgerError(DataFlexError):
    """A run directory whose record is damaged, foreign or incomplete."""


def shown(value: object, limit: int = 200) -> str:
    """Return ``repr(value)`` as a sentence can hold it: cut when long, described when Python refuses to print it.

    >>> shown("a" * 500, limit=12)
    "'aaaaa…aaaa'"
    """
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits, or something that holds one
        text = f"a {type(value).__name__} too long to print"
    except RecursionError:
        text = f"a {type(value).__name__} nested too deeply to print"
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[: limit - 1 - half]}…{text[-half:]}"


def did_you_mean(word: object, candidates: Iterable[object]) -> str:
    """Return " (did you mean 'x'?)" for the nearest candidate, or "" when none is near.

    >>> did_you_mean("warmup_steps", ["warmup_step", "update_step"])
    " (did you mean 'warmup_step'?)"
    """
    names = [c if isinstance(c, str) else shown(c) for c in candidates]
    near = difflib.get_close_matches(word[:100] if isinstance(word, str) else shown(word), names, n=1, cutoff=0.6)
    return f" (did you mean {shown(near[0])}?)" if near else ""
