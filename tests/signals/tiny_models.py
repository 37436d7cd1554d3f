"""Models of two layers with random weights, rows of very unequal length, and the loss of one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import transformers as hf
from torch import nn

from dataflex.signals.loss import LossSignal, mean_losses
from dataflex.signals.sweep import Collective, sweep

VOCAB = 64
PAD = 0
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Far from uniform logits, so that attention to a wrong position is seen in the loss.
    "initializer_range": 0.3,
}


def _llama(**changes: Any) -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**COMMON, **changes))


def _peft() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(_llama(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # an adapter that starts at zero would be no test of it
            nn.init.normal_(parameter, std=0.2)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": _llama,
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**COMMON)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**COMMON, head_dim=8)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**COMMON, head_dim=8, final_logit_softcapping=3.0, attn_logit_softcapping=5.0, sliding_window=8)
    ),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**COMMON, head_dim=8, sliding_window=8)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**COMMON, logits_scaling=4.0)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**COMMON, logit_scale=0.5)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, bos_token_id=1
        )
    ),
    "mixtral": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True)
    ),
    "qwen2_moe": lambda: hf.Qwen2MoeForCausalLM(
        hf.Qwen2MoeConfig(
            **COMMON, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=24
        )
    ),
    "lora": _peft,
}


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


Row = dict[str, list[int]]

# (tokens, label tokens at the end): from one token to sixty, with prompts of every length.
SHAPES = [(3, 1), (60, 5), (7, 6), (17, 17), (25, 1), (2, 1), (9, 4), (41, 30), (12, 3), (5, 2), (33, 8)]
NEVER_SCORED = (2, 5, 11)  # rows of make_rows: no label, a label at position 0 only, a single token


def make_rows(seed: int = 0) -> list[Row]:
    """Fourteen rows; those of ``NEVER_SCORED`` have nothing that is predicted."""
    rng = np.random.default_rng(seed)
    rows = []
    for length, num_labels in SHAPES:
        tokens = rng.integers(3, VOCAB, length).tolist()
        rows.append({"input_ids": tokens, "labels": [-100] * (length - num_labels) + tokens[length - num_labels :]})
    unscored = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100] * 4},
        {"input_ids": [9, 10, 11], "labels": [9, -100, -100]},
        {"input_ids": [12], "labels": [12]},
    ]
    for position, row in zip(NEVER_SCORED, unscored, strict=True):
        rows.insert(position, row)
    rows[9]["labels"][25] = -100  # a hole in the middle of an answer
    return rows


def collate(features: list[Row], *, side: str = "right", multiple: int = 1) -> dict[str, torch.Tensor]:
    """Pad to the longest, on either side; what is padded has mask 0 and label -100."""
    longest = max(len(feature["input_ids"]) for feature in features)
    width = -(-longest // multiple) * multiple

    def padded(name: str, fill: int) -> torch.Tensor:
        columns = []
        for feature in features:
            values = feature["input_ids"] if name == "mask" else feature[name]
            values = [1] * len(values) if name == "mask" else values
            filling = [fill] * (width - len(values))
            columns.append(filling + values if side == "left" else values + filling)
        return torch.tensor(columns)

    return {
        "input_ids": padded("input_ids", PAD),
        "labels": padded("labels", -100),
        "attention_mask": padded("mask", 0),
    }


def signal_of(model: nn.Module, rows: Sequence[Row], **collate_options: Any) -> LossSignal:
    return LossSignal(
        model=model,
        features=lambda rows_B: [rows[row] for row in rows_B],
        collate=lambda features: collate(features, **collate_options),
        to_device=lambda batch: batch,
        autocast=nullcontext,
    )


def measured_losses(
    model: nn.Module, rows: Sequence[Row], *, batch_tokens: int | None = 512, fast: bool = False, **options: Any
) -> np.ndarray:
    """Mean losses of all rows by the code under test."""
    lengths_N = np.array([len(row["input_ids"]) for row in rows])
    with torch.no_grad():
        signal, every = signal_of(model, rows, **options), np.arange(len(rows))
        ranks = Collective(device=torch.device("cpu"))
        if not fast:
            result = sweep(signal, lengths_N, every, ranks=ranks, batch_tokens=batch_tokens)
        else:
            with signal.engaged(np.argsort(lengths_N)[-3:]) as why_not:
                assert why_not is None, why_not
                assert signal.is_fast
                result = sweep(signal, lengths_N, every, ranks=ranks, batch_tokens=batch_tokens)
    return mean_losses(result.values_NxC)


def losses_one_by_one(model: nn.Module, rows: Sequence[Row]) -> np.ndarray:
    """The model's own loss of each row in a batch of its own, without padding; NaN where nothing is predicted."""
    losses = []
    with torch.no_grad():
        for row in rows:
            inputs = {name: torch.tensor([values]) for name, values in row.items()}
            if any(label != -100 for label in row["labels"][1:]):
                output = model(**inputs)
                aux = getattr(output, "aux_loss", None)
                weight = getattr(model.config, "router_aux_loss_coef", 0.0)
                losses.append(float(output.loss - weight * aux) if aux is not None else float(output.loss))
            else:
                losses.append(float("nan"))
    return np.array(losses)
