"""Self-paced: easy rows first, then more and more of the hard ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import State, TrainedBatch, WeigherBase, Weights
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.algorithms.weigh.window import empty_window, window_of
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SelfPaced(WeigherBase):
    """``hard``: c_i = 1 if l_i < lambda, else 0; ``linear``: c_i = max(0, 1 - l_i / lambda).

    lambda is the q-quantile of the last 1,024 losses before the optimizer step (linearly interpolated); q rises
    linearly from ``start`` at the first step to 1 at the last, where ``hard`` keeps every row. In the first step, with
    nothing to compare, every c is 1. Where all rows of a micro-batch over all ranks would count nothing, those of the
    smallest loss count 1.

    Args:
        form: ``hard`` or ``linear``.
        start: the first quantile, 0 to 1.

    Raises:
        ConfigError: a parameter out of range; a micro-batch of one row over all ranks, which would always count.

    Source: Kumar et al. 2010 (hard); Jiang et al. 2014 (linear). The quantile in place of a threshold in nats is ours.
    """

    form: Literal["hard", "linear"] = "hard"
    start: float = 0.5

    source: ClassVar[str] = "Kumar et al. 2010"

    def __post_init__(self) -> None:
        require_one_of("form", self.form, ("hard", "linear"))
        require_range("start", self.start, above=0, at_most=1)

    def init(self) -> State:
        return empty_window()

    def check_rows_in_scope(self, num_rows: int) -> None:
        if num_rows < 2:
            raise ConfigError(
                f"the weigher self_paced keeps the row of the smallest loss in each micro-batch over all ranks, and of "
                f"{num_rows} row that is every one; raise per_device_train_batch_size, or use the weigher loss"
            )

    def quantile(self, step: int, num_steps: int) -> float:
        """q at an optimizer step.

        >>> [SelfPaced().quantile(step, 11) for step in (0, 5, 10)]
        [0.5, 0.75, 1.0]
        """
        return self.start + (1 - self.start) * min(1.0, step / max(1, num_steps - 1))

    def weigh(self, state: State, batch: TrainedBatch) -> tuple[Weights, State]:
        window_W, state = window_of(state, batch)
        losses_B, scored_B = np.asarray(batch.losses_B, dtype=np.float64), batch.scored_B
        if len(window_W) == 0 or not scored_B.any():
            return Weights(weights_B=scored_B.astype(np.float64)), state
        q = self.quantile(batch.step, batch.num_steps)
        limit = float(np.quantile(window_W, q))
        weights_B = np.zeros(len(batch))
        weights_B[scored_B] = self.coefficients(losses_B[scored_B], limit, everything=q >= 1)
        if not weights_B.any():
            weights_B[scored_B] = losses_B[scored_B] == losses_B[scored_B].min()
        return Weights(weights_B=weights_B, notes={"quantile": q, "limit": limit}), state

    def coefficients(self, losses_B: np.ndarray, limit: float, *, everything: bool = False) -> np.ndarray:
        """c of finite losses under lambda = ``limit``."""
        if self.form == "hard":
            return np.ones(len(losses_B)) if everything else (losses_B < limit).astype(np.float64)
        return np.maximum(0.0, 1 - losses_B / limit) if limit > 0 else np.zeros(len(losses_B))
