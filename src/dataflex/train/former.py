"""What a former process of the same run recorded: which checkpoint it allows, and what of it holds after a resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex.algorithms.select.gradient import recorded_similarities
from dataflex.core.errors import ConfigError, LedgerError
from dataflex.core.plan import SegmentPlan
from dataflex.ledger.fingerprint import differences
from dataflex.ledger.ledger import Ledger
from dataflex.ledger.trained import trained_digest
from dataflex.train.measured import Measured

SAMPLED = 32  # rows whose losses are measured again after a resume


class Former:
    """The record up to a resume (rank 0).

    A line that starts at the step resumed from was decided from the very weights that the checkpoint holds: it stays in
    force. Lines that start later were decided from weights that are trained again: they are rolled back, and when their
    turn comes the losses show whether the same weights came out.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._in_force: Mapping[str, Any] | None = None

    # which checkpoint may be resumed

    def why_not(self, meta: Mapping[str, Any]) -> str | None:
        """Why a checkpoint of these values cannot be resumed with the present ledger; None when it can."""
        if meta["run_id"] != self._ledger.run_id():
            return "belongs to an earlier run in this directory"
        recorded = self._recorded_steps()
        rolled_back = any(line["kind"] == "rollback" for line in self._ledger.lines())
        if recorded < meta["step"] and not rolled_back:
            raise LedgerError(
                f"{self._ledger.path} records the run up to step {recorded}, the checkpoint was saved at step "
                f"{meta['step']}; restore the dataflex folder of the run, or start anew with overwrite_output_dir: true"
            )
        if recorded < meta["step"] or meta["trained"] != self.trained_digest(meta["step"]):
            return "was trained on rows that have been rolled back since"
        return None

    def require_same_base(self, run: Mapping[str, Any]) -> None:
        """Checkpoints of an adapter hold the adapter only: its base model must be the one it was trained on.

        Raises:
            ConfigError: the frozen weights are not those of the record.
        """
        then, now = self._ledger.run().get("base_weights"), run.get("base_weights")
        if then is not None and now is not None and then != now:
            raise ConfigError(
                f"the frozen weights of the model are not those of the run recorded in {self._ledger.root} (hash "
                f"{then[:12]} then, {now[:12]} now); restore the model, or start anew with overwrite_output_dir: true"
            )

    def _recorded_steps(self) -> int:
        """Number of steps from the first that the ledger covers without a gap."""
        recorded = 0
        for _, line in sorted(self._ledger.segments().items()):
            if line["start"] != recorded:
                break
            recorded = line["stop"]
        return recorded

    def trained_digest(self, step: int) -> str:
        """Hash of the rows of all segments that start before ``step``."""
        return trained_digest(self._ledger.segments(), step)

    # what holds after a resume

    def roll_back(self, step: int, plan: SegmentPlan) -> None:
        """Cancel the lines of weights that no longer exist; keep the one decided from exactly these weights."""
        later = [k for k, line in self._ledger.segments().items() if line["start"] > step]
        if later:
            self._ledger.rollback(min(later), f"resumed from step {step}")
        if step < plan.num_steps:
            segment = plan.segment_at(step)
            if segment.start == step:
                self._in_force = self._ledger.line_of(segment.index)

    def in_force(self, segment: int) -> Mapping[str, Any] | None:
        """The line of this segment, if it was decided from the present weights."""
        return self._in_force if self._in_force and self._in_force["segment"] == segment else None

    def rolled_back(self, segment: int, step: int) -> Mapping[str, Any] | None:
        """The last cancelled line of this segment that was decided after training on the same rows, if any.

        One from a branch that was trained on other rows says nothing of the present weights.
        """
        cancelled = [line for line in self._ledger.lines() if line["kind"] == "segment" and line["segment"] == segment]
        same = [line for line in cancelled if line["trained"] == self.trained_digest(step)] if cancelled else []
        return same[-1] if same else None

    def done_with(self, segment: int) -> None:
        """Forget the line of a segment that is decided."""
        if self.in_force(segment):
            self._in_force = None

    def signals(self, line: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
        """The recorded columns of a line; similarities of all groups as one signal besides."""
        columns_N = self._ledger.signals_of(line) if line is not None else {}
        similarities_NxG = recorded_similarities(columns_N)
        return columns_N if similarities_NxG is None else {**columns_N, "similarities": similarities_NxG}

    def rows_to_measure_again(self, line: Mapping[str, Any]) -> np.ndarray:
        """Some rows that this line has a loss of, spread over the pool."""
        columns_N = self.signals(line)
        measured_N = np.asarray(columns_N.get("scored", True), dtype=bool)  # under a budget others are estimated
        scored = np.flatnonzero(np.isfinite(columns_N["loss"]) & measured_N)
        return scored[np.unique(np.linspace(0, len(scored) - 1, min(SAMPLED, len(scored))).astype(np.int64))]

    def verify_losses(
        self, line: Mapping[str, Any], rows_R: np.ndarray, again: Measured, versions: Mapping[str, str]
    ) -> None:
        """Losses measured again from the same weights must be the recorded ones.

        Raises:
            LedgerError: naming a row that differs and the versions that changed.
        """
        apart = difference(self.signals(line)["loss"][rows_R], again.values, again.tolerance)
        if apart is None:
            return
        changed = differences(dict(line["versions"]), dict(versions))
        raise LedgerError(
            f"the losses that segment {line['segment']} was decided on are not those of the checkpoint's weights now: "
            f"row {rows_R[apart.position]} has {apart.now:.6g}, recorded is {apart.then:.6g}; "
            + (f"changed since: {changed}" if changed else "the base model, the data or the checkpoint changed")
            + "; restore it, or start anew with overwrite_output_dir: true"
        )

    def verify_rows(self, line: Mapping[str, Any], rows_Q: np.ndarray) -> None:
        """The recorded choice must follow from the recorded signals again.

        Raises:
            LedgerError: it does not.
        """
        if not np.array_equal(self._ledger.rows_of(line), rows_Q):
            raise LedgerError(
                f"segment {line['segment']} was recorded with other rows than its recorded signals give now; "
                "a package or the method changed since: install the versions of that ledger line or start anew"
            )


@dataclass(frozen=True)
class Apart:
    """The place where two tables of losses differ most."""

    position: int
    then: float
    now: float


def difference(then_R: np.ndarray, now_R: np.ndarray, tolerance: float) -> Apart | None:
    """Where ``now`` is farther than the relative ``tolerance`` from ``then``; None when it is nowhere."""
    then, now = then_R.astype(np.float64), now_R.astype(np.float64)
    same = np.isclose(now, then, rtol=tolerance, atol=tolerance * 1e-2, equal_nan=True)
    if bool(same.all()):
        return None
    apart = np.where(same, -1.0, np.nan_to_num(np.abs(now - then), nan=np.inf))
    position = int(apart.argmax())
    return Apart(position, float(then[position]), float(now[position]))
