"""How good one answer is: exact match, F1 and ROUGE-L over tokens, verified mathematics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from dataflex.evaluate.mathematics import math

# Letters and digits of a word together; of scripts without spaces each character alone.
_TOKENS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


def tokens(text: str) -> list[str]:
    """Words in lower case, and single characters of Chinese, Japanese and Korean.

    >>> tokens("The answer: 42 是 四十")
    ['the', 'answer', '42', '是', '四', '十']
    """
    return _TOKENS.findall(text.lower())


def exact_match(answer: str, right: str) -> float:
    """1 where both are the same text, spaces at either end aside."""
    return float(answer.strip() == right.strip())


def f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall of the tokens as bags (SQuAD, arXiv 1606.05250).

    >>> round(f1("the red fox", "a red fox"), 4)
    0.6667
    """
    said, wanted = tokens(answer), tokens(right)
    common = sum((Counter(said) & Counter(wanted)).values())
    if not said or not wanted:
        return float(said == wanted)
    return 2 * common / (len(said) + len(wanted))


def rouge_l(answer: str, right: str) -> float:
    """F-measure of the longest common subsequence of tokens (Lin 2004), by the library ``rouge_score``."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_RougeTokens()).score(right, answer)["rougeL"].fmeasure


class _RougeTokens:
    """The library's own tokens are of a to z and 0 to 9 only: a Chinese text has none of them."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "rouge_l": rouge_l,
    "math": math,
}
NEEDS = {"rouge_l": "rouge_score", "math": "math_verify"}
# What scores, intervals and tasks depend on, but answers and losses do not: another version of these makes no new ones.
PACKAGES = ("math-verify", "latex2sympy2_extended", "sympy", "rouge-score", "scipy", "lm_eval")


def score(metric: str, answers: Sequence[str], right: Sequence[str]) -> np.ndarray:
    """One number a row, float64."""
    of = METRICS[metric]
    return np.array([of(said, wanted) for said, wanted in zip(answers, right, strict=True)], dtype=np.float64)
