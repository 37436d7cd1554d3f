"""Held-out loss and exact match of the checkpoints of one run: a process of its own, which a launcher can place."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from dataflex.evaluate.heldout import answer_losses
from dataflex.ledger.files import write_atomic
from dataflex.signals.flops import flops_of


def measure_model(model: torch.nn.Module, rows: Any) -> dict[str, Any]:
    """Loss per label token and exact match over ``rows`` (tokenised, with labels)."""
    found = answer_losses(model, rows)
    return {
        "loss": found.loss,
        "exact_match": float(found.is_greedy_N.mean()),
        "num_rows": len(rows),
        "num_label_tokens": int(found.tokens_N.sum()),
    }


def num_weights(model: Any) -> int:
    """Weights of matrix products that every token meets; see ``signals.flops``."""
    return flops_of(model).weights


def adapters_below(config: dict[str, Any], folder: str) -> str:
    """The adapter of a checkpoint, after those that LLaMA-Factory had merged into the model before it was trained.

    It trains the last of the adapters that it is given, or with ``create_new_adapter`` one on top of them all.
    """
    given = config.get("adapter_name_or_path") or []
    given = given.split(",") if isinstance(given, str) else list(given)
    merged = given if config.get("create_new_adapter") else given[:-1]
    return ",".join([*(name.strip() for name in merged), folder])


def measure_checkpoints(spec: dict[str, Any]) -> None:
    """Measure each checkpoint of ``spec`` that has no result yet.

    Args:
        spec: ``config``, LLaMA-Factory's keys with the held-out rows as ``dataset``; ``checkpoints``, from the number
            of steps to a folder, None for the model that training starts from; ``out``, the file of the results.
    """
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model, load_tokenizer

    out = Path(spec["out"])
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    rows: list[Any] | None = None
    for step, folder in spec["checkpoints"].items():
        if step in found:
            continue
        config = dict(spec["config"])
        if folder is not None:
            is_adapter = (Path(folder) / "adapter_config.json").is_file()
            config |= (
                {"adapter_name_or_path": adapters_below(config, folder)}
                if is_adapter
                else {"model_name_or_path": folder}
            )
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(config)
        tokenizer_module = load_tokenizer(model_args)
        tokenizer = tokenizer_module["tokenizer"]
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        if rows is None:
            module = get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer_module)
            rows = list(module["train_dataset"] or [])
        # A finetuning_type of lora without an adapter would put one on; as it adds nothing, "full" is the same model.
        finetuning_args.finetuning_type = "lora" if "adapter_name_or_path" in config else "full"
        model = load_model(tokenizer, model_args, finetuning_args, is_trainable=False)
        if not getattr(model, "is_quantized", False):
            model.to(training_args.device)
        num_cut = sum(len(row["input_ids"]) >= data_args.cutoff_len for row in rows)
        found[step] = {**measure_model(model, rows), "num_cut": num_cut, "num_weights": num_weights(model)}
        write_atomic(out, json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    # One device measures; with several in sight LLaMA-Factory asks for a launch of several processes.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    measure_checkpoints(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
