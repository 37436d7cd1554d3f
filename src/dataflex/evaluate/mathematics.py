r"""Whether an answer and a reference say the same number, set or expression, by the library ``math-verify``.

The library finds LaTeX only between delimiters and numbers only where a word begins. Of ``2\sqrt{3}`` it reads the 2,
of ``答案是42`` nothing: a reference is therefore read whole first, and texts get the spaces that Chinese does not
write.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_DELIMITER = re.compile(r"(?<!\\)\$|\\boxed|\\fbox|\\\(|\\\[")
# A number as the library reads it outside of LaTeX: inside, "1 000" would be a product, and of "50 %" only 50 is read.
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:[ ,]\d{3})+|\d+)?(?:[.,]\d+)?\s*%?\.?")
_NAMED = re.compile(r"\\(?:text|mathrm|mbox|begin|end)\s*{[^{}]*}")
_COMMAND = re.compile(r"\\[A-Za-z]+|\\.")
_FUNCTIONS = "arccos|arcsin|arctan|cos|cot|exp|infty|ln|log|pi|sin|tan"
_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])")
_SQRT = re.compile(r"(?<![\\A-Za-z])sqrt(?![A-Za-z])")  # which the library knows without a backslash
_MIXED = re.compile(r"(-?\d+)\s+(\d+)/(\d+)")
_EXPONENT = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[eE]([-+]?\d+)(?![A-Za-z\d.])")
_CJK = r"\u3001-\u303f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef"
_PROSE = re.compile(rf"[^\W\d_]{{2,}}|[{_CJK}]")
_SEAM = re.compile(rf"(?<=[{_CJK}])(?=[^\s{_CJK}])|(?<=[^\s{_CJK}])(?=[{_CJK}])|(?<=[^\W\d]:)(?=[-\d])")
_FULL_WIDTH = str.maketrans({0xFF01 + i: 0x21 + i for i in range(94)})


def math(answer: str, right: str) -> float:
    """1 where both say the same number, set or expression, or are the same text."""
    if answer.strip() == right.strip():
        return 1.0
    from math_verify import verify

    wanted = _parsed(right.strip())
    return float(bool(wanted) and bool(verify(list(wanted), list(_parsed(answer.strip())))))


def is_readable(right: str) -> bool:
    """False for a reference without a number or an expression: only the same text counts as right there."""
    return bool(_parsed(right.strip()))


@lru_cache(maxsize=2**14)
def _parsed(text: str) -> tuple[Any, ...]:
    """What the library makes of a text; () where it is only a text to it."""
    from math_verify import LatexExtractionConfig, parse

    found = []
    if _is_expression(text):
        found = parse(f"${_as_latex(text)}$", [LatexExtractionConfig()])
    spaced = _SEAM.sub(" ", text.translate(_FULL_WIDTH))
    if not _read(found):
        found = parse(spaced)
    if not _read(found) and (bare := re.sub(f"[{_CJK}]", " ", spaced)) != spaced:
        found = parse(bare)  # of a unit inside a \\boxed{42元}, the library reads nothing
    return tuple(found) if _read(found) else ()


def _read(found: list[Any]) -> bool:
    """The library gives a text that it cannot read back as it is."""
    return any(not isinstance(part, str) for part in found)


def _is_expression(text: str) -> bool:
    r"""True where a whole text is an expression without delimiters.

    >>> [_is_expression(text) for text in (r"2\sqrt{3}", "p - q", "2*pi", "42", "42 apples", "$x$")]
    [True, True, True, False, False, False]
    """
    if not text or "\n" in text or _DELIMITER.search(text) or _NUMBER.fullmatch(text):
        return False
    bare = text
    for known in (_NAMED, _COMMAND, _FUNCTION, _SQRT):
        bare = known.sub(" ", bare)
    return not _PROSE.search(bare)


def _as_latex(text: str) -> str:
    r"""
    >>> [_as_latex(text) for text in ("2*pi", "2 1/2", "1.5e3")]
    ['2*\\pi', '2\\frac{1}{2}', '1.5 \\cdot 10^{3}']
    """
    if mixed := _MIXED.fullmatch(text):
        return "{}\\frac{{{}}}{{{}}}".format(*mixed.groups())
    if _NAMED.search(text):
        return text  # "\\text{log}" is no function
    return _FUNCTION.sub(r"\\\1", _EXPONENT.sub(r"\1 \\cdot 10^{\2}", text))
