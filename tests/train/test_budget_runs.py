"""A scoring budget in a plain Trainer: real passes, real training losses, a resume to the bit, an audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_plain_trainer import VOCAB
from test_targets import make_trainer, train_until

pytest.importorskip("sklearn")

from dataflex import DeltaLoss, Loss, Schedule
from dataflex.ledger.audit import audit
from dataflex.ledger.ledger import Ledger
from dataflex.train.mixin import Options
from dataflex.train.rederive import rederive

SCHEDULE = Schedule(warmup_step=8, update_step=8, update_times=4)
NUM_ROWS = 240


def rows() -> Dataset:
    rng = np.random.default_rng(5)
    made = []
    for row in range(NUM_ROWS):
        size = 4 + row % 9
        tokens = (rng.integers(3, VOCAB, size) if row % 3 else 3 + (np.arange(size) + row) % (VOCAB - 3)).tolist()
        made.append({"input_ids": tokens, "labels": [-100, *tokens[1:]], "task": f"t{row % 3}"})
    return Dataset.from_list(made)


def trainer_of(folder: Path, share: Any = 0.5, selector: Any = None, **more: Any) -> Any:
    return make_trainer(
        folder,
        selector or DeltaLoss(),
        train_dataset=rows(),
        schedule=SCHEDULE,
        options=Options(score_budget=share, **more.pop("options", {})),
        **more,
    )


def test_the_record_says_what_was_measured_and_audits(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.train()
    ledger = Ledger(tmp_path)
    lines = [line for _, line in sorted(ledger.segments().items())]
    told = [line["scoring"]["budget"] for line in lines if line["scoring"]]
    assert told
    flops = trainer.curator._budget
    scored = sum(flops._scoring_N[ledger.signals_of(line)["scored"]].sum() for line in lines if line["scoring"])
    assert told[-1]["spent_flops"] == pytest.approx(scored)
    trained = sum(flops._training_N[ledger.rows_of(line)].sum() for line in lines)
    assert scored <= 0.5 * trained
    record = audit(ledger)
    assert [finding for finding in record.findings if finding.severity == "damage"] == []
    assert rederive(record, trainer._dataflex.method) == []
    assert ledger.run()["fingerprint"]["score_budget"] == 0.5


def test_measured_rows_have_the_models_own_losses(tmp_path: Path) -> None:
    """Those of the first panel, before any step, against a forward of each row alone."""
    trainer = trainer_of(tmp_path)
    model, data = trainer.model.eval(), rows()
    expected = []
    with torch.no_grad():
        for row in data:
            batch = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
            expected.append(float(model(**batch).loss))
    trainer.train()
    ledger = Ledger(tmp_path)
    columns_N = ledger.signals_of(ledger.segments()[0])
    scored_N = columns_N["scored"]
    assert 25 <= scored_N.sum() < NUM_ROWS
    np.testing.assert_allclose(columns_N["loss"][scored_N], np.array(expected)[scored_N], rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("selector", [DeltaLoss(), Loss()], ids=["delta_loss", "loss"])
def test_a_killed_run_goes_on_to_the_bit(tmp_path: Path, selector: Any) -> None:
    def run(folder: str) -> Any:
        return trainer_of(tmp_path / folder, selector=selector, save_strategy="steps", save_steps=5)

    whole = run("whole")
    whole.train()
    train_until(run("killed"), 27)
    resumed = run("killed")
    resumed.train(resume_from_checkpoint=True)
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other[1]), name
    for index, line in Ledger(tmp_path / "whole").segments().items():
        assert line["sha256"] == Ledger(tmp_path / "killed").segments()[index]["sha256"], index


def test_initial_losses_serve_the_next_run(tmp_path: Path) -> None:
    """A run that could afford them leaves them to one that cannot."""
    selector = DeltaLoss(cache_dir=str(tmp_path / "cache"))
    trainer_of(tmp_path / "rich", 20.0, selector).train()
    poor = trainer_of(tmp_path / "poor", 0.3, selector)
    poor.train()
    first = Ledger(tmp_path / "poor").segments()[0]["scoring"]
    assert first["budget"]["why"] == "cached initial losses"
    assert first["num_rows"] == 0
    fresh = trainer_of(tmp_path / "fresh", 0.3, selector, options={"fresh": True})
    fresh.train()
    assert Ledger(tmp_path / "fresh").segments()[0]["scoring"]["budget"]["why"] == "panel"


def test_what_full_scoring_costs_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    trainer_of(tmp_path / "full", "full").train()
    said = capsys.readouterr()
    assert (said.out + said.err).count("score_budget: 0.1 would cost 10%") == 1
    trainer_of(tmp_path / "budget", 0.5).train()
    said = capsys.readouterr()
    assert "score_budget 0.5: scoring costs at most 50.0% of the training's FLOPs" in said.out + said.err
    assert "baseline: run_start" in said.out + said.err


def test_training_is_that_of_the_same_rows_without_a_budget(tmp_path: Path) -> None:
    """Reading the training's losses for the estimates changes no weight."""
    from dataflex import Replay

    budgeted = trainer_of(tmp_path / "budget")
    budgeted.train()
    again = make_trainer(
        tmp_path / "replay", Replay(path=str(tmp_path / "budget")), train_dataset=rows(), schedule=SCHEDULE
    )
    again.train()
    for (name, one), other in zip(budgeted.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), name
