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


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest candidate, or "" when none is near.

    >>> did_you_mean("warmup_steps", ["warmup_step", "update_step"])
    " (did you mean 'warmup_step'?)"
    """
    near = difflib.get_close_matches(str(word), [str(c) for c in candidates], n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
