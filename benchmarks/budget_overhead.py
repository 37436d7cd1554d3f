"""What Delta Loss under a scoring budget adds to the time of a run, against the stock trainer and full scoring.

python -m benchmarks.budget_overhead [--device cpu|cuda] [--shape smollm2|llama-1b] [--rows 480] [--tokens 250]
    [--pairs 3] [--full]

A model of random weights in the shape of SmolLM2-135M or of a Llama of 1B, LoRA of rank 16 on all linear layers, rows
with labels on their second half, one pass in ten decisions. Stock and dynamic runs in
turn in one process, the same number of steps; printed is the ratio of their times, with what the ledger says of the
scoring.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from benchmarks.budget import Rows
from dataflex import DeltaLoss, Options, Schedule, dynamic

DECISIONS, BATCH = 10, 8
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 1000, "tie_word_embeddings": True},
    "smollm2": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
}  # fmt: skip
LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(feature["input_ids"]) for feature in features)
    ids = torch.tensor([f["input_ids"] + [0] * (width - len(f["input_ids"])) for f in features])
    mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
    labels = ids.masked_fill(mask == 0, -100)
    for row, feature in enumerate(features):
        labels[row, : len(feature["input_ids"]) // 2] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Labelled(Rows):
    def __getitem__(self, row: int) -> dict[str, list[int]]:
        ids = self.rows[row]
        return {"input_ids": ids, "labels": [-100] * (len(ids) // 2) + ids[len(ids) // 2 :]}


def one_run(args: argparse.Namespace, rows: Labelled, budget: float | str | None, folder: str) -> dict[str, Any]:
    """Seconds of one run, the stock trainer's without a budget, and what scoring cost."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    config = LlamaConfig(**SHAPES[args.shape], max_position_embeddings=2048)
    with torch.device(args.device):
        model = get_peft_model(LlamaForCausalLM(config).to(dtype), LORA)
    training = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        use_cpu=args.device == "cpu",
        bf16=args.device == "cuda",
    )
    common = {"model": model, "args": training, "train_dataset": rows, "data_collator": collate}
    if budget is None:
        trainer = Trainer(**common)
    else:
        steps = len(rows) // BATCH // DECISIONS
        trainer = dynamic(Trainer)(
            **common,
            selector=DeltaLoss(),
            schedule=Schedule(update_step=steps, update_times=DECISIONS),
            options=Options(score_budget=budget, overwrite_output_dir=True, fresh=True),
        )
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    trainer.train()
    if args.device == "cuda":
        torch.cuda.synchronize()
    found: dict[str, Any] = {"seconds": time.perf_counter() - began}
    if budget is not None:
        lines = [line for _, line in sorted(trainer._ledger.segments().items())]
        passes = [line["scoring"] for line in lines if line["scoring"]]
        found["choosing"] = sum(line["seconds"]["total"] for line in lines)
        found["scoring"] = sum(scoring["seconds"] for scoring in passes)
        found["estimating"] = sum(s.get("budget", {}).get("estimating_seconds", 0.0) for s in passes)
        found["rows"] = sum(scoring["num_rows"] for scoring in passes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--tokens", type=int, default=250, help="of a row on average")
    parser.add_argument("--budget", type=float, default=0.1)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="one run with full scoring as well")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    lengths = rng.integers(args.tokens * 4 // 5, args.tokens * 6 // 5, args.rows)
    rows = Labelled([rng.integers(3, SHAPES[args.shape]["vocab_size"], n).tolist() for n in lengths])
    found: dict[str, Any] = {"stock": [], "budget": []}
    with tempfile.TemporaryDirectory() as folder:
        if args.device == "cuda":  # kernels, and the first allocation
            one_run(args, Labelled(rows.rows[: BATCH * DECISIONS]), args.budget, folder)
        for pair in range(args.pairs):
            for which in ("stock", "budget") if pair % 2 == 0 else ("budget", "stock"):
                found[which].append(one_run(args, rows, args.budget if which == "budget" else None, folder))
        if args.full:
            found["full"] = one_run(args, rows, "full", folder)
    ratios = [b["seconds"] / s["seconds"] for s, b in zip(found["stock"], found["budget"], strict=True)]
    told, stock = found["budget"][-1], statistics.median(s["seconds"] for s in found["stock"])
    print(
        f"{args.shape} on {args.device}, {args.rows} rows of {args.tokens} tokens: stock {stock:.1f} s; "
        f"score_budget {args.budget:g} takes x "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {args.pairs} pairs); of it choosing "
        f"{told['choosing']:.1f} s: scoring {told['rows']} rows {told['scoring']:.1f} s, estimating "
        f"{told['estimating']:.1f} s"
    )
    if "full" in found:
        print(f"full scoring takes x {found['full']['seconds'] / stock:.2f}, {found['full']['rows']} rows")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
