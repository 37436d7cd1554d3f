"""Who trains what and when: the rows of a segment dealt to steps, micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dataflex.core.errors import ConfigError, shown

MOST = 2**31 - 1  # of each number; hosts count in 32 bits


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one optimizer step is cut: ranks x micro-batches x samples."""

    world_size: int
    accumulation: int  # micro-batches a rank takes for one optimizer step
    micro_batch: int  # samples in one micro-batch of one rank

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 1 <= value <= MOST:
                raise ConfigError(f"{name} is {shown(value)}; it must be at least 1 and at most {MOST}")

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step."""
        return self.world_size * self.accumulation * self.micro_batch


def deal(rows_Q: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Deal the rows of whole optimizer steps to ranks.

    One step takes ``global_batch`` consecutive rows, whatever the number of ranks; within it the micro-batches follow
    each other, and in one micro-batch rank 0 takes the first ``micro_batch`` rows, rank 1 the next. This is what
    accelerate's sharded loader does with a plain sampler, so that both agree by construction.

    Returns:
        Rows with axes (step, micro-batch, rank, sample).

    >>> deal(np.arange(8), Geometry(world_size=2, accumulation=1, micro_batch=2))[1, 0, 1].tolist()
    [6, 7]
    """
    g = geometry
    if len(rows_Q) % g.global_batch:
        raise ConfigError(f"{len(rows_Q)} rows are not whole optimizer steps of {g.global_batch} samples")
    return rows_Q.reshape(-1, g.accumulation, g.world_size, g.micro_batch)


@dataclass(frozen=True)
class Deal:
    """Rows to train next, over all ranks, and the seed of the loader that serves them."""

    rows: np.ndarray
    seed: int


def micro_batches(rows_Q: np.ndarray, geometry: Geometry, rank: int) -> list[np.ndarray]:
    """Rows of each of one rank's micro-batches; the last step may be short of some, the last one smaller."""
    g = geometry
    whole = len(rows_Q) // g.global_batch * g.global_batch
    dealt = list(deal(rows_Q[:whole], g)[:, :, rank].reshape(-1, g.micro_batch))
    starts = range(whole + rank * g.micro_batch, len(rows_Q), g.world_size * g.micro_batch)
    return dealt + [rows_Q[start : start + g.micro_batch] for start in starts]


def micro_batches_per_pass(num_rows: int, geometry: Geometry, *, drop_last: bool) -> int:
    """Micro-batches that each rank takes in one pass over the pool, the last one filled up or dropped; at least 1."""
    per_round = geometry.world_size * geometry.micro_batch
    return max(1, num_rows // per_round if drop_last else -(-num_rows // per_round))
