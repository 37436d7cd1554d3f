"""A plain Trainer run by one or several gloo ranks; started by test_two_ranks.py, with torchrun or alone.

Usage: two_ranks_program.py OUTPUT_DIR MICRO_BATCH METHOD [FAULT]

METHOD is a selector, one of ``TOGETHER``, or "stock": the host's own trainer.

FAULT is what rank 1 does in its fourth scoring forward: "killed" (SIGKILL), "fails" (an exception) or "silent" (never
comes back). With "other decision" rank 1 receives other rows than rank 0 sent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import dataflex.train.ranks
from dataflex import (
    ODM,
    Adapt,
    ClusterLess,
    Column,
    DeltaLoss,
    Focal,
    InfoBatch,
    Less,
    LossWeigher,
    Rho1,
    RhoLoss,
    Sorting,
    Tsds,
)
from dataflex.algorithms.catalog import component_class
from dataflex.algorithms.combine import Part
from dataflex.core.errors import DataFlexError
from dataflex.core.plan import Schedule
from dataflex.signals.loss import LossSignal
from dataflex.train.indexed import SAMPLE_IDS
from dataflex.train.method import Method
from dataflex.train.mixin import dynamic
from dataflex.train.score_budget import with_budget
from dataflex.train.settings import Settings
from dataflex.train.target import read_target

NUM_ROWS = 41  # a prime
WITHOUT_LABELS = (0, 17, 40)
GLOBAL_BATCH = 4


TOGETHER = {
    # Weights of one in the host's own order: what the host trains.
    "ones": Method(
        weighers=(
            Part(name="focal", method=Focal(gamma=0.0)),
            Part(name="loss", method=LossWeigher(strategy="uniform")),
        )
    ),
    "mix and weigh": Method(
        mixer=Part(name="odm", method=ODM()),
        weighers=(Part(name="loss", method=LossWeigher()), Part(name="column", method=Column())),
        orders=(Part(name="sorting", method=Sorting(by="loss", loss_source="reuse")),),
        normalize="mean_one",
    ),
    "less": Method(name="less", selector=Less()),
    "cluster_less and adapt": Method(
        name="cluster_less",
        selector=ClusterLess(cluster_size=5, representatives=1),
        weighers=(Part(name="adapt", method=Adapt(tau=0.3, refresh=2)),),
    ),
    "tsds": Method(name="tsds", selector=Tsds(max_K=12)),
    "rho_loss and rho1": Method(
        name="rho_loss",
        selector=RhoLoss(reference="../reference", ratio=0.5),
        weighers=(Part(name="rho1", method=Rho1(reference="../reference", keep=0.5)),),
    ),
    "infobatch": Method(name="infobatch", selector=InfoBatch()),
    "delta_loss in a budget": with_budget(Method(name="delta_loss", selector=DeltaLoss()), 0.8),
}
WITH_TARGET = ("less", "cluster_less and adapt", "tsds")


class Rows(Dataset):
    """Rows of 2 to 30 tokens; the first third of each is prompt."""

    def __init__(self, seed: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = []
        for i in range(NUM_ROWS if seed == 3 else 9):
            length = int(torch.randint(2, 31, (1,), generator=generator))
            ids = torch.randint(3, 50, (length,), generator=generator).tolist()
            prompt = length if i in WITHOUT_LABELS and seed == 3 else length // 3
            self.rows.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict:
        return dict(self.rows[row])


def collate(features: list[dict]) -> dict[str, torch.Tensor]:
    width = max(len(feature["input_ids"]) for feature in features)

    def pad(name: str, value: int) -> torch.Tensor:
        return torch.tensor([f[name] + [value] * (width - len(f[name])) for f in features])

    mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100), "attention_mask": mask}


class NotesWhatItTrains(Trainer):
    """Keeps the sample ids of every micro-batch that reaches the training step."""

    trained: list[list[int]]

    def training_step(self, model, inputs, *args, **kwargs):
        assert SAMPLE_IDS not in inputs, "the ids are taken out before the model"
        self.trained = getattr(self, "trained", [])
        return super().training_step(model, inputs, *args, **kwargs)


class Watched(dynamic(NotesWhatItTrains)):
    def training_step(self, model, inputs, *args, **kwargs):
        self.trained.append(inputs[SAMPLE_IDS].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


def plant(fault: str) -> None:
    """Make rank 1 misbehave."""
    if fault == "silent":
        dataflex.train.ranks.TIMEOUT = timedelta(seconds=5)
    if os.environ.get("RANK") != "1":
        return
    measure, from_main = LossSignal.measure, dataflex.train.ranks.Ranks.from_main
    calls = 0

    def faulty(self, batch):
        nonlocal calls
        calls += 1
        if calls == 4:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "silent":
                signal.pause()
            raise RuntimeError("planted in a forward")
        return measure(self, batch)

    def tampered(self, work):
        result = from_main(self, work)
        if isinstance(result, tuple) and isinstance(result[1], np.ndarray) and len(result[1]) == 8:
            return result[0], result[1][::-1].copy(), *result[2:]
        return result

    if fault == "other decision":
        dataflex.train.ranks.Ranks.from_main = tampered
    else:
        LossSignal.measure = faulty


def in_place(method: Method, folder: Path) -> Method:
    """The method with references that lie beside the run."""

    def moved(value: Any) -> Any:
        path = getattr(value, "reference", None)
        return dataclasses.replace(value, reference=str((folder / path).resolve())) if path else value

    weighers = tuple(dataclasses.replace(part, method=moved(part.method)) for part in method.weighers)
    return dataclasses.replace(method, selector=moved(method.selector), weighers=weighers)


def main(output_dir: str, micro_batch: str, method: str, fault: str = "") -> None:
    if fault:
        plant(fault)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        # Ranks drop out differently; without it the tables of one and two ranks can be compared after training too.
        attention_dropout=0.1 if method in ("static", "stock", "ones") else 0.0,
    )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    args = TrainingArguments(
        output_dir=output_dir,
        per_device_train_batch_size=int(micro_batch),
        gradient_accumulation_steps=GLOBAL_BATCH // (int(micro_batch) * world_size),
        num_train_epochs=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="steps",
        save_steps=1,
        logging_steps=1,
        disable_tqdm=True,
        seed=11,
    )
    schedule = Schedule(warmup_step=0 if method in ("static", "ones") else 1, update_step=2, update_times=2)
    columns = {
        "dataset": ["abc"[row % 3] for row in range(NUM_ROWS)],
        "weight": [row % 4 / 2 for row in range(NUM_ROWS)],
    }
    named = "static" if method == "stock" else method
    chosen = TOGETHER.get(method) or Method(name=named, selector=component_class("selectors", named)())
    chosen = in_place(chosen, Path(output_dir))
    target = None
    if method in WITH_TARGET:
        wanted = Rows(seed=4)
        target = read_target(wanted, {"dataset": ["yz"[row % 2] for row in range(len(wanted))]}, train_dataset=Rows())
    settings = Settings(method=chosen, schedule=schedule, config={}, rows=columns, target=target)
    ours = {} if method == "stock" else {"dataflex": settings}
    trainer_class = NotesWhatItTrains if method == "stock" else Watched
    trainer = trainer_class(
        model=LlamaForCausalLM(config), args=args, train_dataset=Rows(), data_collator=collate, **ours
    )
    trainer.trained = []
    try:
        trainer.train(bool(list(Path(output_dir).glob("checkpoint-*"))))
    except DataFlexError as error:
        print(f"rank {trainer.args.process_index}: DataFlexError: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    trainer.save_model()
    rank = trainer.args.process_index
    Path(output_dir, f"trained-{rank}.json").write_text(json.dumps(trainer.trained))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)  # gloo's threads now and then abort the interpreter's exit; all that is tested is on disk


if __name__ == "__main__":
    main(*sys.argv[1:])
