"""How good one answer is: exact match, F1 and ROUGE-L over tokens, verified mathematics."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import regex

from dataflex.evaluate.mathematics import math

_CJK = r"[\p{Han}\u3040-\u30ff\uac00-\ud7af]"
_WORD = rf"[[\p{{L}}\p{{N}}\p{{M}}]--{_CJK}]"  # marks too: the vowels of Hindi are some
_SIGN = rf"(?<!{_WORD})-(?=\d)"  # of -5, not of 3-5
_POINT = r"(?<=\d)\.(?=\d)"
# Letters and digits of a word together; of scripts without spaces each character alone.
_TOKENS = regex.compile(rf"(?V1){_CJK}\p{{M}}*|(?:{_SIGN})?{_WORD}+(?:{_POINT}{_WORD}+)*")
# Inside a word: apostrophes, the commas of 1,000,000, and characters that only say how others are joined.
_INNER = regex.compile(r"(?<=\p{L})['’](?=\p{L})|(?<=\d),(?=\d{3}(?!\d))|\p{Cf}")


def tokens(text: str) -> list[str]:
    """Words and numbers in lower case, and single characters of Chinese, Japanese and Korean.

    >>> tokens("The answer: -4.5, don't 是 四十")
    ['the', 'answer', '-4.5', 'dont', '是', '四', '十']
    """
    plain = unicodedata.normalize("NFKC", text).lower().replace("\N{MINUS SIGN}", "-")
    return _TOKENS.findall(_INNER.sub("", plain))


def exact_match(answer: str, right: str) -> float:
    """1 where both are the same text, spaces at either end aside."""
    return float(answer.strip() == right.strip())


def f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall of the tokens as bags (as of SQuAD, arXiv 1606.05250).

    Departures: articles stay, punctuation parts words, numbers keep their sign and point, and where one side has no
    token at all, such as "+" or an emoji, both are compared as texts.

    >>> round(f1("the red fox", "a red fox"), 4)
    0.6667
    """
    said, wanted = tokens(answer), tokens(right)
    if not said or not wanted:
        return exact_match(answer, right)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def rouge_l(answer: str, right: str) -> float:
    """F-measure of the longest common subsequence of the tokens (Lin 2004), 0 where one side has none."""
    said, wanted = tokens(answer), tokens(right)
    return 2 * _longest_common(said, wanted) / (len(said) + len(wanted)) if said and wanted else 0.0


def _longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, by whole numbers as rows of bits (Hyyrö 2004).

    A table in Python takes seconds for two texts of 800 characters.

    >>> _longest_common("abcbdab", "bdcaba")
    4
    """
    places: defaultdict[str, int] = defaultdict(int)
    for i, token in enumerate(left):
        places[token] |= 1 << i
    whole = (1 << len(left)) - 1
    row = whole  # a 0 at i: the subsequence grows by left[i]
    for token in right:
        found = row & places.get(token, 0)
        row = ((row + found) | (row - found)) & whole
    return len(left) - row.bit_count()


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "rouge_l": rouge_l,
    "math": math,
}
NEEDS = {"math": "math_verify"}
# What scores, intervals and tasks depend on, but answers and losses do not: another version of these makes no new ones.
PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy", "scipy", "lm_eval")


def score(metric: str, answers: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """One number a row, float64."""
    of = METRICS[metric]
    return np.array([of(said, wanted) for said, wanted in zip(answers, right, strict=True)], dtype=np.float64)
