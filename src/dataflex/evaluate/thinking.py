"""The thoughts that a reasoning model writes before its answer, and the answer without them."""

from __future__ import annotations

import re

THINK = ("<think>", "</think>")
NO_THOUGHTS = re.compile(r"\s*(?:<think>)?\s*</think>\s*")  # as templates put it before an answer that has none


def spoken(text: str, words: tuple[str, str] = THINK) -> str:
    """The text after its last thoughts; thoughts that do not end lead to no answer.

    Args:
        words: how thoughts begin and end.

    >>> spoken("<think>\\n6 * 7\\n</think>\\n\\n42"), spoken("42"), spoken("<think>\\n6 * ")
    ('42', '42', '')
    """
    opening, closing = words
    _, ended, rest = text.rpartition(closing)
    if ended:
        return rest.lstrip()
    return "" if text.lstrip().startswith(opening) else text
