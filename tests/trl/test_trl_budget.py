"""A scoring budget beside TRL trainers whose rows are pairs: panels of their own losses, no losses of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trl_runs import build, pairs

pytest.importorskip("sklearn")

from dataflex import DeltaLoss, Options, Schedule
from dataflex.ledger.ledger import Ledger


def test_pairs_are_scored_in_part_by_their_own_loss(tmp_path: Path) -> None:
    trainer = build(
        "Reward",
        tmp_path,
        pairs(120),
        selector=DeltaLoss(),
        schedule=Schedule(warmup_step=6, update_step=6, update_times=4),
        options=Options(score_budget=0.6),
    )
    trainer.train()
    lines = [line for _, line in sorted(Ledger(tmp_path).segments().items())]
    asked = [line["scoring"] for line in lines if line["scoring"]]
    assert asked[0]["loss"] == "the trainer's own, each row alone"
    assert all(0 <= scoring["num_rows"] < 120 for scoring in asked)
    assert sum(scoring["num_rows"] > 0 for scoring in asked) >= 2
    columns_N = Ledger(tmp_path).signals_of(lines[-1])
    assert np.isfinite(columns_N["loss"]).all()
    budget = trainer.curator._budget
    trained = sum(budget._training_N[Ledger(tmp_path).rows_of(line)].sum() for line in lines)
    scored = sum(
        budget._scoring_N[Ledger(tmp_path).signals_of(line)["scored"]].sum() for line in lines if line["scoring"]
    )
    assert 0 < scored <= 0.6 * trained
