"""One sharded pass over samples: token-budgeted batches, dealt to ranks, gathered back to row order."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dataflex.signals.base import Signal

# Padded tokens in one batch. A CPU is fastest while a batch fits its cache, an accelerator wants a full one.
BATCH_TOKENS = {"cpu": 512}
BATCH_TOKENS_ACCELERATOR = 16384


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What one pass measured and what it cost."""

    values_NxC: np.ndarray  # float64; NaN where a row was not measured
    num_rows: int
    num_tokens: int  # without padding
    seconds: float


def batches_by_length(lengths_N: np.ndarray, rows: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Cut ``rows`` into batches of similar length, longest first, each of at most ``batch_tokens`` padded tokens.

    The longest come first so that a batch that does not fit into memory shows itself at once. The batches do not
    depend on the number of ranks, hence neither do the numbers.
    """
    order = rows[np.lexsort((rows, -lengths_N[rows]))]
    batches, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths_N[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def sweep(
    signal: Signal,
    lengths_N: np.ndarray,
    rows: np.ndarray,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    batch_tokens: int | None = None,
    advance: Callable[[int], object] = lambda num_rows: None,
) -> Sweep:
    """Measure ``signal`` for ``rows``; collective: every rank calls it with the same arguments.

    All ranks run the same number of forwards (sharded models need that): where the batches do not divide evenly, the
    first ones are measured twice and the double results fall together, since they are put back by row.

    Args:
        signal: what to measure.
        lengths_N: tokens of each pool row.
        rows: the rows to measure.
        device: where the gathered tensors live.
        gather: concatenates equally long tensors of all ranks along axis 0.
        batch_tokens: padded tokens of one batch; by default by device.
        advance: called with the number of rows done, for a progress bar.

    Returns:
        Values of every rank's rows, in pool order.
    """
    started = time.perf_counter()
    budget = batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS_ACCELERATOR)
    values_NxC = np.full((len(lengths_N), signal.num_columns), np.nan)
    batches = batches_by_length(lengths_N, np.asarray(rows), budget)
    if batches:
        rounds = -(-len(batches) // world_size)
        # [round][rank] -> batch; short of batches in the last round, begin again with the first.
        dealt = [[batches[(i * world_size + r) % len(batches)] for r in range(world_size)] for i in range(rounds)]
        width = max(sum(len(round_[r]) for round_ in dealt) for r in range(world_size))
        measured, done = [], 0
        for round_ in dealt:
            measured.append(signal.measure(round_[rank]))
            step = min(sum(len(batch) for batch in round_), len(rows) - done)  # rows measured twice count once
            advance(step)
            done += step
        ids = torch.full((width,), -1, dtype=torch.int64, device=device)
        values = torch.zeros((width, signal.num_columns), dtype=torch.float64, device=device)
        mine = np.concatenate([round_[rank] for round_ in dealt])
        ids[: len(mine)] = torch.from_numpy(mine).to(device)
        values[: len(mine)] = torch.cat(measured).to(device)
        ids_all, values_all = gather(ids).cpu().numpy(), gather(values).cpu().numpy()
        kept = ids_all >= 0
        values_NxC[ids_all[kept]] = values_all[kept]
    return Sweep(
        values_NxC=values_NxC,
        num_rows=len(rows),
        num_tokens=int(lengths_N[rows].sum()) if len(rows) else 0,
        seconds=time.perf_counter() - started,
    )
