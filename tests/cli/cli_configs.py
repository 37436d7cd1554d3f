"""Configs as a user writes them, and LLaMA-Factory's answers without LLaMA-Factory."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

BASE: dict[str, Any] = {
    "model_name_or_path": "model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "toy",
    "dataset_dir": "data",
    "template": "default",
    "output_dir": "saves/run",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-4,
    "num_train_epochs": 1.0,
    "train_type": "dynamic_select",
    "component_name": "delta_loss",
    "warmup_step": 10,
    "update_step": 10,
    "update_times": 2,
}

# LLaMA-Factory's keys with their types, as far as the tests write them.
HOST_KEYS: dict[str, Any] = {
    **dict.fromkeys(("model_name_or_path", "dataset", "eval_dataset"), str | None),
    **dict.fromkeys(("stage", "finetuning_type", "dataset_dir", "template", "output_dir"), str),
    **dict.fromkeys(("do_train", "dataloader_drop_last"), bool),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "seed"), int),
    **dict.fromkeys(("learning_rate", "num_train_epochs", "val_size", "warmup_steps"), float),
    "max_samples": int | None,
}


def changed(**changes: Any) -> dict[str, Any]:
    """The base config with changes; None takes a key out."""
    return {key: value for key, value in {**BASE, **changes}.items() if value is not None}


def write_config(folder: Path, config: Any, name: str = "config.yaml") -> str:
    path = folder / name
    path.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")  # JSON is YAML
    return str(path)


def fake_llamafactory(num_devices: int = 1) -> types.SimpleNamespace:
    """What the verbs ask of the integration before they train."""

    def train(*args: Any) -> None:
        raise AssertionError("nothing is to be trained here")

    return types.SimpleNamespace(
        known_keys=lambda: dict(HOST_KEYS),
        num_devices=lambda: num_devices,
        refuse_config=lambda host: None,
        run_static=train,
        run_dynamic=train,
    )
