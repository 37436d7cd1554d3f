"""DoReMi in three runs on three made-up domains: the one that can be learned and is hard gains, noise does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from dataflex import DoReMi, Schedule, dynamic
from dataflex.ledger.ledger import Ledger

VOCAB, LENGTH, ROWS = 32, 16, 120


def make_data() -> Dataset:
    """``easy``: one token over and over; ``hard``: each token says the next, by a fixed rule; ``noise``: any token."""
    rng = np.random.default_rng(0)
    rule = rng.permutation(VOCAB)
    rows = []
    for _ in range(ROWS):
        walk = [int(rng.integers(VOCAB))]
        for _ in range(LENGTH - 1):
            walk.append(int(rule[walk[-1]]))
        for name, ids in (("easy", [7] * LENGTH), ("hard", walk), ("noise", rng.integers(0, VOCAB, LENGTH).tolist())):
            rows.append({"input_ids": ids, "labels": ids, "dataset": name})
    return Dataset.from_list(rows)


def train(output_dir: Path, mixer: DoReMi, steps: int, seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    args = TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=12,
        learning_rate=1e-2,
        num_train_epochs=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    trainer = dynamic(Trainer)(
        model=LlamaForCausalLM(config),
        args=args,
        train_dataset=make_data(),
        data_collator=lambda rows: {
            name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")
        },
        mixer=mixer,
        schedule=Schedule(update_step=steps // 4, update_times=4),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("apply", ["loss", "sample"])
def test_weights_rise_for_what_can_be_learned_and_not_for_noise(tmp_path: Path, apply: Any) -> None:
    reference = train(tmp_path / "reference", DoReMi(step=1), steps=160, seed=1)
    reference.save_model(str(tmp_path / "reference"))
    proxy = DoReMi(step=2, reference=str(tmp_path / "reference"), eta=1.0, apply=apply)
    train(tmp_path / "proxy", proxy, steps=40, seed=2)
    found = json.loads((tmp_path / "proxy" / "dataflex" / "proportions.json").read_text())
    assert found["hard"] > 0.5, "the reference has learned the rule, the proxy is learning it"
    assert found["noise"] < 1 / 3
    assert found["easy"] < 1 / 3
    assert sum(found.values()) == pytest.approx(1)
    excess = Ledger(tmp_path / "proxy").segments()[1]["mix"]["columns"]["excess"]
    assert excess["hard"] > 2 * excess["noise"]
    main = train(tmp_path / "main", DoReMi(step=3, path=str(tmp_path / "proxy")), steps=8, seed=3)
    counts = Ledger(tmp_path / "main").segments()[0]["mix"]["counts"]
    assert counts["hard"] > counts["noise"]
    assert main.state.global_step == 8
