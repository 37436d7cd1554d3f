"""The checks that every order must pass."""

import dataclasses
from typing import Any

import numpy as np

from dataflex.algorithms.base import Order
from dataflex.core.seeds import segment_rng
from dataflex.testing.selectors import read_only
from dataflex.testing.values import check_value, described


@dataclasses.dataclass(frozen=True)
class OrderCase:
    """An order. ``by_chance``: rows may change places by chance."""

    order: Any
    by_chance: bool = False

    def __repr__(self) -> str:
        return described(self.order)

    def arrange(self, scores_Q: np.ndarray, seed: int = 0) -> np.ndarray:
        """The permutation, from read-only scores."""
        return self.order.arrange(read_only(scores_Q), segment_rng(seed, 0, "order"))


class OrderSuite:
    """The checks; a subclass provides the fixture ``case``."""

    SCORES = np.random.default_rng(3).permutation(37) / 7

    def test_it_is_a_frozen_value_that_serves_the_protocol_and_names_its_source(self, case):
        check_value(case.order, Order)

    def test_it_is_a_permutation_whatever_the_number_of_rows(self, case):
        for n in (0, 1, 2, 3, 7, 37, 200):
            arranged = case.arrange(np.random.default_rng(n).random(n))
            assert arranged.dtype == np.int64
            assert sorted(arranged.tolist()) == list(range(n))

    def test_scores_that_are_all_equal_or_no_numbers_are_a_permutation_too(self, case):
        for scores_Q in (
            np.ones(12),
            np.full(12, np.nan),
            np.array([np.nan, 1, np.inf, 2, -np.inf, 2, 3, 0, 1, 5, 1, 1]),
        ):
            assert sorted(case.arrange(scores_Q).tolist()) == list(range(12))

    def test_rows_without_a_score_come_last_in_their_order(self, case):
        if getattr(case.order, "jitter", 0) > 1:
            return  # the last block is shuffled as any other
        scores_Q = self.SCORES.copy()
        scores_Q[[2, 30, 11]] = np.nan, np.inf, -np.inf
        arranged = case.arrange(scores_Q)
        assert arranged[-3:].tolist() == [2, 11, 30]

    def test_the_same_arguments_give_the_same_result_and_only_chance_needs_the_seed(self, case):
        assert np.array_equal(case.arrange(self.SCORES), case.arrange(self.SCORES))
        differs = not np.array_equal(case.arrange(self.SCORES), case.arrange(self.SCORES, seed=1))
        assert differs == case.by_chance

    def test_permuting_the_rows_shows_the_same_rows_at_the_same_places(self, case):
        order = np.random.default_rng(1).permutation(37)
        plain, permuted = case.arrange(self.SCORES), case.arrange(self.SCORES[order])
        if getattr(case.order, "jitter", 0) > 1:  # a block is shuffled by place
            assert np.array_equal(np.argsort(self.SCORES[plain]), np.argsort(self.SCORES[order[permuted]]))
        assert np.array_equal(plain, order[permuted])

    def test_only_the_ranks_of_the_scores_count(self, case):
        assert np.array_equal(case.arrange(self.SCORES), case.arrange(np.exp(self.SCORES)))

    def test_hard_first_is_easy_first_of_the_negated_scores(self, case):
        flipped = {"easy_first": "hard_first", "hard_first": "easy_first"}[case.order.polarity]
        other = dataclasses.replace(case.order, polarity=flipped)
        assert np.array_equal(case.arrange(self.SCORES), other.arrange(-self.SCORES, segment_rng(0, 0, "order")))
