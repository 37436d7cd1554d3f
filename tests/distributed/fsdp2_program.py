"""Scores a model sharded by FSDP2 on gloo ranks; started by test_sharded.py with torchrun, or alone for one process.

Usage: fsdp2_program.py OUT.json VARIANT [VARIANT ...]

Every variant scores, trains one step and scores again. Rank 0 writes the tables and the number of forwards by rank.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dataflex.signals.base import undisturbed
from dataflex.signals.loss import LossSignal, mean_losses
from dataflex.signals.sweep import Collective, sweep

sys.path.insert(0, str(Path(__file__).parent))
from two_ranks_program import Rows, collate

WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
ROWS = Rows()


def make_model(variant: str) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=variant == "tied",
    )
    model: nn.Module = LlamaForCausalLM(config)
    if variant == "lora and checkpointing":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def shard(model: nn.Module, variant: str) -> nn.Module:
    if WORLD_SIZE == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD_SIZE,))
    for module in model.modules():
        if type(module).__name__ == "LlamaDecoderLayer":
            fully_shard(module, mesh=mesh)
    if variant == "head of its own":
        fully_shard(model.lm_head, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gather(tensor: torch.Tensor) -> torch.Tensor:
    if WORLD_SIZE == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(WORLD_SIZE)]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def table(signal: LossSignal) -> tuple[list[float | None], bool]:
    lengths_N = np.array([len(ROWS[row]["input_ids"]) for row in range(len(ROWS))])
    rank = dist.get_rank() if WORLD_SIZE > 1 else 0
    ranks = Collective(device=torch.device("cpu"), rank=rank, world_size=WORLD_SIZE, gather=gather, sharded=True)
    with undisturbed(signal.model), signal.engaged(np.array([3, 4])) as why_not:
        result = sweep(signal, lengths_N, np.arange(len(ROWS)), ranks=ranks, batch_tokens=64)
    losses_N = mean_losses(result.values_NxC)
    return [None if np.isnan(loss) else float(loss) for loss in losses_N], why_not is None


def train_one_step(model: nn.Module) -> None:
    """The same batch on every rank, so that the mean gradient is that of one process."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**collate([ROWS[row] for row in (1, 2, 3, 4)])).loss.backward()
    optimizer.step()


def run(variant: str) -> dict:
    model = shard(make_model(variant), variant)
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    model.register_forward_pre_hook(count)
    signal = LossSignal(
        model=model,
        features=lambda rows_B: [ROWS[row] for row in rows_B.tolist()],
        collate=collate,
        to_device=lambda batch: batch,
        autocast=nullcontext,
    )
    before, fast = table(signal)
    train_one_step(model)
    after, _ = table(signal)
    return {"before": before, "after": after, "fast": fast, "forwards": gather(torch.tensor([forwards])).tolist()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if WORLD_SIZE > 1:
        dist.init_process_group("gloo")
    results = {variant: run(variant) for variant in sys.argv[2:]}
    if WORLD_SIZE == 1 or dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))
    if WORLD_SIZE > 1:
        dist.barrier()
        sys.stdout.flush()
        os._exit(0)
