"""Scores of answers and their intervals, against brute-force twins; no model."""

from __future__ import annotations

import itertools
import types
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.evaluate.intervals import Bootstrap, difference_interval, mean_interval, ratio_interval
from dataflex.evaluate.mathematics import is_readable
from dataflex.evaluate.questions import Question
from dataflex.evaluate.results import choice_scores, judged
from dataflex.evaluate.scores import exact_match, f1, rouge_l, score, tokens

words = st.lists(st.sampled_from(["a", "b", "c", "是", "四"]), max_size=6).map(" ".join)


def longest_common(left: list[str], right: list[str]) -> int:
    """By trying every subsequence."""
    for size in range(min(len(left), len(right)), 0, -1):
        theirs = set(itertools.combinations(right, size))
        if any(picked in theirs for picked in itertools.combinations(left, size)):
            return size
    return 0


@given(words, words)
def test_rouge_l_is_the_longest_common_subsequence(said: str, right: str) -> None:
    left, other = tokens(said), tokens(right)
    common = longest_common(left, other)
    expected = 0.0
    if common:
        precision, recall = common / len(left), common / len(other)
        expected = 2 * precision * recall / (precision + recall)
    assert rouge_l(said, right) == pytest.approx(expected)


texts = st.text(st.sampled_from("ab c是四-5.'é+✓"), max_size=30)


@given(texts, texts)
def test_rouge_l_is_that_of_the_package(said: str, right: str) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    tokenizer = types.SimpleNamespace(tokenize=tokens)  # its own knows a to z and 0 to 9 only
    theirs = scorer.RougeScorer(["rougeL"], tokenizer=tokenizer).score(right, said)["rougeL"].fmeasure
    assert rouge_l(said, right) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        ("+", "-", 0),
        ("", "+", 0),
        ("😀", "✓", 0),
        ("✓ ", "✓", 1),
        ("", "", 1),
        ("-5", "5", 0),
        ("结果为-5", "结果为5", 6 / 8),
        ("−5", "-5", 1),
        ("3-5", "3 5", 1),
        ("3.5", "5.3", 0),
        ("1,000", "1000", 1),
        ("don't", "dont", 1),
        ("don’t", "don't", 1),
        ("４２", "42", 1),
        ("café", "café", 1),
        ("कि", "की", 0),
        ("की", "की", 1),
        ("が", "が", 1),
    ],
)
def test_f1_of_signs_marks_and_texts_without_words(said: str, right: str, expected: float) -> None:
    assert f1(said, right) == expected


@given(words, words)
def test_f1_is_the_harmonic_mean_over_bags(said: str, right: str) -> None:
    left, other = Counter(tokens(said)), Counter(tokens(right))
    common = sum(min(left[word], other[word]) for word in left)
    if not left or not other:
        assert f1(said, right) == float(left == other)
    else:
        p, r = common / left.total(), common / other.total()
        assert f1(said, right) == pytest.approx(2 * p * r / (p + r) if common else 0.0)


def test_chinese_is_counted_by_character() -> None:
    assert tokens("天空是蓝色的") == list("天空是蓝色的")
    assert 0 < f1("天空是蓝的", "天空是蓝色的") < 1
    assert 0 < rouge_l("天空是蓝的", "天空是蓝色的") < 1


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        (" 42\n", "42", (1, 1)),
        ("42.0", "42", (0, 1)),
        (r"The answer is \boxed{\frac{1}{2}}", "0.5", (0, 1)),
        ("41", "42", (0, 0)),
        ("", "42", (0, 0)),
    ],
)
def test_exact_match_and_mathematics(said: str, right: str, expected: tuple[int, int]) -> None:
    assert (exact_match(said, right), score("math", [said], [right])[0]) == expected


@pytest.mark.parametrize(
    ("said", "right", "expected"),
    [
        # Of LaTeX without delimiters, the library reads the first number, or nothing.
        ("3", r"\left( 3, \frac{\pi}{2} \right)", 0),
        (r"$\left(3,\frac{\pi}{2}\right)$", r"\left( 3, \frac{\pi}{2} \right)", 1),
        ("the answer is 2", r"2\sqrt{3}", 0),
        (r"\boxed{2\sqrt{3}}", r"2\sqrt{3}", 1),
        (r"\boxed{3\sqrt{2}}", r"2\sqrt{3}", 0),
        ("3", "3^{5}", 0),
        ("243", "3^{5}", 1),
        (r"\boxed{\sqrt{2}}", r"\sqrt{2}", 1),
        (r"\sqrt{2}", r"\sqrt{2}", 1),
        ("sqrt(2)", r"\sqrt{2}", 1),
        (r"\sqrt{3}", r"\sqrt{2}", 0),
        ("p - q", "p - q", 1),
        ("$p-q$", "p - q", 1),
        ("q - p", "p - q", 0),
        ("x = 2", "2x", 0),
        ("10", "10!", 0),
        ("2", "2*pi", 0),
        (r"The result: $2\pi$.", "2*pi", 1),
        ("1.5", "1.5e3", 0),
        ("1500", "1.5e3", 1),
        ("1", "2 1/2", 0),
        ("2.5", "2 1/2", 1),
        ("4", "(3, 4)", 0),
        ("(3,4)", "(3, 4)", 1),
        ("4", "3, 4", 0),
        ("$3$ and $4$", "3, 4", 1),
        ("2", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", 0),
        ("5", "x = 5", 1),
        ("6", "x = 5", 0),
        # Numbers, as the library reads them outside of LaTeX.
        ("1000", "1 000", 1),
        ("70000", "70,000", 1),
        ("0.5", "50%", 1),
        ("$0.5$", r"50\%", 1),
        ("5", r"\$5", 1),
        ("$42", "42", 1),
        ("42", r"42\text{ apples}", 1),
        ("5", r"5 \text{ min}", 1),
        ("Answer:42", "42", 1),
        ("Answer:-42", "42", 0),
        # Chinese writes no spaces.
        ("答案是42。", "42", 1),
        ("答案是43。", "42", 0),
        ("结果为42", "42", 1),
        ("结果为-42", "42", 0),
        ("答案：42", "42", 1),
        ("一共有42元", "42", 1),
        ("答案是４２", "42", 1),
        ("答案是3/4。", "0.75", 1),
        (r"所以$\frac{1}{2}$是答案", "0.5", 1),
        (r"\boxed{42元}", "42", 1),
        (r"\boxed{41元}", "42", 0),
        ("共41元", "42元", 0),
        ("答案是二", "42", 0),
        # Texts without mathematics.
        ("yes ", "yes", 1),
        ("yes", "no", 0),
        ("5", "Yes", 0),
        ("", "3", 0),
    ],
)
def test_mathematics_is_read_whole_and_in_chinese(said: str, right: str, expected: int) -> None:
    assert score("math", [said], [right])[0] == expected


def test_a_reference_without_mathematics_is_known() -> None:
    assert [is_readable(text) for text in ("42", "p - q", "42元", "yes", "天空", "")] == [True] * 3 + [False] * 3


def test_intervals_are_percentiles_of_means_of_redrawn_rows() -> None:
    rng = np.random.default_rng(0)
    values_N = rng.random(40)
    found = mean_interval(values_N, Bootstrap(resamples=4000, seed=1))
    means = [values_N[rng.integers(0, 40, 40)].mean() for _ in range(4000)]
    assert found.value == pytest.approx(values_N.mean())
    assert found.low is not None
    assert found.high is not None
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, [0.025, 0.975]), atol=0.01)
    assert found == mean_interval(values_N, Bootstrap(resamples=4000, seed=1)), "the seed decides"


def test_a_loss_draws_rows_with_all_their_tokens() -> None:
    rng = np.random.default_rng(0)
    tokens_N = rng.integers(1, 50, 30).astype(float)
    sums_N = tokens_N * rng.random(30)
    found = ratio_interval(sums_N, tokens_N, Bootstrap(resamples=4000))
    drawn = [rng.integers(0, 30, 30) for _ in range(4000)]
    ratios = [sums_N[rows].sum() / tokens_N[rows].sum() for rows in drawn]
    assert found.value == pytest.approx(sums_N.sum() / tokens_N.sum())
    assert found.low is not None
    assert found.high is not None
    np.testing.assert_allclose([found.low, found.high], np.quantile(ratios, [0.025, 0.975]), atol=0.015)


def test_a_difference_over_the_same_rows_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    hard_N = rng.random(200)
    ours, theirs, ones = hard_N + 0.01, hard_N, np.ones(200)
    paired = difference_interval((ours, ones), (theirs, ones), Bootstrap())
    assert paired.value == pytest.approx(0.01)
    assert paired.low == pytest.approx(0.01)
    assert paired.high == pytest.approx(0.01)
    alone = mean_interval(ours, Bootstrap())
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high - alone.low > 0.05


def test_one_row_has_no_interval_and_equal_rows_have_none_either() -> None:
    assert mean_interval(np.array([0.5]), Bootstrap()).low is None
    same = mean_interval(np.ones(9), Bootstrap())
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)


def test_choices_are_judged_by_likelihood_and_by_likelihood_a_character() -> None:
    questions = [
        Question(text="", answer="ab", choices=("ab", "abcdefgh"), right=0),
        Question(text="", answer="b", choices=("a", "b"), right=1),
    ]
    sums = np.array([4.0, 5.0, 2.0, 1.0])
    found = choice_scores(sums, questions)
    assert found["acc"][0].tolist() == [1.0, 1.0]
    assert found["acc_norm"][0].tolist() == [0.0, 1.0], "4/2 against 5/8"


def test_what_the_judge_did_not_say_is_not_counted() -> None:
    sums_N, counts_N = judged(np.array([1.0, 0.0, np.nan]))
    assert sums_N.sum() / counts_N.sum() == 0.5
