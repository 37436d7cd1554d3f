"""Two gloo ranks measure what one measures, choose what one chooses, and resume as one does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from packaging.version import Version
from transformers import Trainer

from dataflex.core.order import Geometry, deal
from dataflex.ledger.ledger import Ledger

pytestmark = pytest.mark.long

PROGRAM = Path(__file__).with_name("two_ranks_program.py")
WITHOUT_LABELS = [0, 17, 40]
# Static's epochs end short of a micro-batch here; older versions have no hook to resume in one.
RESUMES_SHORT_EPOCHS = hasattr(Trainer, "_run_epoch")
# Older versions take the batch per device from the checkpoint, whatever the arguments say.
OBEYS_BATCH_SIZE = Version(transformers.__version__) >= Version("5.2")


def launch(output_dir: Path, world_size: int, method: str, *fault: str) -> subprocess.CompletedProcess[str]:
    """Train with a global batch of 4: two ranks x 2 micro-batches x 1, or one rank x 2 x 2."""
    micro_batch = str(2 // world_size)
    launcher = [sys.executable]
    if world_size > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
        launcher = [sys.executable, *torchrun]
    return subprocess.run(
        [*launcher, str(PROGRAM), str(output_dir), micro_batch, method, *fault],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def start(output_dir: Path, world_size: int, method: str) -> Path:
    result = launch(output_dir, world_size, method)
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


def cut_after(full: Path, step: int, target: Path) -> Path:
    """A copy of a run as a kill right after the checkpoint of ``step`` leaves it."""
    shutil.copytree(full, target)
    for checkpoint in target.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    return target


def weights(run: Path) -> dict:
    from safetensors.numpy import load_file

    return load_file(run / "model.safetensors")


def test_two_ranks_resume_bit_by_bit(runs, tmp_path: Path) -> None:
    method, _, two = runs
    if method == "static" and not RESUMES_SHORT_EPOCHS:
        pytest.skip("this transformers has no Trainer._run_epoch: an epoch that ends short is not resumed")
    # delta_loss decides at steps 1, 3 and 6: inside; static every two steps: at a boundary
    run = start(cut_after(two, 4, tmp_path / "cut"), 2, method)
    full, resumed = weights(two), weights(run)
    assert all((full[name] == resumed[name]).all() for name in full)


def test_one_and_two_ranks_end_with_the_same_weights(runs) -> None:
    """Within the order of summation; dropout would draw differently."""
    method, one, two = runs
    if method == "delta_loss":
        left, right = weights(one), weights(two)
        assert all(np.allclose(left[name], right[name], rtol=1e-4, atol=1e-5) for name in left)


@pytest.mark.parametrize(("before", "after", "step"), [(1, 2, 3), (2, 1, 4), (2, 1, 3)])  # 3: at a decision
def test_another_number_of_ranks_goes_on_with_the_recorded_rows(
    runs, tmp_path: Path, before: int, after: int, step: int
) -> None:
    method, one, two = runs
    if not (RESUMES_SHORT_EPOCHS if method == "static" else OBEYS_BATCH_SIZE):
        pytest.skip("this transformers resumes neither short epochs nor with another batch per device")
    full = {1: one, 2: two}[before]
    run = cut_after(full, step, tmp_path / "cut")
    if method == "static":  # its order is the host's, which depends on the number of ranks
        if after == 1 and step == 3:
            result = launch(run, after, method)
            assert result.returncode != 0
            assert f"world_size ({before} then, {after} now)" in result.stderr
        return
    start(run, after, method)
    ledger, resumed = Ledger(full), Ledger(run)
    assert len(resumed.segments()) == len(ledger.segments())
    for k, line in ledger.segments().items():
        assert resumed.rows_of(resumed.segments()[k]).tolist() == ledger.rows_of(line).tolist(), f"segment {k}"
    left, right = weights(full), weights(run)
    assert all(np.allclose(left[name], right[name], rtol=1e-4, atol=1e-5) for name in left)


# a rank that fails


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("fails", "rank 1 failed: planted in a forward"),
        ("silent", "lost contact with the other ranks: one of them ended, or said nothing"),
        ("other decision", "the decision of segment 1 of rank 1 differs from rank 0's"),
    ],
)
def test_a_rank_that_goes_astray_ends_all_with_a_sentence(tmp_path: Path, fault: str, sentence: str) -> None:
    result = launch(tmp_path / "run", 2, "delta_loss", fault)
    assert result.returncode != 0
    assert f"rank 0: DataFlexError: {sentence}" in result.stderr.replace("rank 0 lost", "lost"), result.stderr[-3000:]


def test_a_killed_rank_leaves_no_other_waiting_without_a_launcher_that_looks_after_them(tmp_path: Path) -> None:
    """Two plain processes: nobody ends the other when one is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(tmp_path / "run"), "1", "delta_loss", "killed"],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, -9], errors
    assert "rank 0: DataFlexError: rank 0 lost contact with the other ranks: one of them ended" in errors[0]
    assert list(Ledger(tmp_path / "run").segments()) == [0], "what had been decided is on record"
