"""One decision without training: the Trainer is built as ever, and chooses where it would begin to train."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dataflex.algorithms.base import Progress
from dataflex.core.order import Geometry
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.train.decide import Situation, candidates, decide, in_turn, initial_state, part
from dataflex.train.describe import cost_of_choosing, describe
from dataflex.train.former import Former
from dataflex.train.line import segment_line
from dataflex.train.measured import added
from dataflex.train.mixin import DynamicDataMixin
from dataflex.train.pool import Pool
from dataflex.train.progress import say
from dataflex.train.settings import versions
from dataflex.train.wish import Wish, find_decision, num_rows, read_baseline


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen."""

    rows_Q: np.ndarray  # in training order
    columns_N: Mapping[str, np.ndarray]  # why, one entry per pool row


class Chosen(Exception):  # noqa: N818  no error: it leaves the host's workflow, which would save a model next
    """Carries the choice out of the host's workflow."""

    def __init__(self, choice: Choice) -> None:
        super().__init__("chosen")
        self.choice = choice


def choosing(wish: Wish) -> Callable[[type], type]:
    """Return what makes of a Trainer class one whose ``train`` records one decision and raises ``Chosen``."""

    def serve(trainer_class: type) -> type:
        return type(f"Choosing{trainer_class.__name__}", (ChooseOnceMixin, trainer_class), {"wish": wish})

    return serve


class ChooseOnceMixin(DynamicDataMixin):
    """Makes one decision of the schedule with the model as it is, as if nothing had been trained before."""

    wish: Wish

    def _check_quotas(self, plan: SegmentPlan, pool: Pool, geometry: Geometry) -> None:
        """Only one decision is made, of as many rows as are asked for."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        method, pool, wish = self._dataflex.method, self.curator.pool, self.wish
        plan = self.curator.plan
        segment = find_decision(plan, method, wish)
        baseline_N = read_baseline(wish.baseline, pool) if wish.baseline is not None else None
        progress = plan.progress(segment)
        quota = num_rows(wish, segment.num_steps * self.curator.geometry.global_batch, method, pool)
        say(
            f"{method.name}: decision {progress.updates_made + 1} of {progress.total_updates} in this schedule, with "
            f"the model as it is: {quota} of {len(pool)} samples"
        )
        state = initial_state(method, pool.info, self.curator.domains)
        if baseline_N is not None:
            state |= method.selector.observe(part(state), {"loss": baseline_N}, progress)
        record = self._selection_record(quota, progress)
        self._ledger.begin(record, self._row_columns())  # the pass keeps its batch size there
        # As for an evaluation: the host's precision, nothing that training needs.
        self.accelerator.prepare_model(self.model, evaluation_mode=True)  # type: ignore[attr-defined]
        signals, scoring, state = self._measure(progress, state, quota)
        scorable_N = pool.info.trainable_N
        if "loss" in signals and not method.limits_passes:
            scorable_N = scorable_N & np.isfinite(signals["loss"])
        chose = time.perf_counter()
        at = Situation(
            signals=signals,
            domain_signals={},
            scorable_N=scorable_N,
            times_trained_N=np.zeros(len(pool), dtype=np.int32),
            pool=pool.info,
            domains=self.curator.domains,
            quota=quota,
            seed=self.curator.seed,
        )
        decision = decide(method, progress, state, at)
        rows_Q, columns_N = decision.rows_Q, dict(decision.selection.columns_N)
        if baseline_N is not None:
            columns_N["initial_loss"] = baseline_N
        now = time.perf_counter()
        line = segment_line(
            _one_segment(quota).segment_at(0),
            method,
            replace(decision, selection=replace(decision.selection, columns_N=columns_N)),
            domains=self.curator.domains,
            domain_signals={},
            seed=self.curator.seed,
            warnings=[],
            scoring=scoring,
            seconds={"total": now - began, "select": now - chose},
            share_of_run=1.0,
            versions=versions(),
            trained=Former(self._ledger).trained_digest(0),
        )
        self._keep(line, rows_Q, columns_N)
        raise Chosen(Choice(rows_Q=rows_Q, columns_N=columns_N))

    def _measure(
        self, progress: Progress, state: dict[str, np.ndarray], quota: int
    ) -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, np.ndarray]]:
        """The signals of the decision, what the first pass of them cost, and the state after the method named rows."""
        signals: dict[str, np.ndarray] = {}
        scoring: dict[str, Any] = {}
        method, rows_R = self._dataflex.method, None
        at_hand, limited = in_turn(method.needs_at(progress))
        for name in [*at_hand, *limited]:
            if name in limited[:1]:
                rows_R, state = candidates(method, progress, state, signals, quota=quota, seed=self.curator.seed)
            if name == "times_trained":
                signals[name] = np.zeros(len(self.curator.pool), dtype=np.int32)
                continue
            measured = self.measurer(name, progress, rows_R)
            signals[name], scoring = measured.values, added(scoring, measured.cost)
        return signals, scoring, state

    def _selection_record(self, quota: int, progress: Progress) -> dict[str, Any]:
        """run.yaml: a run of one segment with one sample a step; what the method was told is kept beside it."""
        schedule, plan = vars(_schedule(quota)), _one_segment(quota)
        return {
            **self._run_record(),
            "run_id": uuid.uuid4().hex,
            "schedule": dict(schedule),
            "plan": {"num_steps": plan.num_steps, "steps_per_epoch": plan.steps_per_epoch},
            "geometry": {"world_size": 1, "accumulation": 1, "micro_batch": 1},
            "fingerprint": {**self._fingerprint, "schedule": dict(schedule), "global_batch": 1},
            "selection": {"progress": asdict(progress), "baseline": self.wish.baseline},
        }

    def _keep(self, line: dict[str, Any], rows_Q: np.ndarray, columns_N: Mapping[str, np.ndarray]) -> None:
        recorded_N = dict(columns_N)
        if recorded_N:
            size = len(self.curator.pool)
            recorded_N = {"row": np.arange(size), "times_trained": np.zeros(size, dtype=np.int32), **recorded_N}
        line = self._ledger.append(line, rows_Q, recorded_N)
        seconds = {"choosing": line["seconds"]["total"], "running": line["seconds"]["total"]}
        cost = cost_of_choosing([line], seconds)
        end = {"kind": "end", "step": line["stop"], "best_checkpoint": None, "seconds": seconds, "choosing": cost}
        self._ledger.note(end)
        for warning in line["warnings"]:
            say(warning)
        say(describe(line, of_run=False))


def _schedule(quota: int) -> Schedule:
    return Schedule(warmup_step=0, update_step=quota, update_times=1, train_step=quota)


def _one_segment(quota: int) -> SegmentPlan:
    return SegmentPlan.dynamic(_schedule(quota), num_epochs=1, pool_steps=quota)
