"""Peak memory of a gradient pass and of an embedding pass as the pool grows.

python -m benchmarks.pool_memory [--rows 10000 100000] --out FILE.json

A tiny Llama with LoRA on a CPU; rows are made when they are asked for, so that the pool itself takes nothing. Each pass
runs in a process of its own, whose peak is read from the system. What has to
grow are a few numbers a row (length, similarity).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dataflex.signals.base import undisturbed
from dataflex.signals.collect import Place, collect
from dataflex.signals.embedding import HiddenStates
from dataflex.signals.gradient.moments import adam_of
from dataflex.signals.gradient.signal import Source
from dataflex.signals.gradient.similarity import pass_key, similarities, target_groups
from dataflex.signals.gradient.weights import trainable_weights
from dataflex.signals.sweep import Collective
from dataflex.train.answers import pad_right

CPU = torch.device("cpu")
NUM_TARGETS, BATCH_TOKENS = 16, 4096


def make_row(row: int) -> dict[str, list[int]]:
    tokens = np.random.default_rng(row).integers(3, 64, 8 + row % 17).tolist()
    return {"input_ids": tokens, "labels": [-100, -100, *tokens[2:]]}


def make_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return peft.get_peft_model(LlamaForCausalLM(config), peft.LoraConfig(r=4, target_modules="all-linear"))


def gradients(num_rows: int, folder: Path) -> None:
    model = make_model()
    weights = trainable_weights(model)
    optimizer = torch.optim.AdamW([weight.parameter for weight in weights.included], lr=1e-3)
    for row in range(3):
        model(**pad_right([make_row(row)])).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    adam = adam_of(optimizer, model, weights)

    def source(first: int) -> Source:
        return Source(
            model=model,
            features=lambda rows_B: [make_row(first + row) for row in rows_B.tolist()],
            collate=pad_right,
            to_device=dict,
            autocast=nullcontext,
        )

    lengths_M = np.array([len(make_row(num_rows + row)["input_ids"]) for row in range(NUM_TARGETS)])
    groups = target_groups(source(num_rows), weights, lengths_M, np.arange(NUM_TARGETS) % 4, device=CPU)
    similarities(
        source(0),
        weights,
        groups,
        adam,
        8 + np.arange(num_rows) % 17,
        np.arange(num_rows),
        ranks=Collective(device=CPU),
        place=Place(directory=folder, key=pass_key(model, weights, adam)),
        batch_tokens=BATCH_TOKENS,
    )


def embeddings(num_rows: int, folder: Path) -> None:
    model = make_model()
    signal = HiddenStates(
        model=model,
        tokens=lambda rows_B: [make_row(row)["input_ids"] for row in rows_B.tolist()],
        pooling="position",
        device=CPU,
        autocast=nullcontext,
    )
    with undisturbed(model):
        collect(
            signal,
            8 + np.arange(num_rows) % 17,
            np.arange(num_rows),
            ranks=Collective(device=CPU),
            place=Place(directory=folder, key={}),
            parts={"embeddings": (signal.num_columns, "<f4")},
            split=lambda values_RxC: {"embeddings": values_RxC},
            batch_tokens=BATCH_TOKENS,
        )


WAYS = {"gradients": gradients, "embeddings": embeddings}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "ROWS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            WAYS[given.one[0]](int(given.one[1]), Path(folder) / "rows")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(json.dumps({"seconds": time.perf_counter() - began, "peak_mib": peak}))
        return
    found = {}
    for way in WAYS:
        for rows in given.rows:
            command = [sys.executable, "-m", "benchmarks.pool_memory", "--one", way, str(rows)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[f"{way} {rows}"] = one = json.loads(said.splitlines()[-1])
            print(f"{way}, {rows:,} rows: peak {one['peak_mib']:,.0f} MiB, {one['seconds']:.0f} s", flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
