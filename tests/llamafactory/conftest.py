"""A tiny model, a tokenizer and data made here, and LLaMA-Factory runs in this process."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DISABLE_VERSION_CHECK", "1")

WORDS = ["red", "blue", "fox", "dog", "bird", "runs", "jumps", "sleeps", "over", "the", "quick", "moon", "one", "two"]


@pytest.fixture(scope="session", autouse=True)
def offline_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is fetched, and the data cache of the person who runs the tests stays as it is."""
    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and a word-level tokenizer, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-model")
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, "Human", "Assistant", ":", "System"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows of unequal lengths with a kept column."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        ask = " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 9)))
        answer = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))
        rows.append({"instruction": ask, "input": "", "output": answer, "task": f"task{i % 3}"})
    return rows


def write_data(folder: Path, **sets: list[dict[str, Any]]) -> Path:
    """Write data sets and their dataset_info.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({name: {"file_name": f"{name}.json"} for name in sets}))
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    unanswered = [{**row, "output": None} for row in make_rows(5)]  # LLaMA-Factory drops such rows
    return write_data(
        tmp_path_factory.mktemp("data"),
        toy=make_rows(37),
        other=make_rows(12, seed=1),
        empty=[],
        nothing_valid=unanswered,
    )


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The presets keep initial losses beside the working directory: a place of each test's own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def base_config(tiny_model: Path, data_dir: Path, output_dir: Path) -> dict[str, Any]:
    """A config of a small LoRA run."""
    return {
        "model_name_or_path": str(tiny_model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_target": "all",
        "lora_dropout": 0.1,
        "dataset": "toy",
        "dataset_dir": str(data_dir),
        "template": "default",
        "cutoff_len": 64,
        "output_dir": str(output_dir),
        "overwrite_output_dir": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "num_train_epochs": 1.0,
        "lr_scheduler_type": "cosine",
        "bf16": False,
        "use_cpu": True,
        "seed": 7,
        "train_type": "dynamic_select",
        "component_name": "delta_loss",
        "warmup_step": 3,
        "update_step": 2,
        "update_times": 2,
    }


@pytest.fixture
def config(tiny_model: Path, data_dir: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A config of a small LoRA run; keyword arguments change it, None takes a key out."""

    def make(**changes: Any) -> dict[str, Any]:
        base = base_config(tiny_model, data_dir, tmp_path / "run")
        return {key: value for key, value in {**base, **changes}.items() if value is not None}

    return make


def train(
    config: dict[str, Any], tmp_path: Path, *, fresh: bool = False, other_versions: bool = False, **params: Any
) -> Path:
    """Train through the verb, with parameters of the component; returns the output directory."""
    from dataflex.cli.train import train as verb

    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    overrides = [f"component.params.{name}={json.dumps(value)}" for name, value in params.items()]
    verb(str(path), overrides, fresh=fresh, other_versions=other_versions)
    return Path(config["output_dir"])


def train_stock(config: dict[str, Any]) -> Path:
    """Train with LLaMA-Factory alone."""
    from llamafactory.train.tuner import run_exp

    from dataflex.cli.config import OUR_KEYS

    run_exp({key: value for key, value in config.items() if key not in OUR_KEYS})
    return Path(config["output_dir"])


def weights(folder: Path) -> dict[str, Any]:
    """The adapter's tensors."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Bit by bit."""
    import torch

    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), f"{name} differs by {(tensor - right[name]).abs().max():.3g}"
