"""How well a scoring budget estimates the losses of a pool: against full scoring, along one training run.

python -m benchmarks.budget [--rows 5120] [--steps 320] [--budgets .02 .05 .1 .3] [--out FILE.json]

A small Llama is trained from nothing on three of eight kinds of text made by rule, and then on a pool of all eight, of
which 17 % are noise (tokens shuffled, tokens replaced, the answer of another row). Delta Loss decides ten times, with
full scoring; at each decision every budget is asked beside it what it would score and what it then estimates, with the
initial losses in the cache and without. Printed are, over decisions 2 to 9: Spearman's rank correlation of the falls
with those of full scoring, the Jaccard index of both windows, and the share of drawn rows that lie in the true window.

Then one run is guided by the budget 0.1 itself, full scoring beside it: what its ledger says of its own quality, and
what was measured.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from dataflex import DeltaLoss
from dataflex.core.plan import Schedule
from dataflex.core.seeds import segment_rng
from dataflex.signals.estimate import spearman
from dataflex.signals.flops import flops_of
from dataflex.train.budget import Budget
from dataflex.train.make_budget import make_budget
from dataflex.train.method import Method
from dataflex.train.mixin import dynamic
from dataflex.train.score_budget import with_budget
from dataflex.train.settings import Settings

DECISIONS, BATCH, NOISE = 10, 16, 0.17
FIRST_KINDS, FIRST_STEPS = 3, 600
TEXT = "the old cat ran over a small red house while two birds sang near an open door and nobody saw the slow fox"
WORDS = TEXT.split()
NAMES = ("ann", "ben", "cleo", "dan", "eva", "finn", "gus", "ivy")


def addition(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randint(1, 99) for _ in range(rng.randint(2, 5))]
    return " + ".join(map(str, numbers)) + " = ", str(sum(numbers))


def sorting(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randint(0, 99) for _ in range(rng.randint(4, 12))]
    return f"sort {' '.join(map(str, numbers))}: ", " ".join(map(str, sorted(numbers)))


def story(rng: random.Random) -> tuple[str, str]:
    return "", " ".join(rng.choice(WORDS) for _ in range(rng.randint(8, 22))) + "."


def query(rng: random.Random) -> tuple[str, str]:
    columns = rng.sample(("id", "name", "price", "city", "age", "total"), rng.randint(1, 4))
    where = f" where {rng.choice(columns)} {rng.choice('<>=')} {rng.randint(0, 500)}" if rng.random() < 0.7 else ""
    order = f" order by {rng.choice(columns)}" if rng.random() < 0.5 else ""
    return "", f"select {', '.join(columns)} from {rng.choice(('users', 'orders', 'items'))}{where}{order};"


def code(rng: random.Random) -> tuple[str, str]:
    name, (a, b) = rng.choice(("f", "g", "area", "step")), rng.sample("xyznk", 2)
    body = "".join(
        f"    {a} = {a} {rng.choice('+-*')} {rng.choice((b, str(rng.randint(1, 9))))}\n"
        for _ in range(rng.randint(1, 4))
    )
    return "", f"def {name}({a}, {b}):\n{body}    return {rng.choice((a, b))}\n"


def record(rng: random.Random) -> tuple[str, str]:
    row = {
        key: rng.randint(0, 99) if rng.random() < 0.5 else rng.choice(NAMES)
        for key in rng.sample("abcdefgh", rng.randint(2, 6))
    }
    return "", json.dumps(row)


def log_line(rng: random.Random) -> tuple[str, str]:
    time = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"
    return "", f"{time} {rng.choice(('info', 'warn', 'error'))} worker-{rng.randint(1, 9)}: " + " ".join(
        rng.sample(WORDS, rng.randint(3, 8))
    )


def question(rng: random.Random) -> tuple[str, str]:
    (one, other), (a, b) = rng.sample(NAMES, 2), rng.sample(range(5, 90), 2)
    return (
        f"{one} is {a} and {other} is {b}. who is older, and by how much? ",
        f"{one if a > b else other}, by {abs(a - b)} years",
    )


KINDS: tuple[Callable[[random.Random], tuple[str, str]], ...] = (
    story, addition, record, sorting, query, code, log_line, question,
)  # fmt: skip


def make_pool(
    num_rows: int, seed: int, kinds: Sequence[Callable], noise: float
) -> tuple[list[list[int]], list[str], np.ndarray]:
    """(tokens of each row, its kind, whether it is noise). Noise keeps the kind of the row that it was made of."""
    rng = random.Random(seed)
    made = [kinds[i % len(kinds)](rng) for i in range(num_rows)]
    names = [kinds[i % len(kinds)].__name__ for i in range(num_rows)]
    noisy = np.zeros(num_rows, dtype=bool)
    noisy[rng.sample(range(num_rows), round(noise * num_rows))] = True
    rows = []
    for row, (prompt, answer) in enumerate(made):
        text = prompt + answer
        if noisy[row]:
            kind = rng.random()
            letters = list(text)
            if prompt and kind < 0.5:
                text = prompt + made[(row + len(kinds) * rng.randint(1, 50)) % num_rows][1]
            elif kind < 0.75:
                rng.shuffle(letters)
                text = "".join(letters)
            else:
                text = "".join(rng.choice(string.printable[:95]) if rng.random() < 0.3 else c for c in letters)
        rows.append([1, *(3 + ord(c) for c in text[:158]), 2])
    return rows, names, noisy


class Rows(Dataset):
    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, list[int]]:
        return {"input_ids": self.rows[row], "labels": self.rows[row]}


def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(feature["input_ids"]) for feature in features)
    padded = {"input_ids": 0, "labels": -100}
    batch = {k: torch.tensor([f[k] + [fill] * (width - len(f[k])) for f in features]) for k, fill in padded.items()}
    mask = torch.tensor([[1] * len(f["input_ids"]) + [0] * (width - len(f["input_ids"])) for f in features])
    return {**batch, "attention_mask": mask}


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=136,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def arguments(folder: str, **changes: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=1,
        **changes,
    )


def first_training(folder: str) -> dict[str, torch.Tensor]:
    """Weights of the small model after training on three kinds of text."""
    rows, _, _ = make_pool(BATCH * FIRST_STEPS, 1, KINDS[:FIRST_KINDS], 0.0)
    model = small_model()
    trainer = Trainer(
        model=model, args=arguments(folder, max_steps=FIRST_STEPS), train_dataset=Rows(rows), data_collator=collate
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}


def run(
    weights: dict[str, torch.Tensor],
    pool: tuple,
    args: argparse.Namespace,
    share: float,
    folder: str,
    at_decision: Callable,
) -> Any:
    """One guided run; ``at_decision(trainer, progress, losses)`` is told the full losses at each decision."""
    rows, names, _ = pool
    model = small_model()
    model.load_state_dict(weights)
    steps = args.steps // DECISIONS
    settings = Settings(
        method=with_budget(Method(name="delta_loss", selector=DeltaLoss()), share),
        schedule=Schedule(update_step=steps, update_times=DECISIONS),
        config={},
        overwrite=True,
        rows={"dataset": names},
    )
    trainer = dynamic(Trainer)(
        model=model,
        args=arguments(folder, num_train_epochs=1),
        train_dataset=Rows(rows),
        data_collator=collate,
        dataflex=settings,
    )
    trainer.remove_callback(PrinterCallback)
    measure = trainer.curator._measure

    def measured(name: str, progress: Any, rows_R: Any) -> Any:
        full = measure(name, progress, None)
        at_decision(trainer, progress, full.values)
        if rows_R is None:
            return full
        kept_N = np.full_like(full.values, np.nan)
        kept_N[rows_R] = full.values[rows_R]
        return type(full)(values=kept_N, cost=full.cost, tolerance=full.tolerance)

    trainer.curator._measure = measured
    trainer.train()
    return trainer


def agreement(initial_N: np.ndarray, true_N: np.ndarray, found: Any, progress: Any, quota: int) -> dict[str, float]:
    """Of the falls that a budget tells with those of full scoring."""
    method, base_N = DeltaLoss(baseline="run_start"), found["initial_N"]
    rng = lambda: segment_rng(0, progress.segment, "select")  # noqa: E731
    true, _ = method.select({"initial_losses_N": initial_N}, {"loss": true_N}, quota, progress, rng())
    told, _ = method.select(
        {"initial_losses_N": base_N}, {"loss": found["losses_N"], **found["signals"]}, quota, progress, rng()
    )
    window_N, other_N = true.columns_N["in_window"], told.columns_N["in_window"]
    return {
        "rho": spearman(true.columns_N["delta"], told.columns_N["delta"]),
        "jaccard": np.count_nonzero(window_N & other_N) / max(1, np.count_nonzero(window_N | other_N)),
        "hit": float(window_N[told.rows_Q].mean()),
    }


def shadows(trainer: Any, shares: Sequence[float]) -> dict[tuple[float, bool], Budget]:
    """Budgets that are asked beside the run: (share, with the initial losses in the cache)."""
    curator = trainer.curator
    made = {}
    for share in shares:
        for cached in (False, True):
            method = with_budget(Method(name="delta_loss", selector=DeltaLoss()), share)
            made[share, cached] = make_budget(
                trainer, method, plan=curator.plan, geometry=curator.geometry, pool=curator.pool, seed=curator.seed,
                sources=curator._sources, cache=trainer.measurer.cache, collate=collate,
            )  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=5120)
    parser.add_argument("--steps", type=int, default=320, help="optimizer steps of the guided run, 16 rows each")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.3])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pool = make_pool(args.rows, 2, KINDS, NOISE)
    quota = args.steps // DECISIONS * BATCH
    with tempfile.TemporaryDirectory() as folder:
        weights = first_training(folder)
        beside = _beside_full_scoring(weights, pool, args, quota, folder)
        own = _own_words(weights, pool, args, folder)
    if args.out:
        args.out.write_text(json.dumps({"beside": beside, "own": own}, indent=1))


def _beside_full_scoring(weights: dict, pool: tuple, args: argparse.Namespace, quota: int, folder: str) -> list[dict]:
    budgets: dict[tuple[float, bool], Budget] = {}
    found: dict[tuple[float, bool], list[dict[str, float]]] = {}
    start: dict[Any, np.ndarray] = {}
    spent: dict[tuple[float, bool], float] = {}

    def at_decision(trainer: Any, progress: Any, losses_N: np.ndarray) -> None:
        curator = trainer.curator
        if not budgets:
            budgets.update(shadows(trainer, args.budgets))
            start["true"] = losses_N
        board = curator._shown.board
        for key, budget in budgets.items():
            if progress.step == 0 and key[1]:
                budget.know(losses_N)
            budget.watch(progress, board)
            request = budget.request(progress, curator._times_trained_N)
            asked_N = np.full_like(losses_N, np.nan)
            rows = slice(None) if request.rows is None else request.rows
            asked_N[rows] = losses_N[rows]
            budgeted = budget.take(progress, request, asked_N, {"seconds": 0.0}, board)
            if progress.step == 0:
                start[key] = budgeted.losses_N
                continue
            told = {"initial_N": start[key], "losses_N": budgeted.losses_N, "signals": budgeted.signals}
            measured = agreement(start["true"], losses_N, told, progress, quota)
            rho = budgeted.record.get("rank_correlation")
            found.setdefault(key, []).append({**measured, "told": rho, "rows": budgeted.record["panel_rows"]})
            spent[key] = budgeted.record["spent_flops"]

    trainer = run(weights, pool, args, 100.0, folder, at_decision)
    costs = flops_of(trainer.model)
    trained = float(trainer.curator._times_trained_N @ costs.training(trainer.curator.pool.info.num_tokens_N))
    print(
        f"{args.rows} rows, {args.steps} steps of {BATCH}, {DECISIONS} decisions; against full scoring, decisions 2-9"
    )
    print(" budget  initial losses  spent  rows    rho  told  jaccard    hit")
    table = []
    for (share, cached), decisions in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        late = decisions[1:]
        mean = {k: float(np.mean([d[k] for d in late if d[k] is not None] or [np.nan])) for k in late[0]}
        share_spent = spent[share, cached] / trained
        table.append({"budget": share, "cached": cached, "spent": share_spent, **mean, "decisions": decisions})
        print(
            f"{share:7.2f} {'cached' if cached else 'not known':>15} {share_spent:6.1%} {mean['rows']:5.0f} "
            f"{mean['rho']:6.3f} {mean['told']:5.3f} {mean['jaccard']:8.3f} {mean['hit']:6.3f}",
            flush=True,
        )
    return table


def _own_words(weights: dict, pool: tuple, args: argparse.Namespace, folder: str) -> list[dict[str, float]]:
    """A run guided by the budget 0.1: quality as its ledger tells it, and as measured."""
    full: list[tuple[Any, np.ndarray]] = []
    trainer = run(
        weights, pool, args, 0.1, folder, lambda trainer, progress, losses_N: full.append((progress, losses_N))
    )
    lines = [line for _, line in sorted(trainer._ledger.segments().items())]
    print("guided by 0.1 itself: rank correlation as told and as measured")
    said = []
    for progress, losses_N in full[1:]:
        line = next(line for line in lines if line["segment"] == progress.segment)
        columns_N = trainer._ledger.signals_of(line)
        measured = spearman(full[0][1] - losses_N, columns_N["delta"]) if "delta" in columns_N else float("nan")
        told = line["scoring"]["budget"].get("rank_correlation")
        said.append({"told": told, "measured": measured})
        print(
            f"  decision {progress.update}: told {told if told is None else round(told, 3)}, measured {measured:.3f}",
            flush=True,
        )
    return said


if __name__ == "__main__":
    main()
