"""Rows whose loss is near the median: neither what the model knows nor what it cannot make sense of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import Progress, Selection, SelectorBase
from dataflex.core.draw import draw
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NearMedian(SelectorBase):
    """Draw rows with weight ``exp(-|l_i - median(l)| / (width * s))``, s the mean absolute deviation of the losses.

    Rows without a finite loss have weight 0. With equal losses every row has the same weight.

    Args:
        width: how far from the median a row may be and still be drawn often, in mean absolute deviations.

    Raises:
        ConfigError: a width that is not positive.

    Source: an example; its idea is that of preferring a middle difficulty (e.g. arXiv 2309.04564, which keeps the
    middle of the perplexity distribution).
    """

    width: float = 0.5

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})
    source: ClassVar[str] = "example of a package of its own; after arXiv 2309.04564"

    def __post_init__(self) -> None:
        if not 0 < self.width < np.inf:
            raise ConfigError(f"width is {self.width}; it must be a positive number")

    def select(
        self,
        state: Mapping[str, np.ndarray],
        signals: Mapping[str, np.ndarray],
        quota: int,
        progress: Progress,
        rng: np.random.Generator,
    ) -> tuple[Selection, Mapping[str, np.ndarray]]:
        losses_N = signals["loss"].astype(np.float64)
        scored_N = state["trainable_N"] & np.isfinite(losses_N)
        distances_N = np.abs(losses_N - np.median(losses_N[scored_N])) if scored_N.any() else np.zeros(len(losses_N))
        scale = float(distances_N[scored_N].mean()) if scored_N.any() else 0.0
        weights_N = np.exp(-distances_N / (self.width * scale)) if scale > 0 else np.ones(len(losses_N))
        # Far rows stay possible where the quota needs them: a weight of 0 means "never".
        weights_N = np.where(scored_N, np.maximum(np.nan_to_num(weights_N), 1e-12), 0.0)
        rows_Q = draw(weights_N, quota, rng)
        return Selection(
            rows_Q=rows_Q, decision="guided", columns_N={"loss": signals["loss"], "weight": weights_N}
        ), state
