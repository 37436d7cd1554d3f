"""What the chain costs when nothing is chosen: the dynamic trainer with `static` against the stock trainer.

python -m benchmarks.overhead [--pairs 20] [--out FILE.json]

Both train the same steps of the same small model in one process, in turn; the chain crosses 10 or more boundaries and
writes a ledger line at each. Printed is the ratio of the times, dynamic / stock, with the 95 % interval of its mean.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from dataflex.algorithms.select.static import Static
from dataflex.core.plan import Schedule
from dataflex.train.mixin import dynamic
from dataflex.train.settings import Method, Settings

STEPS, BATCH, LENGTH, BOUNDARIES = 60, 8, 128, 12


class Rows(Dataset):
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, 1000, (STEPS * BATCH, LENGTH), generator=generator).tolist()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        return {"input_ids": self.ids[row], "labels": self.ids[row]}


def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([feature[name] for feature in features]) for name in ("input_ids", "labels")}


def seconds(engaged: bool, rows: Rows, folder: str) -> float:
    """Time of one training run from its first batch to its last step."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        report_to=[],
        save_strategy="no",
        logging_steps=STEPS,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    common = {
        "model": LlamaForCausalLM(config),
        "args": args,
        "train_dataset": rows,
        "data_collator": collate,
    }
    if engaged:
        settings = Settings(
            method=Method(name="static", selector=Static()),
            schedule=Schedule(update_step=STEPS // BOUNDARIES),
            config={},
            overwrite=True,
        )
        trainer = dynamic(Trainer)(**common, dataflex=settings)
    else:
        trainer = Trainer(**common)
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    trainer.train()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, ratios = Rows(), []
    with tempfile.TemporaryDirectory() as folder:
        for engaged in (False, True):  # warm-up
            seconds(engaged, rows, folder)
        for pair in range(args.pairs):
            order = (False, True) if pair % 2 == 0 else (True, False)
            taken = {engaged: seconds(engaged, rows, folder) for engaged in order}
            ratios.append(taken[True] / taken[False])
    logs = [math.log(ratio) for ratio in ratios]
    half = 1.96 * statistics.stdev(logs) / math.sqrt(len(logs))
    low, mean, high = (math.exp(statistics.mean(logs) + d) for d in (-half, 0.0, half))
    print(f"dynamic / stock: {mean:.4f}, 95 % interval {low:.4f} to {high:.4f}, {len(ratios)} pairs")
    print("passes" if low <= 1.01 else "fails", "(lower end at most 1.01)")
    if args.out:
        args.out.write_text(json.dumps({"ratio": mean, "low": low, "high": high, "pairs": len(ratios)}, indent=1))


if __name__ == "__main__":
    main()
