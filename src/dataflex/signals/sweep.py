"""One sharded pass over samples: token-budgeted batches, dealt to ranks, gathered back to row order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dataflex.core.errors import DataFlexError
from dataflex.signals.base import Signal
from dataflex.signals.batches import batches_by_length, forward_tokens

# Padded tokens of one batch that calibration may try, and the one it begins with. A CPU is fastest while a batch fits
# its cache, an accelerator once it is full.
CANDIDATES = {"cpu": (128, 256, 512, 1024, 1536, 2048, 4096)}
CANDIDATES_ACCELERATOR = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
FIRST_CANDIDATE = {"cpu": 1536}
FIRST_CANDIDATE_ACCELERATOR = 16384
# Another batch size must be this much faster than the present one to be taken: smaller differences are noise.
WORTHWHILE = 1.03


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What one pass measured and what it cost."""

    values_NxC: np.ndarray  # float64; NaN where a row was not measured
    num_rows: int
    num_tokens: int  # without padding
    seconds: float
    batch_tokens: int  # padded tokens of one batch: calibrated or given, less after memory ran out
    num_out_of_memory: int  # batches that were halved, on all ranks


def raise_alone(failure: BaseException | None) -> None:
    """What a rank without others does with an error."""
    if failure is not None:
        raise failure


@dataclass(frozen=True, kw_only=True)
class Collective:
    """The ranks that share a pass: the same calls with the same arguments on each."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor.cpu()  # concatenates along axis 0
    raise_together: Callable[[BaseException | None], None] = raise_alone  # an error of one rank is raised on all
    sharded: bool = False  # every rank must run the same number of forwards, and forwards are collective


def sweep(
    signal: Signal,
    lengths_N: np.ndarray,
    rows: np.ndarray,
    *,
    ranks: Collective,
    batch_tokens: int | None = None,
    advance: Callable[[int], object] = lambda num_tokens: None,
) -> Sweep:
    """Measure ``signal`` for ``rows``; collective.

    Without ``batch_tokens`` the first batches are measured with different budgets, and the fastest is kept for the
    rest: these are rows like any other, so calibration costs next to nothing. All ranks run the same number of
    forwards; where the batches do not divide evenly the first ones are measured twice and fall together, since results
    are put back by row.

    Args:
        signal: what to measure.
        lengths_N: tokens of each pool row.
        rows: the rows to measure.
        batch_tokens: padded tokens of one batch, where it is known already.
        advance: called with the number of tokens done, without padding, for a progress bar.

    Returns:
        Values of every rank's rows, in pool order.

    Raises:
        DataFlexError: a single row does not fit into memory.
    """
    started = time.perf_counter()
    rows = np.asarray(rows)
    shard = _Shard(signal, lengths_N, ranks, advance)
    rest = rows
    if batch_tokens is None:
        batch_tokens, rest = _calibrate(shard, lengths_N, rows)
    num_probes_failed = shard.num_out_of_memory  # calibration may try what does not fit
    shard.measure(batches_by_length(lengths_N, rest, batch_tokens, forward_tokens(ranks.device.type)))
    if shard.any_rank(shard.num_out_of_memory > num_probes_failed):
        batch_tokens = min(batch_tokens, shard.smallest_limit() // 2)
    return Sweep(
        values_NxC=shard.gathered(len(lengths_N)),
        num_rows=len(rows),
        num_tokens=int(lengths_N[rows].sum()) if len(rows) else 0,
        seconds=time.perf_counter() - started,
        batch_tokens=batch_tokens,
        num_out_of_memory=shard.total_out_of_memory(),
    )


def _calibrate(shard: _Shard, lengths_N: np.ndarray, rows: np.ndarray) -> tuple[int, np.ndarray]:
    """Measure some rows with different budgets; return the best budget and the rows that are left.

    From a usual budget it climbs to larger ones while they are faster, else to smaller ones. Each is tried on a batch
    of medium length, cut as the pass itself would cut it: no row is padded more than it would be anyway.
    """
    kind, world = shard.ranks.device.type, shard.ranks.world_size
    candidates = CANDIDATES.get(kind, CANDIDATES_ACCELERATOR)
    first = candidates.index(FIRST_CANDIDATE.get(kind, FIRST_CANDIDATE_ACCELERATOR))

    def rate(candidate: int) -> float | None:
        """Tokens a second with this budget; None when no batch fills it, 0 when memory ran out."""
        nonlocal rows
        batches = batches_by_length(lengths_N, rows, candidate, forward_tokens(kind))
        middle = max(0, (len(batches) - world) // 2)
        batches = batches[middle : middle + world]
        padded = [len(batch) * int(lengths_N[batch].max()) for batch in batches]
        if len(batches) < world or min(padded) <= candidate // 2:
            return None
        tried = np.concatenate(batches)
        rows = np.setdiff1d(rows, tried, assume_unique=True)
        halved_before = shard.num_out_of_memory
        seconds = shard.measure(batches)
        fits = not shard.any_rank(shard.num_out_of_memory > halved_before)
        return int(lengths_N[tried].sum()) / seconds if fits else 0.0

    best = candidates[first]
    best_rate = rate(best)
    if best_rate is None:
        return best, rows
    for others in (candidates[first + 1 :], candidates[:first][::-1]):
        for candidate in others:
            found = rate(candidate)
            if found is None or found <= best_rate * WORTHWHILE:
                break
            best, best_rate = candidate, found
        if best != candidates[first]:
            break
    return best, rows


class _Shard:
    """This rank's part of a pass: measures batches and keeps the results until they are gathered."""

    def __init__(
        self, signal: Signal, lengths_N: np.ndarray, ranks: Collective, advance: Callable[[int], object]
    ) -> None:
        self.ranks = ranks
        self.num_out_of_memory = 0
        self.limit = sys.maxsize  # padded tokens that are known to be too many for this rank's memory
        self._signal, self._lengths_N, self._advance = signal, lengths_N, advance
        self._ids: list[np.ndarray] = []
        self._values: list[torch.Tensor] = []
        self._width = 0  # rows of the rank that has the most, over all calls

    def measure(self, batches: list[np.ndarray]) -> float:
        """Measure this rank's share of ``batches``; return the seconds of the slowest rank."""
        if not batches:
            return 0.0
        world = self.ranks.world_size
        # By padded tokens, so that the ranks of one round have equal work; short of batches in the last round, begin
        # again with the first.
        batches = sorted(batches, key=lambda batch: -len(batch) * int(self._lengths_N[batch].max()))
        rounds = -(-len(batches) // world)
        dealt = [[batches[(i * world + r) % len(batches)] for r in range(world)] for i in range(rounds)]
        self._width += max(sum(len(round_[r]) for round_ in dealt) for r in range(world))
        left = self._num_tokens(batches)
        began = time.perf_counter()
        mine = [round_[self.ranks.rank] for round_ in dealt]
        for round_, rows_B, pending in zip(dealt, mine, self._ahead(mine), strict=True):
            self._measure_round(rows_B, pending)
            step = min(self._num_tokens(round_), left)  # rows measured twice count once
            left -= step
            paused = time.perf_counter()
            self._advance(step)
            began += time.perf_counter() - paused  # a progress bar is no part of a batch's speed
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize(self.ranks.device)
        seconds = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        return float(self.ranks.gather(seconds).max())

    def _num_tokens(self, batches: list[np.ndarray]) -> int:
        return sum(int(self._lengths_N[batch].sum()) for batch in batches)

    def _ahead(self, batches: list[np.ndarray]) -> Iterator[Future[Any]]:
        """Batches in preparation, the next one collated in another thread while this one is measured."""
        with ThreadPoolExecutor(max_workers=1) as thread:
            pending = thread.submit(self._signal.prepare, batches[0])
            for following in [*batches[1:], None]:
                wait([pending])
                present = pending
                if following is not None:
                    pending = thread.submit(self._signal.prepare, following)
                yield present

    def _measure_round(self, rows_B: np.ndarray, pending: Future[Any]) -> None:
        """Measure this rank's batch of a round; all ranks meet after each, so that none waits for one that failed."""
        failure: Exception | None = None
        try:
            self._measure(rows_B, pending.result())
        except Exception as error:
            if self.ranks.sharded:  # the others wait inside the forward: only the end of this process frees them
                raise
            failure = error
        self.ranks.raise_together(failure)

    def _measure(self, rows_B: np.ndarray, prepared: Any) -> None:
        tokens = len(rows_B) * int(self._lengths_N[rows_B].max())
        try:
            values = self._signal.measure(prepared) if tokens < self.limit else None
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
                raise
            self._note_out_of_memory(len(rows_B), tokens)
            values = None
        if values is not None:
            self._ids.append(rows_B)
            self._values.append(values)
            return
        for half in np.array_split(rows_B, 2):
            self._measure(half, self._signal.prepare(half))

    def _note_out_of_memory(self, num_rows: int, tokens: int) -> None:
        """Remember the size that did not fit; raise where a smaller batch is no way out."""
        if num_rows == 1 or self.ranks.sharded:
            remedy = "lower cutoff_len" if num_rows == 1 else f"set score_batch_tokens below {tokens}"
            raise DataFlexError(f"a scoring batch of {tokens} tokens does not fit into memory; {remedy}")
        self.num_out_of_memory += 1
        self.limit = min(self.limit, tokens)
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()

    def any_rank(self, condition: bool) -> bool:
        """True on every rank when it is true on one (collective)."""
        return bool(self.ranks.gather(torch.tensor([int(condition)])).any())

    def total_out_of_memory(self) -> int:
        """Batches that did not fit, over all ranks (collective)."""
        return int(self.ranks.gather(torch.tensor([self.num_out_of_memory])).sum())

    def smallest_limit(self) -> int:
        """The limit of the rank with the least memory (collective)."""
        return int(self.ranks.gather(torch.tensor([self.limit])).min())

    def gathered(self, num_rows: int) -> np.ndarray:
        """Values of all ranks in pool order, shape (num_rows, C); NaN where nothing was measured (collective)."""
        values_NxC = np.full((num_rows, self._signal.num_columns), np.nan)
        if self._width == 0:
            return values_NxC
        ids = torch.full((self._width,), -1, dtype=torch.int64)
        values = torch.zeros((self._width, self._signal.num_columns), dtype=torch.float64)
        mine = np.concatenate(self._ids)
        ids[: len(mine)] = torch.from_numpy(mine)
        values[: len(mine)] = torch.cat(self._values).cpu()
        ids_all, values_all = self.ranks.gather(ids).numpy(), self.ranks.gather(values).numpy()
        kept = ids_all >= 0
        values_NxC[ids_all[kept]] = values_all[kept]
        return values_NxC
