"""How long choosing will take, told from what an earlier run recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataflex.cli.forecast import forecast, recorded_speed
from dataflex.core.errors import ConfigError
from dataflex.ledger.ledger import Ledger

COST = {
    "num_passes": 2,
    "num_rows": 400,
    "num_tokens": 20_000,
    "scoring_seconds": 40.0,
    "tokens_per_s": 500.0,
    "seconds": 50.0,
    "share_of_run": 0.5,
}


def recorded(folder: Path, **cost: object) -> str:
    ledger = Ledger(folder)
    geometry = {"world_size": 2, "accumulation": 2, "micro_batch": 1}
    ledger.begin({"run_id": "r", "geometry": geometry}, {"row": np.arange(3)})
    seconds = {"choosing": 50.0, "running": 100.0}
    ledger.note({"kind": "end", "step": 25, "best_checkpoint": None, "seconds": seconds, "choosing": {**COST, **cost}})
    return str(folder)


def test_the_speed_is_what_the_run_measured(tmp_path: Path) -> None:
    speed = recorded_speed(recorded(tmp_path))
    assert (speed.tokens_per_row, speed.tokens_per_s) == (50.0, 500.0)
    assert speed.seconds_per_sample == 0.5, "50 s that were not spent choosing, for 25 steps of 4 samples"


def test_a_plan_at_that_speed(tmp_path: Path) -> None:
    sentence = forecast(recorded_speed(recorded(tmp_path)), num_passes=3, num_rows=1000, num_samples=200)
    assert sentence == (
        f"At the speed of {tmp_path} (500 tokens/s scoring, 50 tokens a row): 3 passes = 150,000 tokens in 300.0 s, "
        "training 100.0 s; choosing takes 75% of the run's time."
    )


def test_a_run_without_a_pass_or_an_end_tells_no_speed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="made no pass over its pool"):
        recorded_speed(recorded(tmp_path / "random", num_passes=0))
    Ledger(tmp_path / "crashed").begin({"run_id": "r", "geometry": {}}, {"row": np.arange(3)})
    with pytest.raises(ConfigError, match="has not ended"):
        recorded_speed(str(tmp_path / "crashed"))
    with pytest.raises(ConfigError, match="holds no record of a run"):
        recorded_speed(str(tmp_path / "nothing"))
