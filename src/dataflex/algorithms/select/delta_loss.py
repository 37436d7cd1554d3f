"""Delta Loss: draw from a window that moves along the ranking of samples by how far their loss has fallen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import PoolInfo, Progress, Selection, SelectorBase, Signals, State
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.core.draw import draw
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DeltaLoss(SelectorBase):
    """Draw samples whose loss has fallen since the start, most improved first, less improved later.

    With initial losses l0, current losses l and the N rows that have both, rank by ``delta = l0 - l`` (descending,
    ties by row). At update t of T, with tau = t / (T - 1)::

        v     = 1 / (1 + exp(-steepness * (tau - midpoint)))
        start = floor(v * (1 - window_size) * N)
        end   = floor(v * (1 - window_size) * N + window_size * N), at least start + 1,
                at most the number of rows with delta >= 0

    Rows in [start, end) of the ranking weigh 1, the others ``base_weight``; the quota is drawn by these weights
    without replacement. The first selection of the run keeps l0 and draws uniformly.

    Args:
        window_size: share of the scored rows that the window covers, 0 < s <= 1.
        steepness: slope of the sigmoid that moves the window, > 0.
        midpoint: value of tau at which the window is half way.
        progress: tau of update t: ``t/(T-1)``, or ``t/T`` as in DataFlex's user guide.
        base_weight: weight outside the window, 0 <= b <= 1.
        normalize: ``none``, or ``initial`` to rank by delta / l0 (LoBaSS, DavIR).
        baseline: l0 is measured at the ``first_selection`` or at ``run_start`` (step 0, before the warm-up).
        when_empty: what happens when truncation leaves too few rows: ``slide`` the window back onto the last improved
            rows, or ``uniform``: a draw over everything once it is empty.
        replacement: allow a row to be drawn twice, for quotas larger than the pool.
        cache_dir: where initial losses are kept for other runs of the same model and data.

    Raises:
        ConfigError: a parameter out of range, or a window that cannot fill the quota with ``base_weight: 0``.

    Source: DataFlex user guide, "Delta Loss"; nearest literature LoBaSS/DavIR (arXiv 2310.13008) and prediction gain
    in Graves et al. 2017 (arXiv 1704.03003).

    >>> DeltaLoss(window_size=0.2).window(tau=0.25, num_scored=1000)
    (60, 260)
    """

    window_size: float = 0.2
    steepness: float = 10.0
    midpoint: float = 0.5
    progress: Literal["t/(T-1)", "t/T"] = "t/(T-1)"
    base_weight: float = 0.025
    normalize: Literal["none", "initial"] = "none"
    baseline: Literal["first_selection", "run_start"] = "first_selection"
    when_empty: Literal["slide", "uniform"] = "slide"
    replacement: bool = False
    cache_dir: str | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})
    compares_losses: ClassVar[bool] = True
    source: ClassVar[str] = "DataFlex user guide; LoBaSS/DavIR 2310.13008; 1704.03003"

    def __post_init__(self) -> None:
        require_range("window_size", self.window_size, above=0, at_most=1)
        require_range("steepness", self.steepness, above=0)
        require_range("midpoint", self.midpoint)
        require_range("base_weight", self.base_weight, at_least=0, at_most=1)
        require_one_of("progress", self.progress, ("t/(T-1)", "t/T"))
        require_one_of("normalize", self.normalize, ("none", "initial"))
        require_one_of("baseline", self.baseline, ("first_selection", "run_start"))
        require_one_of("when_empty", self.when_empty, ("slide", "uniform"))

    def needs_at(self, progress: Progress) -> frozenset[str]:
        if progress.is_first_selection and self.baseline == "first_selection":
            return self.needs
        if progress.step == 0 and self.baseline == "run_start":
            return self.needs
        return frozenset() if progress.is_warmup or progress.is_first_selection else self.needs

    def init(self, pool: PoolInfo) -> State:
        return {}

    def observe(self, state: State, signals: Signals, progress: Progress) -> State:
        return {"initial_losses_N": signals["loss"], **state} if "loss" in signals else state  # the first stay

    def tau(self, progress: Progress) -> float:
        """Position of an update in its cycle, 0 ... 1."""
        if progress.update is None:
            raise ValueError("a warm-up has no tau")
        if progress.num_updates is None:  # updates go on until the end: the share of them already made
            return progress.updates_made / progress.total_updates
        if self.progress == "t/T":
            return progress.update / progress.num_updates
        if progress.num_updates == 1:  # a guided single update: t / (T - 1) would divide by zero
            return 1.0
        return progress.update / (progress.num_updates - 1)

    def window(self, *, tau: float, num_scored: int) -> tuple[int, int]:
        """Start and end of the window in the ranking of ``num_scored`` rows, before truncation."""
        offset = self._sigmoid(tau) * (1 - self.window_size) * num_scored
        # Bounded: a tiny window_size leaves 1 - window_size == 1, and sums of products are rounded.
        start = min(math.floor(offset), max(num_scored - 1, 0))
        end = min(math.floor(offset + self.window_size * num_scored), num_scored)
        return start, max(end, start + 1)

    def _sigmoid(self, tau: float) -> float:
        # exp overflows beyond 709; at 700 the value is 1e-304 already
        return 1.0 / (1.0 + math.exp(min(-self.steepness * (tau - self.midpoint), 700.0)))

    def plan_note(self, progress: Progress) -> dict[str, Any]:
        if progress.is_warmup:
            return {}
        if progress.is_first_selection:
            return {"decision": "first (uniform)"}
        tau = self.tau(progress)
        start = self._sigmoid(tau) * (1 - self.window_size)
        return {"decision": "guided", "tau": tau, "window_shares": (start, start + self.window_size)}

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        if progress.is_first_selection:
            return self._first(state, signals, quota, rng)
        initial_N, losses_N = state["initial_losses_N"], signals["loss"]
        deltas_N = self._deltas(initial_N, losses_N)
        scored_N = np.isfinite(deltas_N)
        num_scored = int(np.count_nonzero(scored_N))
        num_improved = int(np.count_nonzero(deltas_N[scored_N] >= 0))
        if "improved_share" in signals:  # estimates shrink to their mean, and fewer or more of them than rows are < 0
            num_improved = round(float(signals["improved_share"][0]) * num_scored)

        order = np.argsort(-deltas_N, kind="stable")  # NaN last, ties by row
        ranks_N = np.empty(len(order), dtype=np.int64)
        ranks_N[order] = np.arange(len(order))

        tau = self.tau(progress)
        start, end, notes, warnings = self._place(tau, num_scored, num_improved, quota)
        in_window_N = scored_N & (ranks_N >= start) & (ranks_N < end)
        weights_N = np.where(in_window_N, 1.0, self.base_weight) * scored_N
        size = end - start
        if self.base_weight == 0 and not self.replacement and size < quota:
            raise ConfigError(
                f"with base_weight: 0 only the {size} samples in the window can be drawn, but the quota is {quota}; "
                "raise window_size or base_weight, or lower update_step"
            )
        rows_Q = draw(weights_N, quota, rng, replacement=self.replacement)
        selection = Selection(
            rows_Q=rows_Q,
            decision="uniform" if notes["window_state"] == "uniform" else "guided",
            columns_N={
                "loss": losses_N,
                "delta": deltas_N,
                "rank": np.where(scored_N, ranks_N, -1),
                "in_window": in_window_N,
                "weight": weights_N,
            },
            window={
                "start": start,
                "end": end,
                "start_share": start / max(num_scored, 1),
                "end_share": end / max(num_scored, 1),
            },
            notes={
                "tau": tau,
                "num_scored": num_scored,
                "num_unscored": len(deltas_N) - num_scored,
                "num_improved": num_improved,
                "num_from_window": int(np.count_nonzero(in_window_N[rows_Q])),
                **notes,
            },
            warnings=warnings,
        )
        return selection, state

    def _first(self, state: State, signals: Signals, quota: int, rng: np.random.Generator) -> tuple[Selection, State]:
        """The first selection: keep the initial losses, draw uniformly over the rows that have one."""
        initial_N = signals["loss"] if "loss" in signals else state["initial_losses_N"]
        scored_N = np.isfinite(initial_N)
        name = "loss" if "loss" in signals else "initial_loss"  # measured now, or at step 0
        selection = Selection(
            rows_Q=draw(scored_N.astype(np.float64), quota, rng, replacement=self.replacement),
            decision="first",
            columns_N={
                name: initial_N,
                "weight": scored_N.astype(np.float64),
            },
            notes={"num_scored": int(scored_N.sum()), "num_unscored": int((~scored_N).sum())},
        )
        return selection, {**state, "initial_losses_N": initial_N}

    def _deltas(self, initial_N: np.ndarray, losses_N: np.ndarray) -> np.ndarray:
        """Fall of each loss, float64, shape (N,); NaN where either loss is missing or infinite."""
        l0_N = np.where(np.isfinite(initial_N), initial_N, np.nan).astype(np.float64)
        l_N = np.where(np.isfinite(losses_N), losses_N, np.nan).astype(np.float64)
        deltas_N = l0_N - l_N
        if self.normalize == "initial":
            # A row that started at loss 0 cannot have fallen: its delta <= 0 stays what it is.
            deltas_N = np.divide(deltas_N, l0_N, out=deltas_N, where=l0_N > 0)
        return deltas_N

    def _place(
        self, tau: float, num_scored: int, num_improved: int, quota: int
    ) -> tuple[int, int, dict[str, Any], tuple[str, ...]]:
        """Window [start, end) after truncation at the last improved row, and what was done about it."""
        planned_start, planned_end = self.window(tau=tau, num_scored=num_scored)
        end = min(planned_end, num_improved)
        start = min(planned_start, end)
        notes: dict[str, Any] = {"planned_window": [planned_start, planned_end], "window_state": "planned"}
        if end == planned_end:
            return start, end, notes, ()
        notes["window_state"] = "truncated"
        wanted = max(1, math.floor(self.window_size * num_scored))
        too_few = end - start < min(quota, wanted) if self.when_empty == "slide" else end == start
        if not too_few:
            return start, end, notes, ()
        if num_improved == 0 or self.when_empty == "uniform":
            notes["window_state"] = "uniform"
            why = "no sample improved" if num_improved == 0 else "no improved sample is left in the window"
            return 0, num_scored, notes, (f"{why}: this draw is uniform over the {num_scored} scored samples",)
        notes["window_state"] = "slid"
        start = max(0, num_improved - wanted)
        sentence = (
            f"only {num_improved} of {num_scored} samples improved: the window slid from "
            f"[{planned_start}, {planned_end}) to [{start}, {num_improved})"
        )
        return start, num_improved, notes, (sentence,)
