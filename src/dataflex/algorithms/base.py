"""What a method is: the protocol, what it is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from dataflex.core.segment import Progress

__all__ = ["PoolInfo", "Progress", "Selection", "Selector", "SelectorBase", "Signals", "State"]

# Arrays that outlive a decision; saved with every checkpoint and restored exactly.
State = Mapping[str, np.ndarray]

# Signals by name, each with one entry per pool row: see ``SIGNALS``.
Signals = Mapping[str, np.ndarray]

SIGNALS = {
    "loss": "mean negative log-likelihood over the label tokens of each row, float32, NaN where it cannot be scored",
    "times_trained": "how often each row was trained before this decision, int32 (no model pass)",
    "file": "scores read from the file that the method's `path` names, float64, NaN where a row is not listed",
    "replay": "the rows that a former run's ledger recorded for this segment, in training order, int64",
}


@dataclass(frozen=True, kw_only=True)
class PoolInfo:
    """What is known of the pool before any model pass; arrays have one entry per row."""

    num_tokens_N: np.ndarray  # prompt and answer
    num_label_tokens_N: np.ndarray  # tokens that carry a loss

    def __len__(self) -> int:
        return len(self.num_tokens_N)

    @property
    def trainable_N(self) -> np.ndarray:
        """Rows with at least one label token; the others cannot be scored and are never drawn."""
        return self.num_label_tokens_N > 0


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows of the next segment and why they were chosen."""

    rows_Q: np.ndarray  # pool rows, int64; a row may occur twice only where the user allowed replacement
    decision: str  # "first", "guided", "uniform", ...: one word for tables
    ordered: bool = False  # rows_Q is the training order; else it is shuffled before training
    columns_N: Mapping[str, np.ndarray] = field(
        default_factory=dict
    )  # per pool row: delta, rank, in_window, weight ...
    window: Mapping[str, float] | None = None  # start and end, in rows of the ranking and as shares of the pool
    notes: Mapping[str, Any] = field(default_factory=dict)  # what a person needs to understand the draw; JSON values
    warnings: tuple[str, ...] = ()  # sentences for the log: anything other than the method's usual course


@runtime_checkable
class Selector(Protocol):
    """A method that chooses rows. Implementations are frozen keyword-only dataclasses of their parameters."""

    needs: ClassVar[frozenset[str]]  # every signal it may ask for, e.g. {"loss"}
    source: ClassVar[str]  # where the method comes from

    def needs_at(self, progress: Progress) -> frozenset[str]:
        """Signals to measure for this decision; also asked at every warm-up, for ``observe``."""
        ...

    def init(self, pool: PoolInfo) -> State:
        """State before the first decision."""
        ...

    def observe(self, state: State, signals: Signals, progress: Progress) -> State:
        """Take in signals that were measured at a warm-up; chooses nothing."""
        ...

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        """Choose ``quota`` rows. Pure: the same arguments give the same result."""
        ...


class SelectorBase:
    """Defaults that most methods share; a method may as well implement the protocol on its own."""

    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = ""
    # True: ``select`` also decides the warm-up segments (replay).
    serves_warmup: ClassVar[bool] = False

    @property
    def follows_host(self) -> bool:
        """True: nothing is chosen, the host's own sampler order is trained (static without a path)."""
        return False

    def needs_at(self, progress: Progress) -> frozenset[str]:
        return frozenset() if progress.is_warmup and not self.serves_warmup else self.needs

    def init(self, pool: PoolInfo) -> State:
        return {"trainable_N": pool.trainable_N}

    def observe(self, state: State, signals: Signals, progress: Progress) -> State:
        return state

    def plan_note(self, progress: Progress) -> dict[str, Any]:
        """What is known of a decision before the run, e.g. its window in shares of the pool; for ``plan``."""
        return {}
