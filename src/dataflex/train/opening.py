"""What a run says in its first lines: how long it is, and what its user should know of it."""

from __future__ import annotations

import math
from typing import Any

from dataflex.core.order import Geometry
from dataflex.core.plan import SegmentPlan
from dataflex.train.make_budget import full_share
from dataflex.train.pool import Pool
from dataflex.train.score_budget import budget_sentence
from dataflex.train.settings import Settings, unguided

MOST_COUNTED = 100_000  # steps of a run whose segments are counted


def first_lines(settings: Settings, plan: SegmentPlan, geometry: Geometry, pool: Pool, trainer: Any) -> list[str]:
    """The sentences, the length first."""
    method, schedule = settings.method, settings.schedule
    num_segments = sum(1 for _ in plan.segments()) if plan.num_steps <= MOST_COUNTED else "many"
    lines = [
        f"{method.title}: {plan.num_steps} steps in {num_segments} segments over a pool of {len(pool)} samples, "
        f"{geometry.global_batch} samples a step"
    ]
    unbounded = schedule.train_step or math.ceil(trainer.args.num_train_epochs * plan.steps_per_epoch)
    if plan.num_steps < unbounded:
        lines.append(f"max_steps ends the run after {plan.num_steps} steps; the schedule has {unbounded}")
    share = full_share(method, plan, pool, geometry, trainer)
    return [*lines, *(said for said in (unguided(method, plan), budget_sentence(method, share)) if said)]
