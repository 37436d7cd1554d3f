"""Undamaged records, made once; tests copy them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("audited_runs")


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undamaged records by name; tests copy them."""
    from audited_runs import begin_run, finished, interrupted, make_run

    from dataflex.algorithms.select.delta_loss import DeltaLoss
    from dataflex.algorithms.select.random import Random
    from dataflex.algorithms.select.static import Static

    folder = tmp_path_factory.mktemp("records")
    finished(folder / "whole", DeltaLoss())
    finished(folder / "other", DeltaLoss(), seed=8)
    finished(folder / "random", Random())
    finished(folder / "host", Static())
    _, checkpoint = interrupted(folder / "crashed", DeltaLoss(), at=9, saved_at=4)
    shutil.copytree(folder / "crashed", folder / "resumed")
    resumed = make_run(folder / "resumed", DeltaLoss(), begin=False)
    begin_run(resumed, folder / "resumed" / checkpoint.name)
    resumed.train(4)
    resumed.curator.end(14, None)
    assert "rollback" in [line["kind"] for line in resumed.ledger.lines()]
    return folder
