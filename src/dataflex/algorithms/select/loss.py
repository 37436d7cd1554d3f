"""Loss focus: draw more often from the low, the medium or the high part of the current losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import PoolInfo, Progress, Selection, SelectorBase, Signals, State
from dataflex.algorithms.checks import require_one_of, require_quantile_pair, require_range
from dataflex.core.draw import draw


@dataclass(frozen=True, kw_only=True)
class Loss(SelectorBase):
    """Draw by current loss: weight ``focus_weight`` inside one of three quantile bands, 1 elsewhere.

    With q1, q2 the linearly interpolated quantiles of the finite losses: low is l <= q1, medium q1 < l <= q2, high
    l > q2; p_i is proportional to w_i ** (1 / temperature); the quota is drawn without replacement. Rows that could
    not be scored weigh 0.

    Args:
        focus: the band to favour: low, medium or high.
        focus_weight: weight inside the band, > 0.
        quantiles: (q1, q2), 0 < q1 < q2 < 1.
        temperature: > 0; large values approach a uniform draw over the scored rows.
        replacement: allow a row to be drawn twice.
        cache_dir: where initial losses are kept for other runs of the same model and data; read under a budget.

    Raises:
        ConfigError: a parameter out of range.

    Source: DataFlex, loss selector; no paper.
    """

    focus: Literal["low", "medium", "high"] = "high"
    focus_weight: float = 5.0
    quantiles: tuple[float, float] = (0.33, 0.66)
    temperature: float = 1.0
    replacement: bool = False
    cache_dir: str | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})
    source: ClassVar[str] = "DataFlex loss selector"

    def __post_init__(self) -> None:
        require_one_of("focus", self.focus, ("low", "medium", "high"))
        require_range("focus_weight", self.focus_weight, above=0)
        require_range("temperature", self.temperature, above=0)
        require_quantile_pair("quantiles", self.quantiles, at_ends=False)

    def init(self, pool: PoolInfo) -> State:
        return {}

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        losses_N = np.asarray(signals["loss"], dtype=np.float64)
        scored_N = np.isfinite(losses_N)
        num_scored = int(scored_N.sum())
        weights_N, notes, warnings = scored_N.astype(np.float64), {}, ()
        if num_scored < 3:
            warnings = (f"only {num_scored} samples could be scored, too few for three bands: this draw is uniform",)
        else:
            low, high = (float(q) for q in np.quantile(losses_N[scored_N], self.quantiles))
            in_focus_N = (
                scored_N
                & {
                    "low": losses_N <= low,
                    "medium": (losses_N > low) & (losses_N <= high),
                    "high": losses_N > high,
                }[self.focus]
            )
            notes = {"quantile_losses": [low, high], "num_in_focus": int(in_focus_N.sum())}
            if in_focus_N.any():
                # In logarithms, bounded: a low temperature would overflow.
                log_weight = math.log(self.focus_weight) / self.temperature
                weights_N[in_focus_N] = math.exp(max(-700.0, min(log_weight, 700.0)))
            else:
                warnings = (f"no sample has a {self.focus} loss, all lie in the other bands: this draw is uniform",)
        selection = Selection(
            rows_Q=draw(weights_N, quota, rng, replacement=self.replacement),
            decision="uniform" if warnings else "guided",
            columns_N={"loss": signals["loss"], "weight": weights_N},
            notes={"num_scored": num_scored, "num_unscored": len(losses_N) - num_scored, **notes},
            warnings=warnings,
        )
        return selection, state
