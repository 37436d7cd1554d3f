"""Losses seen in training: the latest of each row, against a loop; saved and loaded."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.core.board import Board
from dataflex.core.errors import DataFlexError

events = st.lists(st.tuples(st.integers(0, 5), st.floats(0, 10, width=32) | st.just(math.nan), st.integers(0, 3)))


def seen(board: Board, rows: list) -> Board:
    columns = zip(*rows, strict=True) if rows else ([], [], [])
    return board.with_seen(*(np.array(column) for column in columns))


@given(st.lists(events, max_size=4))
def test_the_board_is_what_a_loop_over_all_events_keeps(segments):
    board, values, steps, visits = Board.empty(6), [math.nan] * 6, [-1] * 6, [0] * 6
    for index, rows in enumerate(segments):
        rows = [(row, loss, step + 4 * index) for row, loss, step in rows]
        board = seen(board, rows)
        for row, loss, step in sorted(rows, key=lambda event: event[2]):
            visits[row] += 1
            if math.isfinite(loss):
                values[row], steps[row] = loss, step
    assert np.array_equal(board.last_losses_N, np.array(values, dtype=np.float32), equal_nan=True)
    assert board.last_steps_N.tolist() == steps
    assert board.visits_N.tolist() == visits


@given(events)
def test_a_segment_at_once_is_its_steps_one_by_one_and_ranks_in_any_order(rows):
    rows = list({(row, step): (row, loss, step) for row, loss, step in rows}.values())  # a row once a step
    at_once = seen(Board.empty(6), rows)
    one_by_one = Board.empty(6)
    for step in range(4):
        one_by_one = seen(one_by_one, [event for event in rows if event[2] == step])
    for other in (one_by_one, seen(Board.empty(6), rows[::-1])):
        assert all(np.array_equal(a, other.arrays()[n], equal_nan=a.dtype == "f4") for n, a in at_once.arrays().items())


def test_reuse_serves_what_is_young_enough_and_ages_grow():
    board = Board.empty(3).with_seen(np.array([0, 1]), np.array([2.0, 3.0]), np.array([1, 6]))
    assert board.ages(8).tolist() == [7, 2, -1]
    signals = board.signals(8, max_age=5)
    assert np.array_equal(signals["loss"], np.array([np.nan, 3, np.nan], np.float32), equal_nan=True)
    assert signals["loss"].dtype == np.float32
    assert np.array_equal(board.signals(8)["loss"], board.last_losses_N, equal_nan=True)


def test_a_value_is_not_changed():
    board = Board.empty(2)
    board.with_seen(np.array([0]), np.array([1.0]), 0)
    assert board.visits_N.tolist() == [0, 0]
    assert np.isnan(board.last_losses_N).all()


def test_rows_outside_and_steps_backwards_are_refused():
    with pytest.raises(DataFlexError, match="among the pool's 2"):
        Board.empty(2).with_seen(np.array([2]), np.array([1.0]), 0)
    with pytest.raises(DataFlexError, match="older"):
        Board.empty(2).with_seen(np.array([1]), np.array([1.0]), 5).with_seen(np.array([1]), np.array([1.0]), 4)


def test_it_is_restored_exactly_and_only_for_the_same_pool():
    board = Board.empty(3).with_seen(np.array([0, 2]), np.array([1.25, np.nan]), 7)
    again = Board.from_arrays(board.arrays(), 3)
    assert all(np.array_equal(a, again.arrays()[n], equal_nan=a.dtype == "f4") for n, a in board.arrays().items())
    with pytest.raises(DataFlexError, match="pool of 4 rows"):
        Board.from_arrays(board.arrays(), 4)
    with pytest.raises(DataFlexError, match="visits_N is missing"):
        Board.from_arrays({n: a for n, a in board.arrays().items() if n != "visits_N"}, 3)
