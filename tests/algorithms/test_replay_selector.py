"""Replay: exactly the recorded rows in exactly the recorded order."""

import numpy as np
import pytest

from dataflex.algorithms.select.replay import Replay
from dataflex.core.errors import ConfigError
from dataflex.core.seeds import segment_rng
from dataflex.testing import PLAN

PROGRESS = PLAN.progress(PLAN.segment_at(2))


def test_the_recorded_rows_come_in_the_recorded_order_repeats_included():
    recorded_Q = np.array([7, 0, 3, 3, 11])
    selection, _ = Replay(path="r").select({}, {"replay": recorded_Q}, 5, PROGRESS, segment_rng(0, 0, "select"))
    assert selection.rows_Q.tolist() == [7, 0, 3, 3, 11]
    assert selection.rows_Q.dtype == np.int64
    assert selection.ordered


@pytest.mark.parametrize("num_recorded", [0, 4, 6])
def test_another_number_of_samples_is_an_error_with_segment_and_both_numbers(num_recorded):
    recorded_Q = np.arange(num_recorded)
    with pytest.raises(ConfigError, match=f"segment 2 .* {num_recorded} samples, this run needs 5"):
        Replay(path="r").select({}, {"replay": recorded_Q}, 5, PROGRESS, segment_rng(0, 0, "select"))


def test_warmups_are_replayed_too():
    assert Replay(path="r").serves_warmup
    assert all(Replay(path="r").needs_at(PLAN.progress(s)) == {"replay"} for s in PLAN.segments())
