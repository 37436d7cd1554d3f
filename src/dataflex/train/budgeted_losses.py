"""The losses that a decision is made from under a scoring budget: some measured, the others estimated (collective)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dataflex.core.board import Board
from dataflex.core.errors import LedgerError
from dataflex.core.segment import Progress
from dataflex.ledger.ledger import Ledger
from dataflex.train.budget_record import Budgeted, recorded_signals
from dataflex.train.measured import FROM_CACHE, Measured, only
from dataflex.train.ranks import Ranks

if TYPE_CHECKING:
    from dataflex.train.budget import Budget  # its estimates need scikit-learn

CACHED_AT_START = "initial_losses_cached"  # in run.yaml: the run began with losses of step 0 from the cache


class BudgetedLosses:
    """Has rank 0's budget say which rows all ranks score, and estimate the rest.

    Args:
        ledger: of this run; keeps whether it began with cached initial losses.
        measure: measures the losses of some rows, None: of all (collective).
        cached_losses: losses under the weights of step 0 where an earlier run measured them (collective).
    """

    def __init__(
        self,
        budget: Budget,
        *,
        ranks: Ranks,
        ledger: Ledger,
        measure: Callable[[Progress, np.ndarray | None], Measured],
        cached_losses: Callable[[Progress], np.ndarray | None],
    ) -> None:
        self._budget, self._ranks, self._ledger = budget, ranks, ledger
        self._measure, self._cached_losses = measure, cached_losses

    def prepare(self, progress: Progress, board: Board) -> None:
        """Tell the budget what is known without a pass; before every decision (collective)."""
        cached_N = self._cached_losses(progress) if progress.step == 0 else None

        def tell() -> None:
            if progress.step == 0:
                self._budget.know(self._cached_of_run(cached_N))
            self._budget.watch(progress, board)

        self._ranks.from_main(tell)

    def _cached_of_run(self, cached_N: np.ndarray | None) -> np.ndarray | None:
        """The cached initial losses that this run is made with, as its record says (rank 0).

        On record before the first decision: a run that goes on from its beginning finds what it has put into the cache
        itself, or what others have since, and must not be another run for it.
        """
        made_with = self._ledger.run().get(CACHED_AT_START)
        if made_with is None:
            made_with = cached_N is not None
            self._ledger.update_run({CACHED_AT_START: made_with})
        if made_with and cached_N is None:
            raise LedgerError(
                "the run began with initial losses from cache_dir, which are not there any more; restore them, or "
                "start anew with overwrite_output_dir: true"
            )
        return cached_N if made_with else None

    def measure(
        self,
        progress: Progress,
        times_trained_N: np.ndarray,
        rows_R: np.ndarray | None,
        signals: dict[str, np.ndarray],
        board: Board,
    ) -> tuple[Measured, dict[str, Any]]:
        """Losses of the whole pool, and what is said of them: the record, and ``errors`` where they were checked.

        ``signals`` gets those of ``BUDGET_SIGNALS`` besides. Nothing of it is known to ranks above 0 (collective).

        Args:
            rows_R: rows that the method limits the decision to; None: all.
            board: what training showed of each row.
        """
        request = self._ranks.from_main(lambda: self._budget.request(progress, times_trained_N, rows_R))
        measured = None
        if request.rows is None or len(request.rows):
            measured = self._measure(progress, request.rows)
        found: Budgeted | None = None
        seconds = 0.0

        def take() -> None:
            nonlocal found, seconds
            began = time.perf_counter()
            values_N, cost = (measured.values, measured.cost) if measured is not None else (None, {})
            found = self._budget.take(progress, request, values_N, cost, board)
            seconds = time.perf_counter() - began

        self._ranks.from_main(take)
        if found is None:  # not rank 0
            return Measured(values=np.zeros(0, np.float32)), {}
        record = {**found.record, "estimating_seconds": seconds}
        signals |= found.signals
        losses_N = found.losses_N if rows_R is None else only(rows_R, found.losses_N)
        said = {**record, "errors": found.errors}
        if measured is None:
            cost = {**FROM_CACHE, "source": request.source, "budget": record}
            return Measured(values=losses_N, cost=cost), said
        cost = {**measured.cost, "budget": record}
        return Measured(values=losses_N, cost=cost, tolerance=measured.tolerance), said

    def recall(
        self,
        progress: Progress,
        line: Mapping[str, Any],
        columns_N: Mapping[str, np.ndarray],
        signals: dict[str, np.ndarray],
    ) -> dict[str, Any]:
        """Take in a decision that is on record as if it had been made now; its record (rank 0)."""
        self._budget.recall(progress, line, columns_N)
        record = line["scoring"]["budget"]
        signals |= recorded_signals(record, columns_N)
        return record
