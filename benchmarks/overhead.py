"""What the program costs beside the training: the dynamic trainer against the stock trainer.

python -m benchmarks.overhead [--ways static mix weigh both] [--pairs 20] [--out FILE.json]

`static` chooses nothing, `mix` is ODM over four domains (it reads the losses of training), `weigh` is the weigher
`loss` in the host's order, `both` are the two together. All train as many steps of the same small model in one
process, in turn; the chain crosses 12 boundaries and writes a ledger line at each. Printed is the ratio of the times,
dynamic / stock, with the 95 % interval of its mean.
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

from dataflex import ODM, LossWeigher
from dataflex.algorithms.combine import Part
from dataflex.core.plan import Schedule
from dataflex.train.method import Method
from dataflex.train.mixin import dynamic
from dataflex.train.settings import Settings

STEPS, BATCH, LENGTH, BOUNDARIES = 60, 8, 128, 12
MIX, WEIGH = Part(name="odm", method=ODM()), (Part(name="loss", method=LossWeigher()),)
WAYS = {
    "static": Method(),
    "mix": Method(mixer=MIX),
    "weigh": Method(weighers=WEIGH),
    "both": Method(mixer=MIX, weighers=WEIGH),
}
AIMS = {"static": 1.01, "mix": 1.02, "weigh": 1.02, "both": 1.02}  # of the ratio; the interval's lower end passes


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


def seconds(method: Method | None, rows: Rows, folder: str) -> float:
    """Time of one training run from its first batch to its last step; of the stock trainer without a method."""
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
    if method is not None:
        settings = Settings(
            method=method,
            schedule=Schedule(update_step=STEPS // BOUNDARIES, update_times=BOUNDARIES),
            config={},
            overwrite=True,
            rows={"dataset": [f"domain {row % 4}" for row in range(len(rows))]},
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
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, found = Rows(), {}
    with tempfile.TemporaryDirectory() as folder:
        for method in (None, *(WAYS[way] for way in args.ways)):  # warm-up
            seconds(method, rows, folder)
        for way in args.ways:
            found[way] = compared(WAYS[way], rows, folder, args.pairs)
            low, mean, high = (found[way][name] for name in ("low", "ratio", "high"))
            verdict = "passes" if low <= AIMS[way] else "fails"
            print(
                f"{way} / stock: {mean:.4f}, 95 % interval {low:.4f} to {high:.4f}, {args.pairs} pairs; {verdict} "
                f"(lower end at most {AIMS[way]})",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


def compared(method: Method, rows: Rows, folder: str, pairs: int) -> dict[str, float]:
    """Ratio of the times of pairs, run in turn, with its interval."""
    logs = []
    for pair in range(pairs):
        order = (None, method) if pair % 2 == 0 else (method, None)
        taken = {which is not None: seconds(which, rows, folder) for which in order}
        logs.append(math.log(taken[True] / taken[False]))
    half = 1.96 * statistics.stdev(logs) / math.sqrt(len(logs))
    low, mean, high = (math.exp(statistics.mean(logs) + d) for d in (-half, 0.0, half))
    return {"ratio": mean, "low": low, "high": high, "pairs": pairs}


if __name__ == "__main__":
    main()
