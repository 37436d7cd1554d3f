"""A segment: a run of optimizer steps trained from one decision, and where in the run that decision falls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Optimizer steps ``start`` to ``stop - 1``, trained from one decision."""

    index: int  # 0, 1, 2 ... over the whole run
    start: int
    stop: int
    cycle: int
    update: int | None  # t in 0 ... T-1 within the cycle; None in a warm-up

    @property
    def num_steps(self) -> int:
        return self.stop - self.start

    @property
    def is_warmup(self) -> bool:
        return self.update is None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What an algorithm may know about the position of a decision in the run. Steps are optimizer steps."""

    segment: int
    step: int
    num_steps: int
    cycle: int
    update: int | None  # t; None in a warm-up
    num_updates: int | None  # T of the cycle; None when updates go on until the end
    updates_made: int  # decisions of the run before this one, warm-ups not counted
    total_updates: int  # decisions of the whole run, warm-ups not counted

    @property
    def is_warmup(self) -> bool:
        return self.update is None

    @property
    def is_first_selection(self) -> bool:
        return self.update is not None and self.updates_made == 0
