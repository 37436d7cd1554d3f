"""TRL's trainers with their samples chosen: bitwise with nothing chosen, scored by their own loss, resumed bitwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from trl_runs import SCHEDULE, build, pairs, rated, same_weights, sums, text

from dataflex import DeltaLoss, DynamicDataMixin, Random, Schedule, Static, dynamic
from dataflex.core.errors import ConfigError
from dataflex.ledger.ledger import Ledger

DATA = {"SFT": sums, "DPO": pairs, "Reward": pairs, "KTO": rated}
KINDS = list(DATA)

# How SFTTrainer may be set; each trains, is scored and resumes.
SFT = {
    "completion only": {},
    "full": {"completion_only_loss": False},
    "text": {},
    "padding-free": {"padding_free": True, "max_length": None},
    "packed by bfd": {"packing": True, "max_length": 48},
    "packed wrapped": {"packing": True, "packing_strategy": "wrapped", "max_length": 48},
    "dft": {"loss_type": "dft"},
    "neftune": {"neftune_noise_alpha": 5.0},
    "label smoothing": {"label_smoothing_factor": 0.1},
}


def sft_data(name: str) -> Any:
    return text() if name in ("text", "packed by bfd", "packed wrapped") else sums()


@pytest.mark.parametrize("kind", KINDS)
def test_static_trains_what_the_stock_class_trains(tmp_path: Path, kind: str) -> None:
    stock = build(kind, tmp_path / "stock", DATA[kind](), num_train_epochs=2)
    stock.train()
    ours = build(kind, tmp_path / "ours", DATA[kind](), num_train_epochs=2, selector=Static())
    ours.train()
    assert len(Ledger(tmp_path / "ours").segments()) >= 4
    assert same_weights(stock, ours)
    other = build(kind, tmp_path / "other", DATA[kind](), num_train_epochs=2, selector=Random(), schedule=SCHEDULE)
    other.train()
    assert not same_weights(stock, other), "the comparison above can fail"


@pytest.mark.parametrize("name", list(SFT))
def test_every_way_of_sft_trains_what_the_stock_class_trains(tmp_path: Path, name: str) -> None:
    stock = build("SFT", tmp_path / "stock", sft_data(name), **SFT[name])
    stock.train()
    ours = build("SFT", tmp_path / "ours", sft_data(name), selector=Static(), **SFT[name])
    ours.train()
    assert same_weights(stock, ours)


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_the_trainers_own_loss_of_the_row(tmp_path: Path, kind: str) -> None:
    """Brute force: ``compute_loss`` of each row alone, under the untrained model."""
    schedule = Schedule(update_step=1, update_times=2)
    twin = build(kind, tmp_path / "twin", DATA[kind](), selector=DeltaLoss(), schedule=schedule)
    twin.model.eval()
    collate = twin._get_collator_with_removed_columns(twin.data_collator)
    with torch.no_grad():
        wanted = [
            float(twin.compute_loss(twin.model, twin._prepare_inputs(collate([dict(twin.train_dataset[row])]))))
            for row in range(len(twin.train_dataset))
        ]
    trainer = build(kind, tmp_path / "run", DATA[kind](), selector=DeltaLoss(), schedule=schedule)
    trainer.train()
    found = Ledger(tmp_path / "run").signals_of(Ledger(tmp_path / "run").segments()[0])["loss"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", list(SFT))
def test_every_way_of_sft_is_scored_by_the_mean_over_its_labels(tmp_path: Path, name: str) -> None:
    """Brute force: the model's own loss of each row alone, with the collator's labels."""
    arguments = {**SFT[name], "neftune_noise_alpha": None, "label_smoothing_factor": 0.0}
    schedule = Schedule(update_step=1, update_times=2)
    options = {"selector": DeltaLoss(), "schedule": schedule, "gradient_accumulation_steps": 1}
    trainer = build("SFT", tmp_path, sft_data(name), **{**options, **arguments})
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
    trainer.model.eval()
    wanted = []
    with torch.no_grad():
        for row in range(len(trainer.train_dataset)):
            batch = collate([dict(trainer.train_dataset[row])])
            # As TRL trains it: with a cache, transformers 4 lets packed samples see each other.
            wanted.append(float(trainer.model(**batch, use_cache=False).loss))
    trainer.train()
    line = Ledger(tmp_path).segments()[0]
    np.testing.assert_allclose(Ledger(tmp_path).signals_of(line)["loss"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_leaves_the_trainers_own_numbers_alone(tmp_path: Path, kind: str) -> None:
    """The same rows trained with and without passes over the pool: the host logs the same."""
    scored = build(kind, tmp_path / "scored", DATA[kind](), selector=DeltaLoss())
    scored.train()
    from dataflex import Replay

    again = build(kind, tmp_path / "again", DATA[kind](), selector=Replay(path=str(tmp_path / "scored")))
    again.train()
    assert same_weights(scored, again)

    def told(trainer: Any) -> list[dict[str, float]]:
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        return [{k: v for k, v in e.items() if not k.startswith("dataflex/")} for e in logged]

    assert told(scored) == told(again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_bitwise(tmp_path: Path, kind: str) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    full = build(kind, tmp_path, DATA[kind](), selector=DeltaLoss(), **saving)
    full.train()
    resumed = build(kind, tmp_path, DATA[kind](), selector=DeltaLoss(), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert same_weights(full, resumed)


def test_a_lora_run_takes_its_initial_losses_from_the_base(tmp_path: Path) -> None:
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = build("SFT", tmp_path, sums(), selector=DeltaLoss(), peft_config=adapter)
    trainer.train()
    assert [entry["decision"] for entry in trainer.history] == ["warm-up", "first", "guided", "guided"]


def test_the_history_is_a_table(tmp_path: Path) -> None:
    trainer = build("SFT", tmp_path, sums(), selector=DeltaLoss())
    trainer.train()
    table = pd.DataFrame(trainer.history)
    assert table["start"].tolist() == [0, 2, 4, 6]
    assert table["stop"].tolist() == [2, 4, 6, 8]
    assert table["window.start"].notna().sum() == 2
    assert table["scoring.num_rows"].iloc[1] == 61


def test_the_rows_are_described(tmp_path: Path) -> None:
    trainer = build("SFT", tmp_path, sums(), selector=Random())
    trainer.train()
    rows = pd.read_parquet(tmp_path / "dataflex" / "rows.parquet")
    assert rows["kind"].tolist() == sums()["kind"]
    assert rows["num_label_tokens"].between(2, 6).all()
    assert (rows["num_tokens"] > rows["num_label_tokens"]).all()
    assert rows["excerpt"].str.contains("=", regex=False).all()


def test_a_mixin_serves_as_well_as_the_function(tmp_path: Path) -> None:
    from transformers import Trainer

    class Mine(DynamicDataMixin, Trainer):
        pass

    assert issubclass(dynamic(Trainer), DynamicDataMixin)
    with pytest.raises(ConfigError, match="and a schedule are needed"):
        Mine(model=None, args=None)


@pytest.mark.parametrize("name", ["GRPOTrainer", "RLOOTrainer", "OnlineDPOTrainer"])
def test_trainers_that_generate_are_refused(name: str) -> None:
    from transformers import Trainer

    generating = type(name, (Trainer,), {})
    with pytest.raises(ConfigError, match=f"{name} generates the samples that it trains on"):
        dynamic(type("Mine", (generating,), {}))


def test_what_is_no_trainer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no subclass of transformers\.Trainer"):
        dynamic(dict)


@pytest.mark.parametrize("arguments", [{"group_by_length": True}, {"auto_find_batch_size": True}])
def test_arguments_that_take_the_order_are_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    if "group_by_length" in arguments:
        from transformers import TrainingArguments

        if not hasattr(TrainingArguments, "group_by_length"):
            arguments = {"train_sampling_strategy": "group_by_length"}
    with pytest.raises(ConfigError, match=next(iter(arguments)).split("_")[0]):
        build("SFT", tmp_path, sums(), selector=Random(), **arguments)


def test_a_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stream"):
        build("SFT", tmp_path, text().to_iterable_dataset(), selector=Random(), max_steps=3)


def test_reference_losses_made_ahead_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precompute_ref_log_probs"):
        build("DPO", tmp_path, pairs(), selector=Random(), precompute_ref_log_probs=True)


@pytest.mark.parametrize("kind", KINDS)
def test_early_stopping_and_the_best_model(tmp_path: Path, kind: str) -> None:
    """Evaluation, early stopping, the best model at the end and checkpoints of the model only, with rows chosen."""
    from transformers import EarlyStoppingCallback

    data = DATA[kind]()
    trainer = build(
        kind,
        tmp_path,
        data,
        selector=DeltaLoss(),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=100.0)],
        eval_dataset=data.select(range(6)),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    assert trainer.state.global_step == 4, "the second evaluation is no 100 better than the first"
    assert trainer.state.best_model_checkpoint is not None
    lines = Ledger(tmp_path).segments()
    assert lines[len(lines) - 1]["start"] <= 4
