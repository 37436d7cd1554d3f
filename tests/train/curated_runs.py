"""A curator without a trainer: one rank, measured losses that are a formula, and a loop that trains by counting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataflex.algorithms.base import PoolInfo
from dataflex.core.order import Geometry
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.ledger.ledger import Ledger
from dataflex.signals.flops import Flops
from dataflex.train.curator import Curator
from dataflex.train.domains import domains_of
from dataflex.train.measured import Measured, only
from dataflex.train.method import Method
from dataflex.train.pool import Pool
from dataflex.train.seen import Entries

NUM_ROWS = 40
WITHOUT_LABEL = (4, 17)
FINGERPRINT = {"learning_rate": 1e-4, "data": "d"}
GEOMETRY = Geometry(world_size=1, accumulation=2, micro_batch=2)
SCHEDULE = Schedule(warmup_step=3, update_step=2, update_times=2)


class OneRank:
    rank, world_size, is_main, device = 0, 1, True, torch.device("cpu")

    def from_main(self, work: Callable[[], Any]) -> Any:
        return work()

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def require_equal(self, value: Any, what: str) -> None:
        pass


def make_pool(num_rows: int = NUM_ROWS) -> Pool:
    labels_N = np.arange(num_rows) % 7 + 1
    labels_N[[row for row in WITHOUT_LABEL if row < num_rows]] = 0
    return Pool(info=PoolInfo(num_tokens_N=labels_N + 5, num_label_tokens_N=labels_N), digest="d")


def features_of(pool: Pool) -> np.ndarray:
    """What is known of each row: three numbers of its own and its length."""
    rng = np.random.default_rng(5)
    return np.hstack([rng.normal(size=(len(pool), 3)), pool.info.num_tokens_N[:, None]]).astype(np.float32)


def falling(pool: Pool, noise: float = 0.1, seed: int = 0) -> Callable[[int], np.ndarray]:
    """Losses that fall by what the features tell, and by some that they do not."""
    features_NxF, rng = features_of(pool), np.random.default_rng(seed)
    start_N = 3 + 0.5 * features_NxF[:, 0] + 0.3 * rng.normal(size=len(pool))
    pace_N = features_NxF[:, 1] + 0.5 * features_NxF[:, 0] + noise * rng.normal(size=len(pool)) + 0.5

    def at(step: int) -> np.ndarray:
        losses_N = start_N - 0.8 * (1 - np.exp(-step / 40)) * pace_N
        return np.where(pool.info.trainable_N, losses_N, np.nan).astype(np.float32)

    return at


def losses_at(step: int, num_rows: int = NUM_ROWS) -> np.ndarray:
    """Every row falls at its own pace; rows without a label have no loss."""
    rng = np.random.default_rng(0)
    losses_N = 3 + rng.random(num_rows) - step * rng.random(num_rows) / 20
    losses_N[[row for row in WITHOUT_LABEL if row < num_rows]] = np.nan
    return losses_N.astype(np.float32)


class Trained:
    """The training's own forwards: a row's loss is that of the step, two label tokens each."""

    def __init__(self, losses: Callable[[int], np.ndarray]) -> None:
        self._losses = losses
        self._rows: list[np.ndarray] = []
        self._steps: list[int] = []
        self.state = np.zeros(1)  # of a weigher: how many rows it has seen

    def see(self, rows_B: np.ndarray, step: int) -> None:
        self._rows.append(np.sort(rows_B))
        self._steps.append(step)
        self.state = self.state + len(rows_B)

    def drain(self) -> Entries:
        rows = np.concatenate([*self._rows, np.zeros(0, dtype=np.int64)]).astype(np.int64)
        steps = np.repeat(self._steps, [len(r) for r in self._rows]).astype(np.int64)
        sums = np.array([2 * float(self._losses(s)[r]) for r, s in zip(rows, steps, strict=True)])
        self._rows, self._steps = [], []
        return Entries(rows=rows, loss_sums=sums, tokens=np.full(len(rows), 2), steps=steps)

    def weight_statistics(self) -> dict[str, Any]:
        return {}

    def state_arrays(self) -> dict[str, np.ndarray]:
        return {"seen": self.state}

    def load_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        self.state = arrays["seen"]


class Run:
    """One process of a run in ``output_dir``; ``said``, ``logged`` and ``measured`` are what came out of it."""

    def __init__(
        self,
        output_dir: Path,
        selector: Any,
        *,
        losses: Callable[[int], np.ndarray] = losses_at,
        schedule: Schedule = SCHEDULE,
        num_epochs: float = 2,
        pool: Pool | None = None,
        seed: int = 7,
        versions: dict[str, str] | None = None,
        domain_N: np.ndarray | None = None,
        cached_N: np.ndarray | None = None,
    ) -> None:
        self.said: list[str] = []
        self.logged: list[dict[str, float]] = []
        self.measured: list[int] = []
        self.asked: list[np.ndarray] = []  # rows of each pass
        self.checked_at = 0  # the step whose losses a spot check finds
        self.output_dir = output_dir
        self.pool = pool or make_pool()
        method = selector
        if not isinstance(method, Method):
            method = Method(name=type(selector).__name__, selector=selector)
        names = [f"d{domain}" for domain in domain_N] if domain_N is not None else None
        domains = domains_of("domain", names, self.pool.info) if names is not None else None
        budgeted = method.score_budget is not None
        self.training = Trained(losses) if method.watches_training or budgeted else None
        make = SegmentPlan.host if method.follows_host else SegmentPlan.dynamic
        self.plan = make(schedule, num_epochs=num_epochs, pool_steps=-(-len(self.pool) // GEOMETRY.global_batch))
        self.ledger = Ledger(output_dir)

        def measure(name: str, progress: Any, rows: Any = None) -> Measured:
            assert name == "loss"
            self.measured.append(progress.step)
            self.asked.append(np.flatnonzero(self.pool.info.trainable_N) if rows is None else rows)
            values_N = losses(progress.step)
            if rows is not None:
                values_N = only(rows, values_N)
            cost = {
                "source": "measured",
                "num_rows": len(self.pool) if rows is None else len(rows),
                "num_tokens": 1,
                "seconds": 0.0,
                "tokens_per_s": 0.0,
            }
            return Measured(values=values_N, cost=cost)

        self.budget = self._budget(method, seed) if budgeted else None

        self.curator = Curator(
            method=method,
            plan=self.plan,
            geometry=GEOMETRY,
            pool=self.pool,
            seed=seed,
            ledger=self.ledger,
            ranks=OneRank(),  # type: ignore[arg-type]
            measure=measure,
            spot_check=lambda rows_R: Measured(values=losses(self.checked_at)[rows_R]),
            host_order=lambda epoch: np.random.default_rng(epoch).permutation(len(self.pool)),
            say=self.said.append,
            log=self.logged.append,
            versions=versions or {"numpy": "1"},
            domains=domains,
            training=self.training,
            budget=self.budget,
            cached_losses=lambda progress: cached_N,
        )

    def _budget(self, method: Method, seed: int) -> Any:
        from dataflex.train.budget import Budget

        size = len(self.pool)
        return Budget(
            share=method.score_budget,
            compares=method.compares,
            needs_loss=lambda progress: "loss" in method.needs_at(progress),
            plan=self.plan,
            global_batch=GEOMETRY.global_batch,
            pool=self.pool,
            seed=seed,
            flops=Flops(weights=1000, attention=0, trained_share=1.0),
            features=lambda: features_of(self.pool),
            strata_N=np.arange(size) % 2,
            repeats=method.replacement or method.mixer is not None,
        )

    def begin(self, checkpoint: Path | None = None, fingerprint: dict[str, Any] | None = None, **options: Any) -> Run:
        run = {"fingerprint": FINGERPRINT if fingerprint is None else fingerprint}
        run |= {"base_weights": options.pop("base_weights", None)}
        options = {"overwrite": False, **options}
        self.curator.begin(
            run, {"row": np.arange(len(self.pool))}, checkpoint=checkpoint and str(checkpoint), **options
        )
        return self

    def train(self, step: int = 0, after_step: Callable[[int], Any] = lambda step: None) -> list[list[int]]:
        """Rows of each optimizer step from ``step`` to the end."""
        trained: list[list[int]] = []
        self.checked_at = step
        while step < self.plan.num_steps:
            for deal in self.curator.rest_of_epoch(step):
                for start in range(0, len(deal.rows), GEOMETRY.global_batch):
                    trained.append(deal.rows[start : start + GEOMETRY.global_batch].tolist())
                    if self.training is not None:
                        self.training.see(deal.rows[start : start + GEOMETRY.global_batch], step)
                    self.checked_at = step = step + 1
                    self.curator.after_step()
                    after_step(step)
        return trained

    def save(self, step: int) -> Path:
        checkpoint = self.output_dir / f"checkpoint-{step}"
        self.curator.save(checkpoint, step, FINGERPRINT)
        return checkpoint


def decisions(ledger: Ledger) -> list[tuple]:
    """What each segment was decided to be, without times."""
    keys = ("segment", "start", "stop", "cycle", "update", "decision", "window", "notes", "quantiles", "num_rows")
    return [
        (*(line[key] for key in keys), ledger.rows_of(line).tolist()) for _, line in sorted(ledger.segments().items())
    ]
