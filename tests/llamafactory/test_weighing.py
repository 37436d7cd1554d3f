"""Weighers in LLaMA-Factory's trainers: one is nothing to a bit, and what the weights do can be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import assert_same_weights, train, train_stock, weights
from tests.llamafactory.test_images import of_pictures, pictured, tiny_llava
from tests.llamafactory.test_stages import of_stage, stage_data

__all__ = ["pictured", "stage_data", "tiny_llava"]  # fixtures

# One for every row and token, through losses of rows, of tokens and their gathering.
ONES = {
    "train_type": "dynamic",
    "component_name": None,
    "warmup_step": 0,
    "update_step": 3,
    "weigh": [
        {"component_name": "focal", "params": {"gamma": 0.0}},
        {"component_name": "loss", "params": {"strategy": "uniform"}},
    ],
}


def assert_nothing_changed(stock: dict[str, Any], ours: dict[str, Any], tmp_path: Path) -> None:
    stock_dir = train_stock({**stock, "output_dir": str(tmp_path / "stock")})
    run = train({**ours, "output_dir": str(tmp_path / "ours")}, tmp_path)
    if stock.get("finetuning_type") == "full":
        left, right = (load_file(folder / "model.safetensors") for folder in (stock_dir, run))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    else:
        assert_same_weights(stock_dir, run)
    told = [line["weights"] for line in Ledger(run).lines() if line["kind"] == "trained"]
    assert len(told) >= 2
    assert all((line["min"], line["max"]) == (1.0, 1.0) for line in told)


@pytest.mark.parametrize(
    "changes",
    [
        {"per_device_train_batch_size": 3, "num_train_epochs": 2.0},  # 37 rows: a last step short of a micro-batch
        {"gradient_accumulation_steps": 1, "bf16": True},
        {"finetuning_type": "full", "lora_target": None, "learning_rate": 1e-4, "disable_gradient_checkpointing": True},
    ],
    ids=["lora", "bf16", "full"],
)
def test_weights_of_one_train_what_the_stock_trainer_trains(config, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert_nothing_changed(config(**changes), config(**{**ONES, **changes}), tmp_path)


@pytest.mark.parametrize("name", ["pt", "pt unpacked"])
def test_weights_of_one_in_pre_training(config, stage_data: Path, tmp_path: Path, name: str) -> None:
    assert_nothing_changed(of_stage(config, stage_data, name), of_stage(config, stage_data, name, **ONES), tmp_path)


def test_weights_of_one_for_rows_with_images(config, tiny_llava: Path, pictured: Path, tmp_path: Path) -> None:
    """The mean over each micro-batch's own tokens: LLaMA-Factory gives such models no count of the whole step's."""
    assert_nothing_changed(
        of_pictures(config, tiny_llava, pictured), of_pictures(config, tiny_llava, pictured, **ONES), tmp_path
    )


def test_weights_change_what_is_trained(config, tmp_path: Path) -> None:
    stock = train_stock(config(output_dir=str(tmp_path / "stock")))
    ours = train(
        config(
            output_dir=str(tmp_path / "ours"), **{**ONES, "weigh": {"component_name": "loss", "params": {"r": 0.4}}}
        ),
        tmp_path,
    )
    assert any((weights(stock)[name] != tensor).any() for name, tensor in weights(ours).items())
    told = [line["weights"] for line in Ledger(ours).lines() if line["kind"] == "trained"]
    assert all(line["min"] < 1 < line["max"] for line in told[:-1])
    assert told[-1]["max"] == 1.0, "row 37 is alone in its micro-batch"
