"""A decision in a line and in numbers, whatever is missing from it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from dataflex.ledger.quantiles import quantiles
from dataflex.train.describe import describe
from dataflex.train.metrics import metrics


def a_line(**changes: Any) -> dict[str, Any]:
    line = {
        "segment": 2,
        "start": 20,
        "stop": 30,
        "decision": "guided",
        "num_rows": 40,
        "num_distinct_rows": 40,
        "window": {"start": 8, "end": 12, "start_share": 0.4, "end_share": 0.6},
        "notes": {"num_scored": 20, "num_unscored": 3, "num_improved": 15, "num_from_window": 30},
        "scoring": {"source": "measured", "num_rows": 20, "num_tokens": 12345, "seconds": 1.25, "tokens_per_s": 9876.4},
        "share_of_run": 0.25,
        "quantiles": {"loss": {"0.5": 2.5}},
    }
    return {**line, **changes}


def test_a_guided_decision_in_one_line() -> None:
    assert describe(a_line()) == (
        "steps 20-30: guided, 40 samples | window 0.400-0.600 of 20 ranked | 15 improved | 30 drawn from the window | "
        "3 could not be scored | scored 20 samples, 12,345 tokens in 1.2 s (9,876 tokens/s) | "
        "choosing so far: 25% of the run's time"
    )


def test_a_warm_up_has_nothing_to_add() -> None:
    line = a_line(window=None, notes={}, scoring=None, decision="warm-up", quantiles={})
    assert describe(line) == "steps 20-30: warm-up, 40 samples"


def test_losses_that_were_not_measured_are_said_to_come_from_elsewhere() -> None:
    scoring = {"source": "cache", "num_rows": 0, "num_tokens": 0, "seconds": 0.0}
    assert "losses from the cache, no pass over the pool" in describe(a_line(scoring=scoring))


def test_a_decision_of_a_former_process() -> None:
    said = describe(a_line(as_recorded=True))
    assert said.startswith("as recorded before the interruption, steps 20-30")
    assert "scored" not in said.replace("could not be scored", "")


@pytest.mark.parametrize("notes", [{"num_scored": 0, "num_improved": 0}, {"num_improved": 3}, {"num_scored": 5}])
def test_nothing_scored_is_no_division_by_zero(notes: dict[str, int]) -> None:
    assert "dataflex/improved" not in metrics(a_line(notes=notes, quantiles={}), np.arange(40), {})
    describe(a_line(notes=notes))


def test_quantiles_are_of_the_finite_values_of_float_columns() -> None:
    found = quantiles(
        {
            "loss": np.array([np.nan, 1, 2, 3, np.inf, 4, 5, -np.inf], dtype=np.float32),
            "delta": np.array([0.5]),
            "empty": np.array([np.nan, np.nan]),
            "none": np.zeros(0),
            "weight": np.array([1.0, 2.0]),
            "rank": np.array([1, 2]),
            "in_window": np.array([True, False]),
        }
    )
    assert found == {
        "loss": {"0": 1.0, "0.05": 1.2, "0.25": 2.0, "0.5": 3.0, "0.75": 4.0, "0.95": pytest.approx(4.8), "1": 5.0},
        "delta": dict.fromkeys(("0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"), 0.5),
    }
    assert json.loads(json.dumps(found, allow_nan=False)).keys() == found.keys()


def test_a_line_with_numbers_that_are_none_is_still_a_line() -> None:
    window = {"start": 0, "end": 0, "start_share": math.nan, "end_share": math.nan}
    line = a_line(window=window, notes={"num_scored": 0}, quantiles={}, share_of_run=math.nan)
    assert "\n" not in describe(line)
    assert math.isnan(metrics(line, np.arange(40), {})["dataflex/window_start"])


def test_rows_that_repeat_are_counted() -> None:
    assert "40 samples | 31 of them distinct" in describe(a_line(num_distinct_rows=31))
    assert "distinct" not in describe(a_line())
