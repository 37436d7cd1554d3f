"""Small ledgers without a model: losses are made up, the methods that choose by them are the real ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.algorithms.base import PoolInfo
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.loss import Loss
from dataflex.algorithms.select.random import Random
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.core.seeds import segment_rng
from dataflex.ledger.ledger import Ledger

METHODS: dict[str, Any] = {"delta_loss": DeltaLoss(window_size=0.25), "loss": Loss(), "random": Random()}
TASKS = ("arithmetic", "spelling", "logic", "sorting")
BATCH, UPDATE_STEP = 4, 5


class Run:
    """A run of a method over a small pool, one segment at a time."""

    def __init__(
        self,
        output_dir: Path,
        *,
        method: str = "delta_loss",
        num_rows: int = 120,
        updates: int = 6,
        texts: Sequence[str] = (),
        columns: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        domains: Sequence[str] = (),
    ) -> None:
        self.output_dir, self.ledger = output_dir, Ledger(output_dir)
        self._name, self._method = method, METHODS[method]
        self._domains = list(domains)  # with any, there is a mixer, a weigher and an order
        self._rng = np.random.default_rng(1)
        self._initial_N = self._rng.uniform(0.5, 4.0, num_rows).astype(np.float32)
        self._times_N = np.zeros(num_rows, dtype=np.int32)
        schedule = Schedule(warmup_step=UPDATE_STEP, update_step=UPDATE_STEP, update_times=updates)
        self.plan = SegmentPlan.dynamic(schedule, num_epochs=1, pool_steps=num_rows // BATCH, max_steps=None)
        ones_N = np.full(num_rows, 9)
        self._state: Any = self._method.init(PoolInfo(num_tokens_N=ones_N, num_label_tokens_N=ones_N))
        self.segments = self.plan.segments()
        run = {
            "run_id": f"id of {output_dir.name}",
            "fingerprint": {"num_rows": num_rows},
            "config": config or {"model_name_or_path": "made/up"},
            "method": method,
            "params": self._method.__dict__,
            "plan": {"num_steps": self.plan.num_steps},
            "geometry": {"world_size": 1, "accumulation": 1, "micro_batch": BATCH},
            "seed": 7,
        }
        if domains:
            parts = {name: {"method": f"the {name}", "params": {"p": 1.5}} for name in ("mix", "weigh", "order")}
            run["parts"] = {**parts, "weigh": [parts["weigh"]], "order": [parts["order"]]}
            run["domains"] = {"column": "dataset", "names": list(domains)}
        excerpts = [*texts, *(f"question {row} → answer {row}" for row in range(len(texts), num_rows))]
        tasks = {"task": [TASKS[row % len(TASKS)] for row in range(num_rows)]} if columns is None else columns
        rows = {"row": np.arange(num_rows), "num_tokens": ones_N, "dataset": ["toy"] * num_rows, "excerpt": excerpts}
        self.ledger.begin(run, {**rows, **tasks})

    def decide(self, times: int = 1) -> Run:
        """Record the next segments."""
        for _ in range(times):
            segment = next(self.segments)
            progress, quota = self.plan.progress(segment), segment.num_steps * BATCH
            rng = segment_rng(7, segment.index, "select")
            if segment.is_warmup:
                rows_Q = rng.choice(len(self._initial_N), quota, replace=False)
                said: dict[str, Any] = {"decision": "warm-up", "window": None, "notes": {}, "warnings": []}
                self._append(segment, rows_Q, {}, said)
                continue
            # Even rows learn, odd ones get worse.
            change_N = np.where(np.arange(len(self._initial_N)) % 2 == 0, -0.06, 0.03) * segment.index
            losses_N = (self._initial_N + change_N + self._rng.normal(0, 0.01, len(change_N))).astype(np.float32)
            signals = {"loss": losses_N, "times_trained": self._times_N}
            selection, self._state = self._method.select(self._state, signals, quota, progress, rng)
            said = {
                "decision": selection.decision,
                "window": dict(selection.window) if selection.window else None,
                "notes": dict(selection.notes),
                "warnings": list(selection.warnings),
            }
            self._append(segment, selection.rows_Q, dict(selection.columns_N), said)
        return self

    def _append(self, segment: Any, rows_Q: np.ndarray, columns_N: dict[str, np.ndarray], said: dict[str, Any]) -> None:
        self._times_N = self._times_N + np.bincount(rows_Q, minlength=len(self._times_N)).astype(np.int32)
        scoring = {"source": "measured", "num_rows": 120, "num_tokens": 1080, "seconds": 2.0} if columns_N else None
        line = {
            "segment": segment.index,
            "start": segment.start,
            "stop": segment.stop,
            "cycle": segment.cycle,
            "update": segment.update,
            "method": self._name,
            "params": {},
            "seed": 7,
            "num_rows": len(rows_Q),
            "num_distinct_rows": len(np.unique(rows_Q)),
            "quantiles": {},
            "scoring": scoring,
            "seconds": {"total": 2.5, "select": 0.1},
            "share_of_run": 0.4,
            "versions": {},
            **said,
        }
        if self._domains:
            shares = [(d + 1) / sum(range(1, len(self._domains) + 1)) for d in range(len(self._domains))]
            counts = [round(share * len(rows_Q)) for share in shares]
            mix = {"decision": "learned", "proportions": shares, "counts": counts}
            named = {key: dict(zip(self._domains, v, strict=True)) for key, v in mix.items() if key != "decision"}
            line |= {"mix": {"method": "the mix", "decision": "learned", **named}, "weigh": ["the weigh"]}
            self._told(segment)
        self.ledger.append(line, rows_Q, columns_N)

    def _told(self, segment: Any) -> None:
        """What training showed of the segment before."""
        if segment.index == 0:
            return
        before = self.ledger.segments()[segment.index - 1]
        losses = {name: 3.0 - segment.index / 10 + d / 5 for d, name in enumerate(self._domains)}
        weights = {"mean": 1.0, "min": 0.5, "max": 1.5, "effective_share": 0.9, "zero_share": 0.0}
        line = {"kind": "trained", "segment": segment.index - 1, "start": before["start"], "stop": before["stop"]}
        self.ledger.note({**line, "domain_losses": losses, "weights": weights})

    def end(self, step: int | None = None) -> Run:
        """Record where the run ended."""
        self.ledger.note({"kind": "end", "step": self.plan.num_steps if step is None else step})
        return self

    def log(self, losses: dict[int, float], *, name: str = "loss", folder: str = "") -> Run:
        """Write a trainer_state.json with these losses."""
        directory = self.output_dir / folder
        directory.mkdir(exist_ok=True)
        path = directory / "trainer_state.json"
        history = json.loads(path.read_text())["log_history"] if path.exists() else []
        history += [{"step": step, name: loss} for step, loss in losses.items()]
        path.write_text(json.dumps({"global_step": max(losses), "log_history": history}))
        return self
