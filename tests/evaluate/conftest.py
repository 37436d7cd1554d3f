"""A tiny model with a word-level tokenizer, an adapter on it, questions, and the command in this process."""

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
os.environ.setdefault("HF_HUB_OFFLINE", "1")

WORDS = ["red", "blue", "fox", "dog", "bird", "runs", "jumps", "sleeps", "over", "the", "quick", "moon", "one", "two"]


@pytest.fixture(scope="session", autouse=True)
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "model"
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, "?", ".", "user", "assistant", ":", "1", "2"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(1)
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
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(tiny_model: Path) -> Path:
    """A LoRA adapter with weights of its own, and beside it the same merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(2)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    folder = tiny_model.parent / "adapter"
    model.peft_config["default"].base_model_name_or_path = str(tiny_model)
    model.save_pretrained(folder)
    merged = model.merge_and_unload()
    merged.save_pretrained(tiny_model.parent / "merged")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tiny_model.parent / "merged")
    return folder


def byte_level_tokenizer(*, special: list[str], plain: list[str] | None = None) -> Any:
    """A byte-level BPE of few merges, as most models have one; the first special token ends a text.

    Args:
        plain: further tokens of their own, which are no special ones.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 8, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in plain or []])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0])


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        ask = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 9))) + " ?"
        answer = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 4)))
        rows.append({"input": ask, "output": answer, "task": f"task{i % 3}"})
    return rows


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A config of a small evaluation; keyword arguments change it, None takes a key out."""
    (tmp_path / "qa.json").write_text(json.dumps(make_rows(12)))

    def make(**changes: Any) -> dict[str, Any]:
        base = {
            "models": [{"name": "tiny", "model_name_or_path": str(tiny_model)}],
            "template": "plain",
            "data": [{"name": "qa", "path": str(tmp_path / "qa.json"), "source": "task"}],
            "generation": {"max_new_tokens": 6, "batch_tokens": 60},
            "bootstrap": {"resamples": 200},
            "output_dir": str(tmp_path / "out"),
        }
        return {key: value for key, value in {**base, **changes}.items() if value is not None}

    return make


def evaluate(config: dict[str, Any], tmp_path: Path, *overrides: str) -> dict[str, Any]:
    """The verb; returns results.json."""
    from dataflex.cli.evaluate import evaluate as verb

    path = tmp_path / "evaluate.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    verb(str(path), list(overrides))
    return json.loads((Path(config["output_dir"]) / "results.json").read_text(encoding="utf-8"))
