"""Three changes of Delta Loss against noise, tried by compare_budget.yaml; docs/results.md says what came of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex import DeltaLoss
from dataflex.algorithms.base import PoolInfo, Progress, Selection, Signals, State


def expected_falls(initial_N: np.ndarray, falls_N: np.ndarray, num_label_tokens_N: np.ndarray) -> np.ndarray:
    """What the fall of a row is by its initial loss and its length alone: least squares on both and their squares."""
    known_N = np.isfinite(initial_N) & np.isfinite(falls_N)
    one_N = np.nan_to_num(initial_N)
    other_N = np.log1p(num_label_tokens_N)
    inputs_Nx6 = np.stack([np.ones(len(one_N)), one_N, other_N, one_N**2, other_N**2, one_N * other_N], axis=1)
    weights, *_ = np.linalg.lstsq(inputs_Nx6[known_N], falls_N[known_N], rcond=None)
    return inputs_Nx6 @ weights


@dataclass(frozen=True, kw_only=True)
class _WithLengths(DeltaLoss):
    def init(self, pool: PoolInfo) -> State:
        return {"num_label_tokens_N": pool.num_label_tokens_N.astype(np.float64)}

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        if not progress.is_first_selection:
            initial_N = np.asarray(state["initial_losses_N"], dtype=np.float64)
            losses_N = np.asarray(signals["loss"], dtype=np.float64)
            changed_N = self.changed(initial_N, initial_N - losses_N, state["num_label_tokens_N"])
            signals = {**signals, "loss": initial_N - changed_N}
        return super().select(state, signals, quota, progress, rng)

    def changed(self, initial_N: np.ndarray, falls_N: np.ndarray, num_label_tokens_N: np.ndarray) -> np.ndarray:
        """Falls by which rows are ranked instead; NaN: never drawn."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Residual(_WithLengths):
    """Ranks by what a row has fallen beyond what its initial loss and length let expect."""

    def changed(self, initial_N: np.ndarray, falls_N: np.ndarray, num_label_tokens_N: np.ndarray) -> np.ndarray:
        return falls_N - expected_falls(initial_N, falls_N, num_label_tokens_N)


@dataclass(frozen=True, kw_only=True)
class RisingDropped(_WithLengths):
    """Never draws rows whose loss has risen where rows of their initial loss and length have fallen."""

    def changed(self, initial_N: np.ndarray, falls_N: np.ndarray, num_label_tokens_N: np.ndarray) -> np.ndarray:
        dropped_N = (falls_N < 0) & (expected_falls(initial_N, falls_N, num_label_tokens_N) > 0)
        return np.where(dropped_N, np.nan, falls_N)


@dataclass(frozen=True, kw_only=True)
class BelowTop(DeltaLoss):
    """The window begins below the most improved share ``skipped`` of the rows."""

    skipped: float = 0.2

    def window(self, *, tau: float, num_scored: int) -> tuple[int, int]:
        offset = (self.skipped + self._sigmoid(tau) * (1 - self.window_size - self.skipped)) * num_scored
        start = min(math.floor(offset), max(num_scored - 1, 0))
        return start, max(min(math.floor(offset + self.window_size * num_scored), num_scored), start + 1)

    def plan_note(self, progress: Progress) -> dict[str, Any]:
        note: Mapping[str, Any] = super().plan_note(progress)
        if "tau" not in note:
            return dict(note)
        start = self.skipped + self._sigmoid(note["tau"]) * (1 - self.window_size - self.skipped)
        return {**note, "window_shares": (start, start + self.window_size)}
