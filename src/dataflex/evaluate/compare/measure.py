"""Held-out loss and exact match of the checkpoints of one run: a process of its own, which a launcher can place."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataflex.ledger.files import write_atomic
from dataflex.signals.base import undisturbed
from dataflex.signals.head import IGNORE_INDEX
from dataflex.signals.loss import loss_sums, pad_right
from dataflex.signals.sweep import Collective, sweep


class AnswerSignal:
    """(sum of negative log-likelihoods, number of label tokens, 1 if greedy decoding writes the answer) of each row.

    Greedy decoding writes exactly the answer's tokens if and only if each of them is the most likely one after the
    question and the tokens before it: one forward tells, nothing is generated.
    """

    num_columns = 3

    def __init__(self, model: torch.nn.Module, rows: Any) -> None:
        self._model, self._rows = model, rows
        self._device = next(model.parameters()).device

    def prepare(self, rows_B: np.ndarray) -> dict[str, torch.Tensor]:
        features = [self._rows[int(row)] for row in rows_B]
        return pad_right([f["input_ids"] for f in features], [f["labels"] for f in features])

    def measure(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels_BxP = batch["labels"].to(self._device)[:, 1:]
        logits_BxPxV = self._model(input_ids=batch["input_ids"].to(self._device), use_cache=False).logits[:, :-1]
        has_label_BxP = labels_BxP != IGNORE_INDEX
        right_BxP = (logits_BxPxV.argmax(-1) == labels_BxP) | ~has_label_BxP
        exact_B = right_BxP.all(1) & has_label_BxP.any(1)
        return torch.cat([loss_sums(logits_BxPxV, labels_BxP), exact_B.double()[:, None]], dim=1)


def measure_model(model: torch.nn.Module, rows: Any) -> dict[str, Any]:
    """Loss per label token and exact match over ``rows`` (tokenised, with labels)."""
    lengths_N = np.array([len(row["input_ids"]) for row in rows])
    signal = AnswerSignal(model, rows)
    with undisturbed(model):
        # A fixed budget: the same checkpoint gives the same numbers each time, to the last bit.
        ranks = Collective(device=next(model.parameters()).device)
        values_Nx3 = sweep(signal, lengths_N, np.arange(len(rows)), ranks=ranks, batch_tokens=4096).values_NxC
    sums, counts, exact = values_Nx3.sum(0)
    return {
        "loss": float(sums / counts),
        "exact_match": float(exact / len(rows)),
        "num_rows": len(rows),
        "num_label_tokens": int(counts),
    }


def num_weights(model: Any) -> int:
    """Weights that every token is multiplied with: an input embedding that is not also the head is a look-up."""
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and embedding.weight is head.weight
    return total if tied else total - embedding.weight.numel()


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
            config["adapter_name_or_path" if is_adapter else "model_name_or_path"] = folder
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
        found[step] = {**measure_model(model, rows), "num_weights": num_weights(model)}
        write_atomic(out, json.dumps(found, indent=1).encode())


if __name__ == "__main__":
    measure_checkpoints(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
