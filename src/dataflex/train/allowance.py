"""What a scoring budget allows at each decision of a run, in FLOPs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dataflex.core.plan import SegmentPlan
from dataflex.core.segment import Progress


class Allowance:
    """A share of the training's FLOPs by the end of each cycle; what a cycle leaves over goes to the next.

    Args:
        share: of the training's FLOPs.
        needs_loss: whether a decision asks for losses.
        training_M: FLOPs of training each row that can be trained, once; one at least.
        repeats: a segment may have a row several times although others are left.
    """

    def __init__(
        self,
        *,
        share: float,
        plan: SegmentPlan,
        needs_loss: Callable[[Progress], bool],
        global_batch: int,
        training_M: np.ndarray,
        repeats: bool,
    ) -> None:
        self._share, self._global_batch, self._mean = share, global_batch, float(training_M.mean())
        segments = list(plan.segments())
        self._starts_S = np.array([segment.start for segment in segments])
        self._num_steps, self._cycle = plan.num_steps, plan.steps_per_cycle
        # Of training the 0, 1, 2 ... cheapest rows once.
        cheapest_M = np.concatenate([[0.0], np.cumsum(np.sort(training_M))])

        def least(quota: int) -> float:
            """Least that training so many rows of one segment can cost."""
            if repeats:
                return quota * float(cheapest_M[1])
            passes, rest = divmod(quota, len(training_M))
            return passes * float(cheapest_M[-1]) + float(cheapest_M[rest])

        of_quota = {quota: least(quota * global_batch) for quota in {segment.num_steps for segment in segments}}
        # Sums over the segments before each, so that any part of the run is a difference.
        self._least_S = np.cumsum([0.0, *(of_quota[segment.num_steps] for segment in segments)])
        self._turns_S = np.cumsum([0, *(int(needs_loss(plan.progress(segment))) for segment in segments)])

    def by_cycle_end(self, progress: Progress, trained: float, num_trained: int) -> tuple[float, float]:
        """FLOPs that may have been spent by the end of the present cycle: as expected, and for sure.

        Rows to come are expected to cost what the pool's or, where those were shorter, the trained ones cost on
        average; for sure, each segment costs at least what its quota of the pool's cheapest rows does.

        Args:
            trained: FLOPs of all training so far.
            num_trained: rows of it.
        """
        mean = min(self._mean, trained / num_trained) if num_trained else self._mean
        first, last, stop = self._part(progress)
        expected = (stop - progress.step) * self._global_batch * mean
        least = self._least_S[last] - self._least_S[first]
        return self._share * (trained + expected), self._share * (trained + float(least))

    def turns(self, progress: Progress) -> int:
        """Decisions of the cycle that ask for losses, from this one on; 1 at least."""
        first, last, _ = self._part(progress)
        return max(1, int(self._turns_S[last] - self._turns_S[first]))

    def _part(self, progress: Progress) -> tuple[int, int, int]:
        """(number of this segment, number of the first after the cycle, its step)."""
        stop = self._num_steps if self._cycle is None else (progress.step // self._cycle + 1) * self._cycle
        stop = min(stop, self._num_steps)
        first, last = np.searchsorted(self._starts_S, [progress.step, stop])
        return int(first), int(last), stop
