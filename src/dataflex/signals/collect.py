"""The pass over the pool: blocks of rows, each swept by all ranks, then kept on disk by the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataflex.signals.store import Parts, RowStore
from dataflex.signals.sweep import Collective, sweep

BLOCK_ROWS = 1024
BLOCK_NUMBERS = 1 << 23  # float64 numbers of a block, as they are gathered from the ranks: 64 MiB
ONE_ROW = 1  # padded tokens of a batch: a longer row is a batch of its own


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a pass keeps its rows: a folder of its own, and everything the numbers depend on."""

    directory: Path
    key: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a pass cost; rows of an earlier, killed pass cost nothing."""

    num_rows: int  # measured now
    num_rows_kept: int  # found on the disk
    num_tokens: int  # measured now
    num_tokens_kept: int
    seconds: float
    batch_tokens: int
    num_out_of_memory: int


def collect(
    signal: Any,
    lengths_N: np.ndarray,
    rows: np.ndarray,
    *,
    ranks: Collective,
    place: Place,
    parts: Parts,
    split: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    batch_tokens: int | None = None,
    advance: Callable[[int], object] = lambda num_tokens: None,
) -> tuple[Mapping[str, np.ndarray] | None, Collected]:
    """Measure ``signal`` for ``rows`` and keep its numbers at ``place``; collective.

    Blocks are of similar lengths, the longest first. A pass that was killed goes on after its last whole block with the
    same blocks and the same batch size, so that its numbers are those of a pass that was not.

    Args:
        signal: engaged already (``GradientSignal.engaged``).
        parts, split: the arrays on disk, and how a block's numbers, shape (R, C), become their rows.
        batch_tokens: padded tokens of one batch; None: found by the first block.

    Returns:
        The arrays, memory-mapped, on the first rank and None on the others; what it cost.
    """
    main = ranks.rank == 0
    store: RowStore | None = None
    failure: Exception | None = None
    try:
        store = RowStore(place.directory, place.key, len(lengths_N), parts) if main else None
    except Exception as error:
        failure = error
    ranks.raise_together(failure)
    if batch_tokens is None:
        noted = _from_main(ranks, store.noted("batch_tokens") or 0 if store else 0)
        batch_tokens = noted or None
    totals = dict.fromkeys(("num_rows", "num_rows_kept", "num_tokens", "num_tokens_kept", "num_out_of_memory"), 0)
    seconds = 0.0
    for block_R in blocks(lengths_N, rows, signal.num_columns):
        if _from_main(ranks, int(store is not None and store.has(block_R))):
            totals["num_rows_kept"] += len(block_R)
            totals["num_tokens_kept"] += int(lengths_N[block_R].sum())
            advance(int(lengths_N[block_R].sum()))
            continue
        result = sweep(
            _Block(signal, block_R),
            lengths_N[block_R],
            np.arange(len(block_R)),
            ranks=ranks,
            batch_tokens=batch_tokens,
            advance=advance,
        )
        try:
            if store is not None:
                if batch_tokens is None or result.batch_tokens < batch_tokens:
                    store.note("batch_tokens", result.batch_tokens)
                store.write(block_R, split(result.values_NxC))
        except Exception as error:
            failure = error
        ranks.raise_together(failure)
        batch_tokens = result.batch_tokens
        seconds += result.seconds
        for name in ("num_rows", "num_tokens", "num_out_of_memory"):
            totals[name] += getattr(result, name)
    cost = Collected(seconds=seconds, batch_tokens=batch_tokens or 0, **totals)
    return (store.arrays if store is not None else None), cost


def blocks(lengths_N: np.ndarray, rows: np.ndarray, num_columns: int) -> list[np.ndarray]:
    """Rows in blocks, longest first, ties by row."""
    order = rows[np.lexsort((rows, -lengths_N[rows]))]
    size = min(BLOCK_ROWS, max(1, BLOCK_NUMBERS // num_columns))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _from_main(ranks: Collective, number: int) -> int:
    """The first rank's number, on every rank."""
    return int(ranks.gather(torch.tensor([number], dtype=torch.int64))[0])


class _Block:
    """A signal for some of its rows, counted from 0: what a sweep holds depends on the block, not on the pool."""

    def __init__(self, signal: Any, rows_R: np.ndarray) -> None:
        self.num_columns = signal.num_columns
        self._signal, self._rows_R = signal, rows_R

    def prepare(self, rows_B: np.ndarray) -> Any:
        return self._signal.prepare(self._rows_R[rows_B])

    def measure(self, batch: Any) -> torch.Tensor:
        return self._signal.measure(batch)
