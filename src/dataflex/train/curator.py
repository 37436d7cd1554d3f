"""Where plan, signals, algorithm and ledger meet: yields the segments that are left of an epoch."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataflex.algorithms.base import Selection
from dataflex.core.errors import LedgerError
from dataflex.core.order import Deal, Geometry
from dataflex.core.plan import SegmentPlan
from dataflex.core.seeds import loader_seed
from dataflex.core.segment import Progress, Segment
from dataflex.ledger.groups import Groups
from dataflex.ledger.ledger import Ledger
from dataflex.train.budget_record import BUDGET
from dataflex.train.budgeted_losses import BudgetedLosses
from dataflex.train.checkpoint import MARKS, restore_state, write_state
from dataflex.train.decide import MIX, Decision, Situation, candidates, decide, initial_state, part, prefixed
from dataflex.train.describe import cost_of_choosing, describe, describe_cost
from dataflex.train.domains import Domains, write_learned
from dataflex.train.evidence import Evidence, EvidenceTaker
from dataflex.train.former import Former
from dataflex.train.line import segment_line
from dataflex.train.measured import Measured
from dataflex.train.method import Method
from dataflex.train.metrics import metrics
from dataflex.train.overlap import expected_overlap
from dataflex.train.pool import Pool
from dataflex.train.ranks import Ranks
from dataflex.train.shown import Shown, under
from dataflex.train.training import Training

if TYPE_CHECKING:
    from dataflex.train.budget import Budget  # its estimates need scikit-learn

FACTOR = "factor"  # the column in which a selector says how much a row of its selection counts


class Curator:
    """Decides each segment when its first batch is asked for. All public methods are collective.

    Rank 0 holds the state, decides and writes; the others receive the rows.
    """

    def __init__(
        self,
        *,
        method: Method,
        plan: SegmentPlan,
        geometry: Geometry,
        pool: Pool,
        seed: int,
        ledger: Ledger,
        ranks: Ranks,
        measure: Callable[[str, Progress, np.ndarray | None], Measured],
        spot_check: Callable[[np.ndarray], Measured],
        host_order: Callable[[int], np.ndarray],
        say: Callable[[str], None],
        log: Callable[[dict[str, float]], None],
        versions: Mapping[str, str],
        sources: Groups | None = None,
        domains: Domains | None = None,
        measure_domains: Callable[[str], np.ndarray] | None = None,
        training: Training | None = None,
        budget: Budget | None = None,
        cached_losses: Callable[[Progress], np.ndarray | None] = lambda progress: None,
    ) -> None:
        """
        Args:
            measure: measures one signal for the whole pool, given its name (collective).
            spot_check: measures the losses of some rows under the present weights (collective).
            host_order: rows of an epoch in the host's own order, for methods that choose nothing.
            say: tells the person who watches one sentence.
            log: hands numbers to the host's loggers.
            sources: where the rows come from, if that is known.
            domains: what the mixer mixes; needed beside one.
            measure_domains: reads a signal by domain that training does not show, given its name (rank 0).
            training: the losses of the training's own forwards, where a component needs them.
            budget: what scoring may cost; None: everything is scored.
            cached_losses: losses under the weights of step 0 where an earlier run measured them (collective).
        """
        self.method, self.plan, self.geometry, self.pool = method, plan, geometry, pool
        self.seed, self._ledger, self.ranks, self._versions = seed, ledger, ranks, dict(versions)
        self._measure = measure
        self._host_order, self._say, self._log = host_order, say, log
        self._sources, self.domains, self.training = sources, domains, training
        self._budget = budget
        self._shown = Shown(
            method=method,
            num_rows=len(pool),
            ranks=ranks,
            ledger=ledger,
            domains=domains,
            measure_domains=measure_domains,
            training=training,
        )
        self._evidence = EvidenceTaker(
            ranks=ranks,
            measure=lambda *asked: self._measure(*asked),
            spot_check=spot_check,
            shown=self._shown,
            budgeted=budget
            and BudgetedLosses(
                budget,
                ranks=ranks,
                ledger=ledger,
                measure=lambda progress, rows: self._measure("loss", progress, rows),
                cached_losses=cached_losses,
            ),
            versions=versions,
        )
        self._reset()

    def _reset(self) -> None:
        """As before the first step."""
        # What a checkpoint keeps, besides the step:
        self._state = initial_state(self.method, self.pool.info, self.domains)
        self._shown.reset()
        if self._budget is not None:
            self._budget.reset()
        self._times_trained_N = np.zeros(len(self.pool), dtype=np.int32)
        self._scorable_N = self.pool.info.trainable_N.copy()
        self._seconds = {"choosing": 0.0, "running": 0.0}
        # Rows of the segment in progress, and what a former process recorded of those to decide next:
        self._current: tuple[Segment, np.ndarray] | None = None
        self._factors_N: np.ndarray | None = None  # how much its rows count, where the selector says so
        self._former = Former(self._ledger)
        self._started = time.perf_counter()
        self._run_id: str | None = None
        self.num_decisions = 0

    # the way of the rows

    def rest_of_epoch(self, step: int) -> Iterator[Deal]:
        """Yield what is left of the epoch that optimizer step ``step`` belongs to, one decision per turn."""
        stop = self.plan.epoch_stop(step) if step < self.plan.num_steps else step
        while step < stop:
            segment = self.plan.segment_at(step)
            rows_Q = self._rows(segment, step)
            until = min(segment.stop, stop)
            batch = self.geometry.global_batch
            yield Deal(
                rows_Q[(step - segment.start) * batch : (until - segment.start) * batch],
                loader_seed(self.seed, segment.index),
            )
            step = until

    def _rows(self, segment: Segment, step: int) -> np.ndarray:
        """Rows of the whole segment: decided now, in memory already, or recorded before a resume."""
        if self._current is None or self._current[0].index != segment.index:
            if step > segment.start:
                rows_Q, factors_Q = self.ranks.from_main(lambda: self._recorded_rows(segment))
                self._keep_factors(rows_Q, factors_Q)
                self._current = (segment, rows_Q)
            else:
                self._current = (segment, self._decide(segment))
        return self._current[1]

    def _recorded_rows(self, segment: Segment) -> tuple[np.ndarray, np.ndarray | None]:
        line = self._ledger.line_of(segment.index)
        if line is None:
            raise LedgerError(
                f"{self._ledger.path} has no line of segment {segment.index}, which this run was in the middle of; "
                "restore the dataflex folder of the run, or start anew with overwrite_output_dir: true"
            )
        rows_Q = self._ledger.rows_of(line)
        factors_N = self._ledger.signals_of(line).get(FACTOR) if self._gives_factors else None
        return rows_Q, None if factors_N is None else factors_N[rows_Q]

    @property
    def _gives_factors(self) -> bool:
        return bool(getattr(self.method.selector, "gives_factors", False))

    def _keep_factors(self, rows_Q: np.ndarray, factors_Q: np.ndarray | None) -> None:
        self._factors_N = None
        if factors_Q is not None:
            self._factors_N = np.ones(len(self.pool))
            self._factors_N[rows_Q] = factors_Q

    def factors(self, rows_B: np.ndarray) -> np.ndarray | None:
        """How much rows of the segment in progress count by the selection that they are of; None: 1."""
        return None if self._factors_N is None else self._factors_N[rows_B]

    # one decision

    def _decide(self, segment: Segment) -> np.ndarray:
        began = time.perf_counter()
        progress, method = self.plan.progress(segment), self.method
        self._shown.take()
        finished = self._shown.finish_segment(segment)
        evidence = self._evidence.take(
            frozenset() if method.follows_host else method.needs_at(progress),
            segment,
            progress,
            former=self._former,
            times_trained_N=self._times_trained_N,
            candidates=lambda signals: self._candidates(segment, progress, signals),
        )
        # In the host's own order nothing is chosen: every rank knows the rows, rank 0 records them.
        epoch_rows = self._host_order(segment.cycle) if method.follows_host else None
        line, rows_Q, numbers, mix_state, factors_Q = self.ranks.from_main(
            lambda: self._choose(segment, progress, evidence, began, epoch_rows, finished)
        )
        self._state |= mix_state
        self._keep_factors(rows_Q, factors_Q)
        self.ranks.require_equal(rows_Q, f"the decision of segment {segment.index}")
        self._count(rows_Q)
        self.num_decisions += 1
        if self.ranks.is_main:
            for warning in line["warnings"]:
                self._say(warning)
            self._say(describe(line))
        self._log(numbers)
        return rows_Q

    def _candidates(self, segment: Segment, progress: Progress, signals: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Rows that the method wants measured, None: all (rank 0)."""
        quota = segment.num_steps * self.geometry.global_batch
        rows_R, self._state = candidates(self.method, progress, self._state, signals, quota=quota, seed=self.seed)
        return rows_R

    def _choose(
        self,
        segment: Segment,
        progress: Progress,
        evidence: Evidence,
        began: float,
        epoch_rows: np.ndarray | None,
        finished: Mapping[str, Any],
    ) -> tuple[dict[str, Any], np.ndarray, dict[str, float], dict[str, np.ndarray], np.ndarray | None]:
        """Decide and record one segment (rank 0).

        Returns:
            Its line, its rows, its numbers, the mixer's state after it, how much each row counts (None: 1).
        """
        quota = segment.num_steps * self.geometry.global_batch
        if "loss" in evidence.signals and not self.method.limits_passes:
            self._scorable_N = self.pool.info.trainable_N & np.isfinite(evidence.signals["loss"])
        chose = time.perf_counter()
        if epoch_rows is not None:
            first = (segment.start - segment.cycle * self.plan.steps_per_epoch) * self.geometry.global_batch
            rows_Q = epoch_rows[first : first + quota]
            selection = Selection(rows_Q=rows_Q, decision="host order", ordered=True)
            decision = Decision(selection=selection, rows_Q=rows_Q, state=self._state)
        else:
            at = self._situation(progress, evidence, quota, finished)
            decision = decide(self.method, progress, self._state, at)
            errors = evidence.budgeted.get("errors", ())
            if len(errors):
                expected = expected_overlap(self.method, progress, self._state, at, decision, errors)
                evidence.scoring["budget"] |= expected
        self._state = decision.state
        rows_Q, selection = decision.rows_Q, decision.selection
        self.method.check_rows(rows_Q, quota, len(self.pool), segment.index, of_host=epoch_rows is not None)
        columns_N = dict(selection.columns_N)
        if columns_N:
            columns_N = {"row": np.arange(len(self.pool)), "times_trained": self._times_trained_N.copy(), **columns_N}
        now = time.perf_counter()
        self._seconds["choosing"] += now - began
        line = segment_line(
            segment,
            self.method,
            decision,
            domains=self.domains,
            domain_signals=self._shown.domain_signals(progress, finished),
            seed=self.seed,
            warnings=evidence.warnings,
            scoring=evidence.scoring,
            seconds={"total": now - began, "select": now - chose},
            share_of_run=self._seconds["choosing"] / max(self._running(), 1e-9),
            versions=self._versions,
            trained=self._former.trained_digest(segment.start),
        )
        recorded = self._former.in_force(segment.index)
        if recorded is not None:
            self._former.verify_rows(recorded, rows_Q)
        self._former.done_with(segment.index)
        if recorded is not None:
            line = {**recorded, "as_recorded": True}
        else:
            line = self._ledger.append(line, rows_Q, columns_N)
        numbers = metrics(line, rows_Q, columns_N, self._sources, finished)
        factors_Q = columns_N[FACTOR][rows_Q] if FACTOR in columns_N else None
        return line, rows_Q, numbers, prefixed(MIX, part(self._state, MIX)), factors_Q

    def _situation(self, progress: Progress, evidence: Evidence, quota: int, finished: Mapping[str, Any]) -> Situation:
        return Situation(
            signals=evidence.signals,
            domain_signals=self._shown.domain_signals(progress, finished),
            scorable_N=self._scorable_N,
            times_trained_N=self._times_trained_N,
            pool=self.pool.info,
            domains=self.domains,
            quota=quota,
            seed=self.seed,
            why_uniform=evidence.budgeted.get("uniform"),
        )

    # mixers that learn by step

    def after_step(self) -> None:
        """Take in what the optimizer step showed that is done, where the mixer learns by step (collective)."""
        mixer = self.method.mixer.method if self.method.mixer is not None else None
        if mixer is None or not mixer.step_needs or self.training is None:
            return
        progress = self.plan.progress(self._current[0]) if self._current else None
        assert progress is not None
        signals = self.training.take_step()
        # On every rank alike, so that the next step's coefficients need no message.
        self._state |= prefixed(MIX, mixer.observe(part(self._state, MIX), signals, progress))

    def domain_weights(self) -> np.ndarray | None:
        """Coefficients of the loss of each domain at the present step, shape (D,); None: all 1."""
        mixer = self.method.mixer
        return mixer.method.domain_weights(part(self._state, MIX)) if mixer is not None else None

    def rows_of_step(self, step: int) -> np.ndarray:
        """The rows of the global batch of optimizer step ``step``, which must be of the segment in progress."""
        assert self._current is not None
        segment, rows_Q = self._current
        batch = self.geometry.global_batch
        return rows_Q[(step - segment.start) * batch : (step - segment.start + 1) * batch]

    def _running(self) -> float:
        """Seconds of the run so far, over all its processes."""
        return self._seconds["running"] + time.perf_counter() - self._started

    def _count(self, rows_Q: np.ndarray) -> None:
        # numpy 1.26 counts no uint64, which a method of another package may return.
        counts_N = np.bincount(rows_Q.astype(np.int64), minlength=len(self.pool)).astype(np.int32)
        self._times_trained_N = self._times_trained_N + counts_N

    # beginning, saving, restoring

    def begin(
        self, run: Mapping[str, Any], rows: Mapping[str, Any], *, overwrite: bool, checkpoint: str | None
    ) -> None:
        """Claim the run directory and restore a checkpoint, if any, before the first step."""
        self._reset()
        restored = self.ranks.from_main(lambda: self._begin(run, rows, overwrite=overwrite, checkpoint=checkpoint))
        if restored:  # what every rank needs of it
            self._state |= {name: values for name, values in restored.items() if name.startswith(MIX)}
            self._shown.load_on_all(restored)

    def _begin(
        self, run: Mapping[str, Any], rows: Mapping[str, Any], *, overwrite: bool, checkpoint: str | None
    ) -> dict[str, np.ndarray]:
        without_lock = self._ledger.lock()
        if without_lock is not None:
            self._say(without_lock)
        if checkpoint is not None:
            step, training = self._restore(Path(checkpoint), run["fingerprint"])
            self._former.require_same_base(run)
            self._say(f"going on after step {step}, from {checkpoint}")
            self._go_on_from(step)
            return {**prefixed(MIX, part(self._state, MIX)), **training}
        found = self._ledger.claim(run["fingerprint"], overwrite=overwrite)
        if found == "replace":
            self._say(f"the record of an earlier run was moved to {self._ledger.move_aside()}")
        # One record, one id: checkpoints of an earlier run in the same directory must not be taken for this one's.
        self._run_id = uuid.uuid4().hex
        if found == "continue":
            self._former.require_same_base(run)
            self._run_id = self._ledger.run_id()
            # What the run has found out, such as its batch size, stays; what cannot be told now is what it was.
            run = {**self._ledger.run(), **{key: value for key, value in run.items() if value is not None}}
        self._ledger.begin({**run, "run_id": self._run_id}, rows)
        if self._ledger.segments():
            self._say("no checkpoint had been saved: the run starts again from its first step")
            self._go_on_from(0)
        return {}

    def _go_on_from(self, step: int) -> None:
        self._former.roll_back(step, self.plan)
        self._ledger.note(
            {"kind": "resume", "step": step, "geometry": dict(vars(self.geometry)), "versions": self._versions}
        )

    def why_not(self, meta: Mapping[str, Any]) -> str | None:
        """Why a checkpoint of these values cannot be resumed with the present ledger; None when it can (rank 0)."""
        return self._former.why_not(meta)

    def end(self, step: int, best_checkpoint: str | None) -> None:
        """Record where training stopped, and what choosing cost.

        Early stopping may leave the last segment's rest untrained.
        """
        self._shown.take()
        self._shown.finish_segment(None)
        self.ranks.from_main(lambda: self._end(step, best_checkpoint))

    def _end(self, step: int, best_checkpoint: str | None) -> None:
        seconds = {**self._seconds, "running": self._running()}
        cost = cost_of_choosing(self._ledger.lines(), seconds)
        self._ledger.note(
            {"kind": "end", "step": step, "best_checkpoint": best_checkpoint, "seconds": seconds, "choosing": cost}
        )
        self._say(describe_cost(cost, seconds["running"]))
        self._write_learned()

    def _write_learned(self) -> None:
        """Write the proportions that the mixer found, for the run that trains on them."""
        mixer = self.method.mixer.method if self.method.mixer is not None else None
        learned_D = mixer.learned(part(self._state, MIX)) if mixer is not None and hasattr(mixer, "learned") else None
        if learned_D is not None and self.domains is not None:
            self._say(write_learned(self._ledger.root, self.domains, learned_D))

    def clear(self, checkpoint: Path) -> None:
        """Take the marks of completeness off a folder that is about to be written again."""
        self.ranks.from_main(lambda: [(checkpoint / name).unlink(missing_ok=True) for name in MARKS] and None)

    def save(self, checkpoint: Path, step: int, fingerprint: Mapping[str, Any]) -> None:
        """Write the state that a resume needs into a checkpoint folder (atomic)."""
        shown = self._shown.arrays()
        self.ranks.from_main(lambda: self._save(checkpoint, step, fingerprint, shown))

    def _save(
        self, checkpoint: Path, step: int, fingerprint: Mapping[str, Any], shown: Mapping[str, np.ndarray]
    ) -> None:
        arrays = {f"state.{name}": values for name, values in self._state.items()}
        arrays |= {"times_trained_N": self._times_trained_N, "scorable_N": self._scorable_N}
        arrays |= shown
        if self._budget is not None:
            arrays |= prefixed(BUDGET, self._budget.arrays())
        meta = {
            "step": step,
            "run_id": self._run_id,
            "trained": self._former.trained_digest(step),
            "fingerprint": fingerprint,
            "world_size": self.geometry.world_size,
            "seconds": {**self._seconds, "running": self._running()},
        }
        write_state(checkpoint, arrays, meta)

    def _restore(self, checkpoint: Path, fingerprint: Mapping[str, Any]) -> tuple[int, dict[str, np.ndarray]]:
        """Take the state of a checkpoint: the step it was saved at, and what every rank must have of it (rank 0)."""
        arrays, meta = restore_state(checkpoint, fingerprint, self.why_not)
        self._run_id = meta["run_id"]
        self._state = under("state.", arrays)
        self._times_trained_N, self._scorable_N = arrays["times_trained_N"], arrays["scorable_N"]
        self._seconds = dict(meta["seconds"])
        if self._budget is not None:
            self._budget.load(under(BUDGET, arrays))
        return int(meta["step"]), self._shown.load(arrays)
