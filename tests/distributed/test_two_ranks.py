"""Two gloo ranks measure what one measures, choose what one chooses, and resume as one does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataflex.core.order import Geometry, deal
from dataflex.ledger.ledger import Ledger

PROGRAM = Path(__file__).with_name("two_ranks_program.py")
WITHOUT_LABELS = [0, 17, 40]


def start(output_dir: Path, world_size: int, method: str) -> Path:
    """Train with a global batch of 4: two ranks x 2 micro-batches x 1, or one rank x 2 x 2."""
    micro_batch = str(2 // world_size)
    launcher = [sys.executable]
    if world_size > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        launcher = [sys.executable, *torchrun]
    result = subprocess.run(
        [*launcher, str(PROGRAM), str(output_dir), micro_batch, method],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return output_dir


@pytest.fixture(scope="module", params=["delta_loss", "static"])
def runs(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    folder = tmp_path_factory.mktemp("ranks")
    return request.param, start(folder / "one", 1, request.param), start(folder / "two", 2, request.param)


def test_the_tables_are_equal(runs) -> None:
    method, one, two = runs
    lines = Ledger(one).segments()
    assert len(lines) == len(Ledger(two).segments()) > 5
    with_table = [k for k, line in lines.items() if "signals" in line["sha256"]]
    assert len(with_table) == (4 if method == "delta_loss" else 0)
    for k in with_table:
        left, right = (Ledger(run).signals_of(Ledger(run).segments()[k])["loss"] for run in (one, two))
        assert np.flatnonzero(np.isnan(left)).tolist() == WITHOUT_LABELS
        np.testing.assert_allclose(left, right, rtol=1e-5, equal_nan=True)


def test_the_rows_are_equal_and_rows_without_labels_are_never_chosen(runs) -> None:
    method, one, two = runs
    for k, line in Ledger(one).segments().items():
        rows = Ledger(one).rows_of(line)
        of_two = Ledger(two).rows_of(Ledger(two).segments()[k])
        if method == "static":  # at the end of a pass accelerate gives the second rank a row from the beginning
            of_two = of_two[: len(rows)]
        assert rows.tolist() == of_two.tolist(), f"segment {k}"
        if method == "delta_loss":
            assert not set(rows.tolist()) & set(WITHOUT_LABELS)


def test_every_rank_trains_what_the_ledger_says(runs) -> None:
    method, _, two = runs
    ledger, geometry = Ledger(two), Geometry(world_size=2, accumulation=2, micro_batch=1)
    trained = [json.loads((two / f"trained-{rank}.json").read_text()) for rank in (0, 1)]
    for rank in (0, 1):
        expected = []
        for _, line in sorted(ledger.segments().items()):
            rows = ledger.rows_of(line)
            if method == "static":  # the last step of a pass may be short of a micro-batch
                expected += rows.reshape(-1, 2, 1)[:, rank].tolist()
            else:
                expected += deal(rows, geometry)[:, :, rank].reshape(-1, 1).tolist()
        assert trained[rank] == expected


def test_two_ranks_resume_bit_by_bit(runs, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    method, _, two = runs
    last = max(int(path.name.split("-")[1]) for path in two.glob("checkpoint-*"))
    step = 4  # delta_loss decides at steps 1, 3 and 6: inside; static every two steps: at a boundary
    run = tmp_path / "cut"
    shutil.copytree(two, run)
    for later in range(step + 1, last + 1):
        shutil.rmtree(run / f"checkpoint-{later}")
    start(run, 2, method)
    full, resumed = load_file(two / "model.safetensors"), load_file(run / "model.safetensors")
    assert all((full[name] == resumed[name]).all() for name in full)
