"""The checks that every weigher must pass."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dataflex.algorithms.base import State, TrainedBatch, Weigher
from dataflex.algorithms.weigh.apply import weigh
from dataflex.testing.selectors import frozen_state, read_only, saved_and_loaded
from dataflex.testing.values import check_value, described, same_arrays

NUM_STEPS = 6


@dataclasses.dataclass(frozen=True)
class WeigherCase:
    """A weigher and what is known of it.

    ``over_window``: it compares a row with the steps before, not with its micro-batch, so that cutting a step into
    other micro-batches changes nothing. ``mean_one``: its coefficients average to 1 over a micro-batch.
    ``ranks_by_row``: of equal tokens the first row's are kept. ``given``: state that the trainer adds.
    """

    weigher: Any
    over_window: bool = False
    mean_one: bool = False
    ranks_by_row: bool = False
    given: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return described(self.weigher)


def batch_of(num_rows: int, step: int, seed: int = 0) -> TrainedBatch:
    """Rows of 1 to 5 label tokens, all different."""
    rng = np.random.default_rng([seed, step])
    tokens_B = rng.integers(1, 6, num_rows)
    token_losses_BxT = np.where(np.arange(5) < tokens_B[:, None], rng.gamma(2.0, 0.7, (num_rows, 5)), np.nan)
    vectors_BxE = rng.standard_normal((num_rows, 3))
    return TrainedBatch(
        losses_B=read_only(np.nanmean(token_losses_BxT, axis=1)),
        tokens_B=read_only(tokens_B),
        step=step,
        num_steps=NUM_STEPS,
        columns_B={"weight": read_only(rng.random(num_rows) * 3)},
        token_losses_BxT=read_only(token_losses_BxT),
        reference_losses_BxT=read_only(token_losses_BxT * rng.random((num_rows, 5)) * 1.5),
        embeddings_BxE=read_only(vectors_BxE / np.linalg.norm(vectors_BxE, axis=1, keepdims=True)),
    )


def take(batch: TrainedBatch, rows: np.ndarray) -> TrainedBatch:
    """The batch that holds ``rows`` of this one, in that order."""
    return dataclasses.replace(
        batch,
        losses_B=read_only(batch.losses_B[rows]),
        tokens_B=read_only(batch.tokens_B[rows]),
        columns_B={name: read_only(values_B[rows]) for name, values_B in batch.columns_B.items()},
        **{
            name: None if values is None else read_only(values[rows])
            for name in ("token_losses_BxT", "reference_losses_BxT", "embeddings_BxE")
            for values in [getattr(batch, name)]
        },
    )


def with_bad_rows(batch: TrainedBatch) -> TrainedBatch:
    """Row 0 has no finite loss, row 1 no label token."""
    losses_B, tokens_B = batch.losses_B.copy(), batch.tokens_B.copy()
    token_losses_BxT = np.array(batch.token_losses_BxT)
    losses_B[:2], tokens_B[1], token_losses_BxT[:2] = np.nan, 0, np.nan
    return dataclasses.replace(batch, losses_B=losses_B, tokens_B=tokens_B, token_losses_BxT=token_losses_BxT)


def coefficients(weights) -> np.ndarray:
    """c_it, or c_i as one column."""
    by_token_BxT = weights.token_weights_BxT
    return weights.weights_B[:, None] * (1.0 if by_token_BxT is None else by_token_BxT)


def run_weigher(
    case: WeigherCase,
    batches: list[TrainedBatch],
    *,
    warmup_step: int = 0,
    between: Callable[[State], State] = frozen_state,
) -> tuple[list[np.ndarray], State]:
    """Coefficients of each micro-batch, and the last state."""
    state, made = between({**case.weigher.init(), **case.given}), []
    for batch in batches:
        weights, state = weigh(case.weigher, state, batch, warmup_step)
        json.dumps(weights.notes, allow_nan=False)
        state = between(state)
        made.append(coefficients(weights))
    return made, state


class WeigherSuite:
    """The checks; a subclass provides the fixture ``case``. Inputs are read-only in all of them."""

    BATCHES = tuple(batch_of(8, step) for step in range(NUM_STEPS))

    def test_it_is_a_frozen_value_that_serves_the_protocol_and_names_its_source(self, case):
        check_value(case.weigher, Weigher)
        assert case.weigher.needs <= {"loss", "token_loss", "reference_token_loss", "embedding", "column"}

    def test_coefficients_are_finite_and_not_negative_and_not_all_zero(self, case):
        for c in run_weigher(case, list(self.BATCHES))[0]:
            assert c.shape[0] == 8
            assert np.all(np.isfinite(c) & (c >= 0))
            assert c.any()

    def test_the_same_arguments_give_the_same_result(self, case):
        (ones, state), (others, other_state) = (run_weigher(case, list(self.BATCHES)) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(ones, others, strict=True))
        assert same_arrays(state, other_state)

    def test_a_run_that_is_saved_and_loaded_after_every_micro_batch_goes_on_as_if_nothing_had_happened(self, case):
        (ones, state), (others, other_state) = (
            run_weigher(case, list(self.BATCHES), between=between) for between in (frozen_state, saved_and_loaded)
        )
        assert all(np.array_equal(a, b) for a, b in zip(ones, others, strict=True))
        assert same_arrays(state, other_state)

    def test_permuting_the_rows_permutes_the_coefficients(self, case):
        order = np.random.default_rng(1).permutation(8)
        plain = run_weigher(case, list(self.BATCHES))[0]
        permuted = run_weigher(case, [take(batch, order) for batch in self.BATCHES])[0]
        for one, other in zip(plain, permuted, strict=True):
            np.testing.assert_allclose(one[order], other, rtol=1e-12)

    def test_equal_rows_count_the_same(self, case):
        if case.ranks_by_row:
            return
        twice = [take(batch, np.array([0, 1, 2, 3, 0, 1, 2, 3])) for batch in self.BATCHES]
        for c in run_weigher(case, twice)[0]:
            assert np.array_equal(c[:4], c[4:])

    def test_a_row_without_a_loss_counts_nothing_and_changes_nothing_else(self, case):
        bad = [with_bad_rows(batch) for batch in self.BATCHES]
        without = [take(batch, np.arange(2, 8)) for batch in self.BATCHES]
        for one, other in zip(run_weigher(case, bad)[0], run_weigher(case, without)[0], strict=True):
            assert not one[:2].any()
            np.testing.assert_allclose(one[2:], other, rtol=1e-12)

    def test_a_batch_without_any_loss_counts_nothing_and_breaks_nothing(self, case):
        lost = with_bad_rows(take(self.BATCHES[1], np.array([0, 1])))
        made = run_weigher(case, [self.BATCHES[0], lost, self.BATCHES[2]])[0]
        assert not made[1].any()
        assert np.all(np.isfinite(made[2]))

    def test_before_the_end_of_the_warm_up_every_coefficient_is_one(self, case):
        made = run_weigher(case, list(self.BATCHES), warmup_step=3)[0]
        assert all(np.all(c == 1) for c in made[:3])
        plain = run_weigher(case, list(self.BATCHES))[0]
        assert all(np.array_equal(a, b) for a, b in zip(made[3:], plain[3:], strict=True))

    def test_cutting_a_step_into_micro_batches_changes_nothing_where_a_window_is_compared(self, case):
        if not case.over_window:
            return
        halves = [take(batch, rows) for batch in self.BATCHES for rows in (np.arange(3), np.arange(3, 8))]
        made, state = run_weigher(case, halves)
        whole, whole_state = run_weigher(case, list(self.BATCHES))
        for first, second, both in zip(made[::2], made[1::2], whole, strict=True):
            assert np.array_equal(np.concatenate([first, second]), both)
        assert same_arrays(state, whole_state)

    def test_coefficients_that_are_shares_of_a_micro_batch_average_to_one(self, case):
        if case.mean_one:
            for c in run_weigher(case, list(self.BATCHES))[0]:
                assert abs(c.mean() - 1) < 1e-12
