"""RHO-LOSS: of some candidates, the samples that the model has still to learn and a reference shows to be learnable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import Progress, Selection, SelectorBase, Signals, State
from dataflex.algorithms.checks import require_range
from dataflex.core.draw import top_k
from dataflex.core.errors import ConfigError

SELF = "self"


@dataclass(frozen=True, kw_only=True)
class RhoLoss(SelectorBase):
    """Take the candidates of largest excess loss over a reference.

    At each decision ``quota / ratio`` candidates are drawn uniformly and scored, and of these are taken those of the
    largest::

        excess_i = loss_i - reference_loss_i

    A large loss that the reference has too is noise, or cannot be learned; a small one is learned already.

    Args:
        reference: a model, or an adapter's folder, that was trained on data held out from the pool; of the same
            vocabulary. Its losses are measured once and kept.
        ratio: share of the candidates that is taken, in (0, 1]; so low that all rows are candidates: the whole pool.
        allow_self: accept ``reference: self``, the model without its adapter; the excess is minus what was learned.
        cache_dir: where the reference's losses are kept for other runs; None: beside the run's record.

    Raises:
        ConfigError: no reference, or a parameter out of range.

    Source: RHO-LOSS (2206.07137), eq. 3. Departure: candidates are drawn for a segment, not for every step.
    """

    reference: str
    ratio: float = 0.1
    allow_self: bool = False
    cache_dir: str | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"loss", "reference_loss"})
    limits_passes: ClassVar[bool] = True
    source: ClassVar[str] = "RHO-LOSS 2206.07137"

    def __post_init__(self) -> None:
        if not self.reference:
            raise ConfigError(
                "reference is missing; name a model that was trained on data held out from the pool, whose losses say "
                "what can be learned"
            )
        if self.reference == SELF and not self.allow_self:
            raise ConfigError(
                "reference is self: the excess over the model itself is minus what it has learned, so that the least "
                "learned come first; name another model, or set allow_self: true"
            )
        require_range("ratio", self.ratio, above=0, at_most=1)

    def needs_at(self, progress: Progress) -> frozenset[str]:
        if progress.is_warmup:
            return frozenset()
        return self.needs if progress.is_first_selection else self.needs - {"reference_loss"}

    def candidates(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[np.ndarray | None, State]:
        if "reference_loss" in signals:
            state = {**state, "ref_losses_N": np.asarray(signals["reference_loss"], dtype=np.float32)}
        allowed_N = state["trainable_N"] & np.isfinite(state["ref_losses_N"])
        wanted = min(int(allowed_N.sum()), max(quota, round(quota / self.ratio)))
        # Uniform, with no regard to what was trained: a sample may be wanted again.
        rows = np.flatnonzero(allowed_N)
        return np.sort(rows[np.argsort(rng.random(len(rows)), kind="stable")[:wanted]]), state

    def share_measured(self, quota: int, num_rows: int) -> float:
        """Share of the pool whose loss a decision measures."""
        return min(1.0, max(quota, round(quota / self.ratio)) / max(1, num_rows))

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        excess_N = self._excess(state, signals)
        scored_N = np.isfinite(excess_N)
        if int(scored_N.sum()) < quota:
            raise ConfigError(
                f"only {int(scored_N.sum())} candidates have a finite loss, and {quota} are drawn of them; lower ratio "
                f"(now {self.ratio:g}), so that more are scored"
            )
        selection = Selection(
            rows_Q=top_k(np.where(scored_N, excess_N, -np.inf), quota, allowed_N=scored_N),
            decision="guided",
            columns_N={"excess": excess_N.astype(np.float32), "reference_loss": state["ref_losses_N"]},
            notes={
                "num_candidates": int(scored_N.sum()),
                "num_without_reference": int((state["trainable_N"] & ~np.isfinite(state["ref_losses_N"])).sum()),
            },
        )
        return selection, state

    def rank(self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        excess_N = self._excess(state, signals)
        scored_N = np.isfinite(excess_N)
        return top_k(np.where(scored_N, excess_N, -np.inf), int(scored_N.sum()), allowed_N=scored_N)

    @staticmethod
    def _excess(state: State, signals: Signals) -> np.ndarray:
        """Of the candidates, float64, shape (N,); NaN for the others."""
        with np.errstate(invalid="ignore"):
            excess_N = np.asarray(signals["loss"], dtype=np.float64) - state["ref_losses_N"]
        return np.where(np.isfinite(excess_N) & state["trainable_N"], excess_N, np.nan)
