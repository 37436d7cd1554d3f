"""What one decision is made from: signals at hand, on record, or measured now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataflex.core.segment import Progress, Segment
from dataflex.train.budget_record import recorded_signals
from dataflex.train.budgeted_losses import BudgetedLosses
from dataflex.train.decide import in_turn
from dataflex.train.former import Former, difference
from dataflex.train.measured import Measured, added
from dataflex.train.ranks import Ranks
from dataflex.train.shown import Shown


@dataclass(kw_only=True)
class Evidence:
    """Signals by name, one value a pool row each, and what is said of them. Complete on rank 0 only."""

    signals: dict[str, np.ndarray] = field(default_factory=dict)
    scoring: dict[str, Any] = field(default_factory=dict)  # what measuring cost; empty where there was no pass
    budgeted: dict[str, Any] = field(default_factory=dict)  # what the scoring budget says of this decision
    warnings: list[str] = field(default_factory=list)


class EvidenceTaker:
    """Takes the signals of one decision after another. All public methods are collective.

    Args:
        measure: measures one signal, given its name and the rows, None: all (collective).
        spot_check: measures the losses of some rows under the present weights (collective).
        shown: what training itself showed.
        budgeted: measures losses under a scoring budget; None: all are measured.
    """

    def __init__(
        self,
        *,
        ranks: Ranks,
        measure: Callable[[str, Progress, np.ndarray | None], Measured],
        spot_check: Callable[[np.ndarray], Measured],
        shown: Shown,
        budgeted: BudgetedLosses | None,
        versions: Mapping[str, str],
    ) -> None:
        self._ranks, self._measure, self._spot_check = ranks, measure, spot_check
        self._shown, self._budgeted, self._versions = shown, budgeted, versions

    def take(
        self,
        needs: frozenset[str],
        segment: Segment,
        progress: Progress,
        *,
        former: Former,
        times_trained_N: np.ndarray,
        candidates: Callable[[Mapping[str, np.ndarray]], np.ndarray | None],
    ) -> Evidence:
        """Take the signals ``needs`` of one segment.

        Args:
            former: what an earlier process of this run recorded.
            times_trained_N: how often each row was trained so far.
            candidates: from the signals at hand the rows that the dear ones are limited to, None: all (rank 0).
        """
        evidence = Evidence()
        if self._budgeted is not None:
            self._budgeted.prepare(progress, self._shown.board)
        kept = self._ranks.from_main(lambda: sorted(former.signals(former.in_force(segment.index))))
        at_hand, limited = in_turn(needs)
        rows_R: np.ndarray | None = None
        for name in [*at_hand, *limited]:
            if name in limited[:1]:
                rows_R = self._ranks.from_main(lambda: candidates(evidence.signals))
            if name == "times_trained":
                evidence.signals[name] = times_trained_N.copy()
            elif name == "training_loss":
                evidence.signals[name] = self._shown.last_losses_N
            elif name in kept:
                self._recall(name, segment, progress, former, evidence)
            else:
                self._take_measured(name, segment, progress, former, times_trained_N, rows_R, evidence)
        return evidence

    def _recall(self, name: str, segment: Segment, progress: Progress, former: Former, evidence: Evidence) -> None:
        """Take a signal that the line in force recorded."""
        evidence.scoring = {"source": "ledger", "num_rows": 0, "num_tokens": 0, "seconds": 0.0}
        line = former.in_force(segment.index)
        if self._ranks.is_main:
            evidence.signals[name] = former.signals(line)[name]
        if name != "loss":
            return
        self._measure_again(line, former)

        def recall_budget() -> dict[str, Any]:
            if self._budgeted is None or line is None:
                return {}
            return self._budgeted.recall(progress, line, former.signals(line), evidence.signals)

        evidence.budgeted = self._ranks.from_main(recall_budget)

    def _measure_again(self, line: Mapping[str, Any] | None, former: Former) -> None:
        """Losses of some rows, to see that recorded ones are those of the present weights."""
        rows_R = self._ranks.from_main(lambda: former.rows_to_measure_again(line or {}))
        if len(rows_R) == 0:
            return
        again = self._spot_check(rows_R)
        self._ranks.from_main(lambda: former.verify_losses(line or {}, rows_R, again, self._versions))

    def _take_measured(
        self,
        name: str,
        segment: Segment,
        progress: Progress,
        former: Former,
        times_trained_N: np.ndarray,
        rows_R: np.ndarray | None,
        evidence: Evidence,
    ) -> None:
        if name == "loss" and self._budgeted is not None:
            measured, evidence.budgeted = self._budgeted.measure(
                progress, times_trained_N, rows_R, evidence.signals, self._shown.board
            )
        else:
            measured = self._measure(name, progress, rows_R)
        evidence.signals[name] = measured.values
        if name == "loss":
            evidence.warnings += self._ranks.from_main(lambda: _made_again(segment, measured, former, evidence))
        evidence.scoring = added(evidence.scoring, measured.cost)


def _made_again(segment: Segment, measured: Measured, former: Former, evidence: Evidence) -> list[str]:
    """Take the losses that a rolled-back line recorded, where the steps before it gave the same again (rank 0).

    A complete line wins: a choice that was recorded is made again in spite of another order of summation.

    Returns:
        What is to be said.
    """
    line = former.rolled_back(segment.index, segment.start)
    columns_N = former.signals(line)
    recorded = columns_N.get("loss")
    if line is None or recorded is None:
        return []
    then_N, now_N = recorded, measured.values
    if "scored" in evidence.signals and "scored" in columns_N:  # estimates follow from what was measured
        then_N = np.where(columns_N["scored"], then_N, np.nan)
        now_N = np.where(evidence.signals["scored"], now_N, np.nan)
    apart = difference(then_N, now_N, measured.tolerance)
    if apart is not None:
        return [
            f"training up to step {segment.start} again gave other losses than before the interruption (row "
            f"{apart.position}: {apart.then:.6g} then, {apart.now:.6g} now): segment {segment.index} is decided anew"
        ]
    measured.cost["decided_by"] = "the losses recorded before the interruption"
    evidence.signals["loss"] = recorded
    budget = (line["scoring"] or {}).get("budget")
    if budget is not None:
        evidence.signals |= recorded_signals(budget, columns_N)
        evidence.budgeted = dict(budget)
        measured.cost["budget"] = {**measured.cost["budget"], **budget}
    return []
