"""Rows scored by the trainer's own loss: two gloo ranks measure and choose what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataflex.ledger.ledger import Ledger

pytestmark = pytest.mark.long

pytest.importorskip("trl", reason="TRL is not installed")
PROGRAM = Path(__file__).with_name("own_loss_program.py")


def run(kind: str, output_dir: Path, world_size: int) -> Ledger:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    command = [sys.executable, *(torchrun if world_size > 1 else []), str(PROGRAM), kind, str(output_dir)]
    result = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    if "RuntimeError: Failed to import trl" in result.stderr:
        pytest.skip(f"this trl cannot import its own {kind}Trainer")
    assert result.returncode == 0, result.stderr[-3000:]
    return Ledger(output_dir)


@pytest.mark.parametrize("kind", ["DPO", "Reward"])
def test_two_ranks_measure_and_choose_as_one(tmp_path: Path, kind: str) -> None:
    one, two = run(kind, tmp_path / "one", 1), run(kind, tmp_path / "two", 2)
    for segment in (1, 2):
        left, right = one.signals_of(one.segments()[segment]), two.signals_of(two.segments()[segment])
        np.testing.assert_allclose(right["loss"], left["loss"], rtol=1e-4, atol=1e-6)
    first = one.rows_of(one.segments()[1])
    assert np.array_equal(first, two.rows_of(two.segments()[1]))
    assert np.isfinite(left["loss"]).all()
