"""The plan of a run: warm-up, updates and cycles as segments; step and segment are functions of each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from dataflex.core.errors import ConfigError, shown
from dataflex.core.segment import Progress, Segment

MOST_STEPS = 2**31 - 1  # hosts count steps in 32 bits
MOST_SEGMENTS = 1_000_000  # each is a ledger line and a file or two of its own


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When decisions are made. All counts are optimizer steps, except ``update_times`` (decisions a cycle).

    A cycle is ``warmup_step + update_step * update_times`` steps and counts as one epoch. ``update_times <= 0`` keeps
    updating: one warm-up, then a decision every ``update_step`` steps, and an epoch is a pass over the pool.
    ``train_step > 0`` fixes the length of the run.
    """

    warmup_step: int = 0
    update_step: int
    update_times: int = 1
    train_step: int = 0

    def __post_init__(self) -> None:
        if self.update_step < 1:
            raise ConfigError(f"update_step is {shown(self.update_step)}; it must be at least 1 optimizer step")
        for name in ("warmup_step", "train_step"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {shown(getattr(self, name))}; it must be 0 or more optimizer steps")
        for name, value in vars(self).items():
            if value > MOST_STEPS:
                raise ConfigError(f"{name} is {shown(value)}; it must be at most {MOST_STEPS}")

    @property
    def steps_per_cycle(self) -> int | None:
        """Optimizer steps of one cycle; None when updates go on until the end of the run."""
        return self.warmup_step + self.update_step * self.update_times if self.update_times > 0 else None


@dataclass(frozen=True, kw_only=True)
class SegmentPlan:
    """The segments that tile a run of ``num_steps`` optimizer steps. Make one with ``dynamic`` or ``host``.

    >>> schedule = Schedule(warmup_step=10, update_step=10, update_times=2)
    >>> plan = SegmentPlan.dynamic(schedule, num_epochs=1, pool_steps=250)
    >>> [(s.start, s.stop, s.update) for s in plan.segments()]
    [(0, 10, None), (10, 20, 0), (20, 30, 1)]
    """

    num_steps: int
    steps_per_epoch: int
    warmup_step: int
    update_step: int
    updates_per_cycle: int | None  # None: until the end of the run
    steps_per_cycle: int | None

    @classmethod
    def dynamic(
        cls, schedule: Schedule, *, num_epochs: float, pool_steps: int, max_steps: int | None = None
    ) -> SegmentPlan:
        """The plan of a run whose rows a method chooses.

        Args:
            schedule: warm-up, updates, fixed length.
            num_epochs: cycles to train (passes over the pool when updates never end); may be fractional.
            pool_steps: optimizer steps of one pass over the pool.
            max_steps: the user's upper bound on the number of steps, if any.
        """
        cycle = schedule.steps_per_cycle
        steps_per_epoch = cycle if cycle is not None else pool_steps
        num_steps = _whole_steps(schedule.train_step or num_epochs * steps_per_epoch, max_steps)
        if num_steps < 1 or steps_per_epoch < 1:
            raise ConfigError(f"the run has {num_steps} optimizer steps; raise num_train_epochs or set train_step")
        return cls(
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
            warmup_step=schedule.warmup_step,
            update_step=schedule.update_step,
            updates_per_cycle=schedule.update_times if cycle is not None else None,
            steps_per_cycle=cycle,
        )

    @classmethod
    def host(
        cls, schedule: Schedule, *, num_epochs: float, pool_steps: int, max_steps: int | None = None
    ) -> SegmentPlan:
        """The plan of a run in the host's own order: its steps and epochs, a line every ``update_step`` steps."""
        length = max_steps if max_steps is not None else num_epochs * pool_steps
        num_steps = _whole_steps(schedule.train_step or length, max_steps)
        if num_steps < 1 or pool_steps < 1:
            raise ConfigError(f"the run has {num_steps} optimizer steps; raise num_train_epochs or max_steps")
        return cls(
            num_steps=num_steps,
            steps_per_epoch=pool_steps,
            warmup_step=0,
            update_step=schedule.update_step,
            updates_per_cycle=math.ceil(pool_steps / schedule.update_step),
            steps_per_cycle=pool_steps,
        )

    def __post_init__(self) -> None:
        if self.num_segments > MOST_SEGMENTS:
            raise ConfigError(
                f"the run is cut into {self.num_segments:,} segments; at most {MOST_SEGMENTS:,} can be recorded, raise "
                "update_step"
            )

    @property
    def num_segments(self) -> int:
        """Number of segments of the run, warm-ups included."""
        return self.segment_at(self.num_steps - 1).index + 1

    def segment_at(self, step: int) -> Segment:
        """The segment that optimizer step ``step`` (0 ... num_steps - 1) belongs to."""
        if not 0 <= step < self.num_steps:
            raise ConfigError(f"step {step} is outside the run of {self.num_steps} optimizer steps")
        cycle, offset = divmod(step, self.steps_per_cycle) if self.steps_per_cycle is not None else (0, step)
        cycle_start = step - offset
        if offset < self.warmup_step:
            update, start, length = None, 0, self.warmup_step
        else:
            update = (offset - self.warmup_step) // self.update_step
            start, length = self.warmup_step + update * self.update_step, self.update_step
        stop = start + length if self.steps_per_cycle is None else min(start + length, self.steps_per_cycle)
        has_warmup = int(self.warmup_step > 0)
        index = cycle * (has_warmup + (self.updates_per_cycle or 0)) + (0 if update is None else has_warmup + update)
        return Segment(
            index=index,
            start=cycle_start + start,
            stop=min(cycle_start + stop, self.num_steps),
            cycle=cycle,
            update=update,
        )

    def segments(self) -> Iterator[Segment]:
        """All segments in order."""
        step = 0
        while step < self.num_steps:
            segment = self.segment_at(step)
            yield segment
            step = segment.stop

    def epoch_stop(self, step: int) -> int:
        """The first step after the epoch that ``step`` belongs to, within the run."""
        return min((step // self.steps_per_epoch + 1) * self.steps_per_epoch, self.num_steps)

    def updates_before(self, step: int) -> int:
        """Number of decisions (warm-ups not counted) whose segment starts before optimizer step ``step``."""
        if self.steps_per_cycle is None:
            return max(0, math.ceil((step - self.warmup_step) / self.update_step))
        cycle, offset = divmod(step, self.steps_per_cycle)
        return cycle * (self.updates_per_cycle or 0) + max(0, math.ceil((offset - self.warmup_step) / self.update_step))

    def progress(self, segment: Segment) -> Progress:
        """What an algorithm is told about the decision of ``segment``."""
        return Progress(
            segment=segment.index,
            step=segment.start,
            num_steps=self.num_steps,
            cycle=segment.cycle,
            update=segment.update,
            num_updates=self.updates_per_cycle,
            updates_made=self.updates_before(segment.start),
            total_updates=self.updates_before(self.num_steps),
        )


def _whole_steps(steps: float, max_steps: int | None) -> int:
    """``steps`` rounded up and bounded; raises when there are too many, or no number of them."""
    steps = steps if max_steps is None else min(steps, max_steps)
    if not steps <= MOST_STEPS:  # NaN as well
        raise ConfigError(
            f"the run has {shown(steps)} optimizer steps; it must have at most {MOST_STEPS}: lower num_train_epochs or "
            "set max_steps"
        )
    return math.ceil(max(steps, 0))
