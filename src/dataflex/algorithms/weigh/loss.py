"""Loss: rows count by where their loss lies between the lowest and the highest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import State, TrainedBatch, WeigherBase, Weights
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.algorithms.weigh.window import empty_window, window_of
from dataflex.core.errors import ConfigError

STRATEGIES = ("linupper", "quadratic", "extremes", "upper", "linear", "uniform")


@dataclass(frozen=True, kw_only=True)
class LossWeigher(WeigherBase):
    """Weigh rows by their loss, mean 1 over the scope.

    n_i = delta (2 l_i - max - min) / max(max - min, 1e-6), from -delta to delta; f is ``linupper`` min(n + delta,
    delta), ``quadratic`` 1 - n^2 / delta^2, ``extremes`` |n|, ``upper`` (n + delta) / 2, ``linear`` n, ``uniform`` 0;
    c_i = exp(f_i / r) / mean exp(f / r).

    >>> LossWeigher().coefficients(np.array([0.5, 1, 2, 3]), np.array([0.5, 1, 2, 3])).round(6).tolist()
    [0.504516, 0.75265, 1.371417, 1.371417]

    Args:
        strategy: f.
        delta: scale of n, > 0.
        r: temperature, > 0; the authors use 0.4 for linupper with DoReMi or DoGE and for larger models, else 1.
        scope: min, max and mean are those of the rows of one ``micro_batch`` over all ranks, or of a ``window``, the
            last 1,024 losses before the optimizer step (n is clipped to it; c is 1 in the first step).
        average: ``tokens``: a row counts by its label tokens, as in the plain loss; ``rows``: all rows alike, by a
            further factor mean(T) / T_i, as upstream does; for ``micro_batch``.

    Raises:
        ConfigError: a parameter out of range; a ``micro_batch`` of one row, where every coefficient is 1.

    Source: arXiv 2502.06733, Alg. 1, and its code, whose loss B sum w_i (T_i / sum T) l_i this is. Upstream's
    ``uniform`` is f = n, the strongest tilt to hard rows: it is ``linear`` here. The authors burn in 1,000 steps
    (``warmup_step``). The window is ours.
    """

    strategy: Literal["linupper", "quadratic", "extremes", "upper", "linear", "uniform"] = "linupper"
    delta: float = 1.0
    r: float = 1.0
    scope: Literal["micro_batch", "window"] = "micro_batch"
    average: Literal["tokens", "rows"] = "tokens"

    source: ClassVar[str] = "2502.06733"

    def __post_init__(self) -> None:
        require_one_of("strategy", self.strategy, STRATEGIES)
        require_range("delta", self.delta, above=0)
        require_range("r", self.r, above=0)
        require_one_of("scope", self.scope, ("micro_batch", "window"))
        require_one_of("average", self.average, ("tokens", "rows"))
        if self.average == "rows" and self.scope == "window":
            raise ConfigError("average: rows needs the tokens of the whole scope; set scope: micro_batch")

    def init(self) -> State:
        return empty_window() if self.scope == "window" else {}

    def check_rows_in_scope(self, num_rows: int) -> None:
        if self.scope == "micro_batch" and num_rows < 2 and self.strategy != "uniform":
            raise ConfigError(
                f"the weigher loss compares the {num_rows} row of a micro-batch over all ranks with itself, so that "
                "every weight is 1; set scope: window, or a larger per_device_train_batch_size"
            )

    def weigh(self, state: State, batch: TrainedBatch) -> tuple[Weights, State]:
        losses_B = np.asarray(batch.losses_B, dtype=np.float64)
        scored_B = batch.scored_B
        scope_S = losses_B[scored_B]
        if self.scope == "window":
            scope_S, state = window_of(state, batch)
        weights_B = np.zeros(len(batch))
        weights_B[scored_B] = self.coefficients(losses_B[scored_B], scope_S)
        if self.average == "rows" and scored_B.any():
            tokens_S = np.asarray(batch.tokens_B, dtype=np.float64)[scored_B]
            weights_B[scored_B] *= tokens_S.mean() / tokens_S
        return Weights(weights_B=weights_B), state

    def coefficients(self, losses_B: np.ndarray, scope_S: np.ndarray) -> np.ndarray:
        """c of finite losses, compared with the finite losses of the scope; 1 where that is empty or all equal."""
        if len(scope_S) == 0 or scope_S.min() == scope_S.max():
            return np.ones(len(losses_B))
        low, high = scope_S.min(), scope_S.max()
        exponents_B, exponents_S = (self._exponents(losses, low, high) for losses in (losses_B, scope_S))
        top = exponents_S.max()
        return np.exp(exponents_B - top) / np.exp(exponents_S - top).mean()

    def _exponents(self, losses: np.ndarray, low: float, high: float) -> np.ndarray:
        """f / r."""
        d = self.delta
        n = np.clip(d * (2 * losses - high - low) / max(high - low, 1e-6), -d, d)
        f = {
            "linupper": lambda: np.minimum(n + d, d),
            "quadratic": lambda: 1 - n**2 / d**2,
            "extremes": lambda: np.abs(n),
            "upper": lambda: (n + d) / 2,
            "linear": lambda: n,
            "uniform": lambda: np.zeros_like(n),
        }[self.strategy]()
        return f / self.r
