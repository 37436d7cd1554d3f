"""One plan on every trainer: from the same numbers, and from the same model and data, the same decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tiny import make_model, make_tokenizer
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl_runs import trl_class

from dataflex import DeltaLoss, Loss, Replay, Schedule, Static, dynamic
from dataflex.ledger.ledger import Ledger

NUM_ROWS = 53
ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "num_train_epochs": 1,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "linear",
    "seed": 11,
}


def tokenised() -> Dataset:
    """Rows of 4 to 19 tokens, the first two without a label."""
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(NUM_ROWS):
        tokens = rng.integers(4, 20, int(rng.integers(4, 20))).tolist()
        rows.append({"input_ids": tokens, "attention_mask": [1] * len(tokens), "labels": [-100, -100, *tokens[2:]]})
    return Dataset.from_list(rows)


def make(kind: str, output_dir: Path, selector: Any, schedule: Schedule) -> Any:
    tokenizer = make_tokenizer()
    collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    if kind == "Trainer":
        host, config = Trainer, TrainingArguments
    elif kind == "SFTTrainer":
        host, config = trl_class("SFTTrainer"), trl_class("SFTConfig")
    else:
        pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed")
        host, config = llamafactory_trainer(), TrainingArguments
    return dynamic(host)(
        model=make_model(tokenizer),
        args=config(output_dir=str(output_dir), **ARGUMENTS),
        train_dataset=tokenised(),
        data_collator=collate,
        processing_class=tokenizer,
        selector=selector,
        schedule=schedule,
    )


def llamafactory_trainer() -> type:
    """LLaMA-Factory's sft trainer with the arguments that it reads beyond those of a Trainer."""
    from llamafactory.hparams import FinetuningArguments, ModelArguments
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
    from transformers import Seq2SeqTrainingArguments

    class Host(CustomSeq2SeqTrainer):
        def __init__(self, *, args: Any, processing_class: Any, **kwargs: Any) -> None:
            options = Seq2SeqTrainingArguments(output_dir=args.output_dir, **ARGUMENTS)
            options.fp8 = False  # LLaMA-Factory's own arguments have it
            super().__init__(
                finetuning_args=FinetuningArguments(),
                processor=None,
                model_args=ModelArguments(model_name_or_path="none"),
                gen_kwargs={},
                args=options,
                tokenizer=processing_class,
                **kwargs,
            )

    return Host


KINDS = ["Trainer", "SFTTrainer", "CustomSeq2SeqTrainer"]


def decisions(folder: Path) -> list[tuple[str, list[int]]]:
    ledger = Ledger(folder)
    return [(line["decision"], ledger.rows_of(line).tolist()) for _, line in sorted(ledger.segments().items())]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_given_table_gives_the_same_decisions_on_every_trainer(tmp_path: Path, kind: str) -> None:
    table = tmp_path / "scores.npy"
    scores = np.random.default_rng(3).normal(size=NUM_ROWS)
    np.save(table, scores)
    selector = Static(path=str(table))
    schedule = Schedule(warmup_step=1, update_step=2, update_times=2)
    for name in ("Trainer", kind):
        make(name, tmp_path / name, selector, schedule).train()
    assert decisions(tmp_path / "Trainer") == decisions(tmp_path / kind)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("selector", [DeltaLoss(window_size=0.3), Loss()], ids=["delta_loss", "loss"])
def test_from_the_same_model_and_data_the_same_decisions_end_to_end(tmp_path: Path, kind: str, selector: Any) -> None:
    schedule = Schedule(warmup_step=1, update_step=2, update_times=3)
    trainers = {name: make(name, tmp_path / name, selector, schedule) for name in ("Trainer", kind)}
    for trainer in trainers.values():
        trainer.train()
    plain, other = decisions(tmp_path / "Trainer"), decisions(tmp_path / kind)
    assert len(plain) == 4
    assert plain == other
    left, right = (dict(trainer.model.named_parameters()) for trainer in trainers.values())
    for name, tensor in left.items():
        # TRL from 1.0 sums its loss in another order, and Adam makes 4e-6 of the difference in 7 steps.
        assert (tensor - right[name]).abs().max() < 2e-5, name


def test_a_record_of_one_trainer_is_replayed_on_another(tmp_path: Path) -> None:
    schedule = Schedule(warmup_step=1, update_step=2, update_times=2)
    make("Trainer", tmp_path / "plain", DeltaLoss(), schedule).train()
    make("SFTTrainer", tmp_path / "replayed", Replay(path=str(tmp_path / "plain")), schedule).train()
    assert [rows for _, rows in decisions(tmp_path / "plain")] == [rows for _, rows in decisions(tmp_path / "replayed")]
