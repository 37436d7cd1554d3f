"""Small runs of TRL's trainers, stock and dynamic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny import make_model, make_sums, make_tokenizer

from dataflex import DeltaLoss, Options, Schedule, dynamic

SCHEDULE = Schedule(warmup_step=2, update_step=2, update_times=3)
COMMON = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "num_train_epochs": 1,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 5,
}


def trl_class(name: str) -> Any:
    """A class of TRL; skips where this TRL cannot import it (0.24 with transformers 5 takes mergekit for installed)."""
    import trl

    try:
        return getattr(trl, name)
    except RuntimeError as error:
        pytest.skip(f"this trl cannot import its own {name}: {' '.join(str(error).split())[:120]}")


def sums(num_rows: int = 61) -> Dataset:
    return Dataset.from_list(make_sums(num_rows))


def text(num_rows: int = 61) -> Dataset:
    return Dataset.from_list([{"text": row["prompt"] + row["completion"]} for row in make_sums(num_rows)])


def pairs(num_rows: int = 37) -> Dataset:
    left, right = make_sums(num_rows, seed=0), make_sums(num_rows, seed=1)
    return Dataset.from_list(
        [
            {"prompt": a["prompt"], "chosen": a["completion"], "rejected": b["completion"], "kind": a["kind"]}
            for a, b in zip(left, right, strict=True)
        ]
    )


def rated(num_rows: int = 37) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": row["prompt"], "completion": row["completion"], "label": row["kind"] != "wrong"}
            for row in make_sums(num_rows)
        ]
    )


def build(
    kind: str, output_dir: Path, data: Any, *, selector: Any = None, schedule: Schedule = SCHEDULE, **arguments: Any
) -> Any:
    """A trainer of ``kind`` (SFT, DPO, Reward, KTO); dynamic with a selector or another component, else stock."""
    trainer_class, config = trl_class(f"{kind}Trainer"), trl_class(f"{kind}Config")
    options = arguments.pop("options", Options())
    ours = {name: arguments.pop(name) for name in ("mixer", "weigher", "order") if name in arguments}
    ours |= {} if selector is None else {"selector": selector}
    ours |= {"schedule": schedule, "options": options} if ours else {}
    names = ("peft_config", "callbacks", "eval_dataset", "target")
    extra = {name: arguments.pop(name) for name in names if name in arguments}
    tokenizer = make_tokenizer()
    model: Any = make_model(tokenizer)
    if kind == "Reward":
        from transformers import AutoModelForSequenceClassification

        torch.manual_seed(0)
        model.config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(model.config)
    if not hasattr(model, "warnings_issued"):
        model.warnings_issued = {}  # transformers 5 took it away, and KTOTrainer of TRL 0.24 writes to it
    if kind in ("DPO", "KTO"):
        extra["ref_model"] = make_model(tokenizer)  # else a newer TRL loads it again from where the model came from
    torch.manual_seed(1)
    return (dynamic(trainer_class) if ours else trainer_class)(
        model=model,
        args=config(output_dir=str(output_dir), **{**COMMON, **arguments}),
        train_dataset=data,
        processing_class=tokenizer,
        **extra,
        **ours,
    )


def same_weights(one: Any, other: Any) -> bool:
    left, right = dict(one.model.named_parameters()), dict(other.model.named_parameters())
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


__all__ = ["SCHEDULE", "DeltaLoss", "build", "pairs", "rated", "same_weights", "sums", "text", "trl_class"]
