"""A plain Hugging Face Trainer with its samples chosen: what it trains is what the ledger says."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from dataflex.algorithms.base import Selection
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.random import Random
from dataflex.algorithms.select.static import Static
from dataflex.core.errors import DataFlexError
from dataflex.core.plan import Schedule
from dataflex.ledger.ledger import Ledger
from dataflex.train.method import Method
from dataflex.train.mixin import dynamic
from dataflex.train.settings import Settings

VOCAB, NUM_ROWS = 48, 31


def make_rows() -> list[dict[str, list[int]]]:
    """Rows of 3 to 20 tokens; the first two say which row it is. Row 9 has no label."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(NUM_ROWS):
        tokens = [3 + i // 6, 10 + i % 6, *rng.integers(20, VOCAB, rng.integers(1, 19)).tolist()]
        labels = [-100, -100, *tokens[2:]] if i != 9 else [-100] * len(tokens)
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


def collate(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(feature["input_ids"]) for feature in features)

    def padded(values: list[int], fill: int) -> list[int]:
        return [*values, *[fill] * (width - len(values))]

    return {
        "input_ids": torch.tensor([padded(feature["input_ids"], 0) for feature in features]),
        "labels": torch.tensor([padded(feature["labels"], -100) for feature in features]),
        "attention_mask": torch.tensor([padded([1] * len(feature["input_ids"]), 0) for feature in features]),
    }


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            attention_dropout=0.1,
        )
    )


class Recording(dynamic(Trainer)):
    """Notes, before they leave the batch, the ids that it came with and the tokens that it is trained on."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.trained = [*getattr(self, "trained", []), (inputs["sample_ids"].tolist(), inputs["input_ids"].clone())]
        return super().training_step(model, inputs, *args, **kwargs)


def make_trainer(output_dir: Path, selector: Any, data: Any, *, schedule: Schedule | None = None, **arguments: Any):
    options = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 5e-2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return Recording(
        model=make_model(),
        args=TrainingArguments(output_dir=str(output_dir), **{**options, **arguments}),
        train_dataset=data,
        data_collator=collate,
        dataflex=Settings(
            method=Method(name="delta_loss", selector=selector),
            schedule=schedule or Schedule(warmup_step=2, update_step=2, update_times=2),
            config={"learning_rate": 5e-2},
        ),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("container", [list, Dataset.from_list], ids=["list", "dataset"])
def test_what_is_trained_is_what_the_ledger_says(tmp_path: Path, container, num_workers: int) -> None:
    rows = make_rows()
    trainer = make_trainer(
        tmp_path, DeltaLoss(window_size=0.3), container(rows), dataloader_num_workers=num_workers, seed=3
    )
    trainer.train()
    ledger = Ledger(tmp_path)
    lines = [line for _, line in sorted(ledger.segments().items())]
    assert [line["decision"] for line in lines] == ["warm-up", "first", "guided", "warm-up", "guided", "guided"]
    recorded = np.concatenate([ledger.rows_of(line) for line in lines])
    trained = [row for ids, _ in trainer.trained for row in ids]
    assert trained == recorded.tolist()
    assert trainer.state.global_step == 12
    assert len(trained) == 48
    assert 9 not in trained, "it has no label"
    for ids, tokens in trainer.trained:
        for row, line in zip(ids, tokens.tolist(), strict=True):
            assert line[: len(rows[row]["input_ids"])] == rows[row]["input_ids"], "an id names another sample"
    assert any("dataflex/window_start" in entry for entry in trainer.state.log_history)
    guided = ledger.signals_of(lines[2])
    order = np.lexsort((np.arange(NUM_ROWS), -guided["delta"]))[: int(np.isfinite(guided["delta"]).sum())]
    start, end = lines[2]["window"]["start"], lines[2]["window"]["end"]
    assert np.flatnonzero(guided["in_window"]).tolist() == sorted(order[start:end].tolist())


def test_the_initial_losses_are_those_of_the_untrained_model(tmp_path: Path) -> None:
    rows = make_rows()
    trainer = make_trainer(tmp_path, DeltaLoss(), rows, schedule=Schedule(update_step=2, update_times=2))
    model = copy.deepcopy(trainer.model).eval()
    trainer.train()
    ledger = Ledger(tmp_path)
    found = ledger.signals_of(ledger.segments()[0])["loss"]
    with torch.no_grad():
        wanted = [float(model(**{name: torch.tensor([values]) for name, values in row.items()}).loss) for row in rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.isnan(found).nonzero()[0].tolist() == [9]


def test_measuring_does_not_change_the_training(tmp_path: Path) -> None:
    """The same rows in the same order, with and without passes over the pool, dropout on: the same weights."""
    measured = make_trainer(tmp_path / "measured", DeltaLoss(), make_rows())
    measured.train()
    rows = [ids for ids, _ in measured.trained]

    @dataclass(frozen=True, kw_only=True)
    class Recorded(Random):
        serves_warmup = True

        def select(self, state, signals, quota, progress, rng):
            first = progress.step * 2
            chosen = [row for ids in rows[first : first + quota // 2] for row in ids]
            return Selection(rows_Q=np.array(chosen), decision="recorded", ordered=True), state

    again = make_trainer(tmp_path / "again", Recorded(), make_rows())
    again.train()
    assert [ids for ids, _ in again.trained] == rows
    for one, other in zip(measured.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_quota_above_the_pool_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataFlexError, match=r"quota of 32 samples .* larger than the 30"):
        make_trainer(tmp_path, DeltaLoss(), make_rows(), schedule=Schedule(update_step=8))
    assert not (tmp_path / "dataflex").exists()


def test_resuming_with_the_trainers_own_argument(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1}
    full = make_trainer(tmp_path, DeltaLoss(), make_rows(), **options)
    full.train()
    resumed = make_trainer(tmp_path, DeltaLoss(), make_rows(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert [ids for ids, _ in resumed.trained] == [ids for ids, _ in full.trained[10:]]
    for one, other in zip(full.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_static_trains_what_the_stock_trainer_trains(tmp_path: Path) -> None:
    """Two epochs with dropout, the chain engaged and nothing chosen."""
    rows = [row for row in make_rows() if row["labels"][-1] != -100]
    options = vars(make_trainer(tmp_path / "options", Static(), rows, schedule=Schedule(update_step=2)).args)
    stock = Trainer(
        model=make_model(),
        args=TrainingArguments(
            output_dir=str(tmp_path / "stock"),
            **{
                name: options[name]
                for name in (
                    "per_device_train_batch_size",
                    "gradient_accumulation_steps",
                    "num_train_epochs",
                    "learning_rate",
                    "report_to",
                    "save_strategy",
                    "logging_steps",
                    "disable_tqdm",
                    "use_cpu",
                    "seed",
                )
            },
        ),
        train_dataset=rows,
        data_collator=collate,
    )
    stock.train()
    # Made after the other was trained: a Trainer seeds dropout when it is made.
    ours = make_trainer(tmp_path / "ours", Static(), rows, schedule=Schedule(update_step=2))
    ours.train()
    assert len(Ledger(tmp_path / "ours").segments()) >= 4
    for one, other in zip(stock.model.parameters(), ours.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(next(iter(stock.model.parameters())), next(iter(make_model().parameters())))
