"""Replay: train from a former run's ledger, row by row in the recorded order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import PoolInfo, Progress, Selection, SelectorBase, Signals, State
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Replay(SelectorBase):
    """Every segment, warm-ups included, gets exactly the rows and the order that a former run recorded.

    Args:
        path: the former run's output directory.

    Raises:
        ConfigError: no path, other data, another cut of the run into segments, or a shorter ledger.

    Source: none; it makes a run repeatable without its method.
    """

    path: str

    needs: ClassVar[frozenset[str]] = frozenset({"replay"})
    source: ClassVar[str] = "a former run's ledger"
    serves_warmup: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path is empty; replay needs the output directory of the run to repeat")

    def init(self, pool: PoolInfo) -> State:
        return {}

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        rows_Q = np.asarray(signals["replay"], dtype=np.int64)
        if len(rows_Q) != quota:
            raise ConfigError(
                f"segment {progress.segment} of the recorded run has {len(rows_Q)} samples, this run needs {quota}; "
                "use the same schedule and global batch"
            )
        return Selection(rows_Q=rows_Q, decision="replay", ordered=True), state
