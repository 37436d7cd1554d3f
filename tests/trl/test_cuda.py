"""What a GPU may change: precision, Liger's kernels, memory that runs out. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl_runs import build, pairs, same_weights, sums

from dataflex import DeltaLoss, Options, Random, Schedule, Static
from dataflex.ledger.ledger import Ledger

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

ON_GPU = {"use_cpu": False, "gradient_accumulation_steps": 1}
SCHEDULE = Schedule(update_step=1, update_times=2)


@pytest.fixture(autouse=True)
def deterministic() -> Any:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def scores(folder: Path, segment: int = 0) -> np.ndarray:
    ledger = Ledger(folder)
    return ledger.signals_of(ledger.segments()[segment])["loss"]


def one_by_one(trainer: Any) -> np.ndarray:
    """The model's own loss of each row alone, by the trainer's collator, under the trainer's autocast."""
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    trainer.model.eval()
    losses = []
    with torch.no_grad():
        for row in range(len(trainer.train_dataset)):
            batch = trainer._prepare_inputs(collate([dict(trainer.train_dataset[row])]))
            with trainer.compute_loss_context_manager():
                losses.append(float(trainer.model(**batch, use_cache=False).loss))
    return np.array(losses)


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-5), (True, 1e-2)])
def test_scores_are_the_models_own_losses(tmp_path: Path, bf16: bool, tolerance: float) -> None:
    options = {**ON_GPU, "bf16": bf16, "selector": DeltaLoss(), "schedule": SCHEDULE}
    trainer = build("SFT", tmp_path, sums(), **options)
    wanted = one_by_one(trainer)
    trainer.train()
    assert trainer.model.device.type == "cuda"
    np.testing.assert_allclose(scores(tmp_path), wanted, rtol=tolerance)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_static_trains_what_the_stock_class_trains(tmp_path: Path, kind: str, bf16: bool) -> None:
    data = {"SFT": sums, "DPO": pairs}[kind]
    stock = build(kind, tmp_path / "stock", data(), **ON_GPU, bf16=bf16)
    stock.train()
    ours = build(kind, tmp_path / "ours", data(), **ON_GPU, bf16=bf16, selector=Static())
    ours.train()
    assert same_weights(stock, ours)
    other = build(kind, tmp_path / "other", data(), **ON_GPU, bf16=bf16, selector=Random(), schedule=SCHEDULE)
    other.train()
    assert not same_weights(stock, other), "the comparison above can fail"


def test_a_run_resumes_bitwise(tmp_path: Path) -> None:
    options = {**ON_GPU, "bf16": True, "selector": DeltaLoss(), "save_strategy": "steps", "save_steps": 3}
    whole = build("SFT", tmp_path / "whole", sums(), **options)
    whole.train()
    part = build("SFT", tmp_path / "part", sums(), **options)
    part.train()
    again = build("SFT", tmp_path / "part", sums(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    assert again.state.global_step == whole.state.global_step > 3
    assert same_weights(whole, again)


def test_liger_trains_and_scores_the_same_losses(tmp_path: Path) -> None:
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    options = {**ON_GPU, "selector": DeltaLoss(), "schedule": SCHEDULE}
    plain = build("SFT", tmp_path / "plain", sums(), **options)
    plain.train()
    liger = build("SFT", tmp_path / "liger", sums(), **options, use_liger_kernel=True)
    liger.train()
    np.testing.assert_allclose(scores(tmp_path / "liger"), scores(tmp_path / "plain"), rtol=1e-4)
    np.testing.assert_allclose(scores(tmp_path / "liger", 1), scores(tmp_path / "plain", 1), rtol=1e-3)
    ours = build("SFT", tmp_path / "ours", sums(), **ON_GPU, selector=Static(), use_liger_kernel=True)
    ours.train()
    stock = build("SFT", tmp_path / "stock", sums(), **ON_GPU, use_liger_kernel=True)
    stock.train()
    assert same_weights(stock, ours)


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path) -> None:
    """The memory of the process is capped under what the batch wants; the values are those of small batches."""
    options = {**ON_GPU, "selector": DeltaLoss(), "schedule": SCHEDULE}
    small = build("SFT", tmp_path / "small", sums(), **options, options=Options(score_batch_tokens=64))
    small.train()
    large = build("SFT", tmp_path / "large", sums(20_000), **options, options=Options(score_batch_tokens=1 << 20))
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    cap = (torch.cuda.memory_reserved() + (32 << 20)) / total
    torch.cuda.set_per_process_memory_fraction(cap)
    try:
        large.train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    line = Ledger(tmp_path / "large").segments()[0]
    assert line["scoring"]["out_of_memory"] > 0, "memory did not run out: nothing was tried here"
    np.testing.assert_allclose(scores(tmp_path / "large")[:61], scores(tmp_path / "small"), rtol=1e-5)
