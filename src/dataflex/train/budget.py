"""A scoring budget: which rows a decision may afford to score, what the others' losses are estimated to be, and what
was spent. Rank 0 holds it; everything that it knows is saved with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dataflex.core.board import Board
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.panel import choose_panel
from dataflex.core.plan import SegmentPlan
from dataflex.core.seeds import segment_rng
from dataflex.core.segment import Progress
from dataflex.signals.estimate import Estimate, Observations, estimate, smooth
from dataflex.signals.flops import Flops
from dataflex.train.allowance import Allowance
from dataflex.train.budget_record import (
    CACHED,
    FEWEST_ROWS,
    FIRST_ROWS,
    MOST_ROWS,
    PANEL_ROWS,
    Budgeted,
    Request,
)
from dataflex.train.pool import Pool

# Decisions after which a loss weighs half, and beyond which what training showed is no longer used: where each row is
# compared with its own initial loss in a panel, and where the levels of all rows are fitted.
PAIRED_HALF_LIFE, LEVEL_HALF_LIFE, RECENT = 4.0, 1.5, 2.5
FORGOTTEN = 10.0  # half-lives
MOST_FITTED = 20_000  # values that one fit takes in
SPARE = 1.25
FEWEST_SEEN = 100  # rows that training must have shown before their level is used
WORST = 0.5  # rank correlation below which a decision is uniform instead


class Budget:
    """Spends at most ``share`` of the training's FLOPs on scoring, and estimates the rest.

    Initial losses of all rows are known where the cache has them or where the budget affords the pass: each loss is
    then fitted as its distance from the row's initial loss. Else a method that compares with the start scores a panel
    at step 0 and the same rows again in turn, and the falls of these pairs are fitted; a method of present losses alone
    fits their levels.

    Args:
        share: of the training's FLOPs of a cycle; what a cycle leaves over goes to the next.
        compares: the method ranks by the fall of losses since the start.
        needs_loss: whether a decision asks for losses.
        features: text features of the pool, shape (N, F); asked for when the first estimate is made.
        strata_N: group of each row, of which a panel has its share.
        repeats: a segment may have a row several times although others are left.
    """

    def __init__(
        self,
        *,
        share: float,
        compares: bool,
        needs_loss: Callable[[Progress], bool],
        plan: SegmentPlan,
        global_batch: int,
        pool: Pool,
        seed: int,
        flops: Flops,
        features: Callable[[], np.ndarray],
        strata_N: np.ndarray,
        repeats: bool = False,
    ) -> None:
        self.share, self._compares = share, compares
        self._plan, self._seed, self._strata_N = plan, seed, strata_N
        self._trainable_N = pool.info.trainable_N
        if not self._trainable_N.any():
            raise DataFlexError("no row can be trained: none of the pool's rows has a label token")
        tokens_N = pool.info.num_tokens_N
        self._scoring_N, self._training_N = flops.forward(tokens_N), flops.training(tokens_N)
        self._allowance = Allowance(
            share=share,
            plan=plan,
            needs_loss=needs_loss,
            global_batch=global_batch,
            training_M=self._training_N[self._trainable_N],
            repeats=repeats,
        )
        self._read_features, self._features_NxF = features, None
        self._num_rows = len(pool)
        self.reset()

    def reset(self) -> None:
        """As before the first step."""
        size = self._num_rows
        self._initial_N = np.full(size, np.nan, dtype=np.float32)  # measured before the first step
        self._knows_initial = False  # of all rows
        self._guess_N = np.zeros(size, dtype=np.float32)  # initial losses that estimated ones are counted from
        self._panels = {"rows": np.zeros(0, np.int64), "losses": np.zeros(0), "steps": np.zeros(0, np.int64)}
        self._level0_N = np.zeros(0)  # expected of each row by what training showed first
        self._level0_step = -1
        self._last_scored_N = np.full(size, -1, dtype=np.int64)  # step of each row's last panel; -1: never
        self._spent = {"flops": 0.0, "seconds": 0.0}

    # what to score

    def request(
        self, progress: Progress, times_trained_N: np.ndarray, candidates_R: np.ndarray | None = None
    ) -> Request:
        """Rows to score for this decision.

        Args:
            times_trained_N: how often each row was trained.
            candidates_R: rows that the method limits the decision to; None: all.
        """
        trained, num_trained = float(times_trained_N @ self._training_N), int(times_trained_N.sum())
        expected, sure = self._allowance.by_cycle_end(progress, trained, num_trained)
        left, most_now = expected - self._spent["flops"], sure - self._spent["flops"]
        turns, at_start = self._allowance.turns(progress), progress.step == 0
        scorable = np.flatnonzero(self._trainable_N)
        if at_start and self._knows_initial:
            return Request(rows=np.zeros(0, np.int64), why=CACHED)
        everything = float(self._scoring_N[scorable].sum())
        mean = everything / len(scorable)
        if at_start and candidates_R is None and everything <= min(most_now, left - PANEL_ROWS * (turns - 1) * mean):
            return Request(rows=None, why="initial pass")
        paired = self._compares and not self._knows_initial and not at_start
        candidates = np.flatnonzero(np.isfinite(self._initial_N)) if paired else scorable
        if candidates_R is not None:
            candidates = np.intersect1d(candidates, candidates_R)
        fewest = min(FEWEST_ROWS, len(candidates))
        # Rows differ in cost: a panel of the fewest is aimed at with something to spare.
        worth = SPARE * fewest * float(self._scoring_N[candidates].mean()) if len(candidates) else 0.0
        most = self._num_rows if self._knows_initial else MOST_ROWS
        if at_start and self._compares:
            # The panel that all later ones are drawn from: a row must be scored twice to tell a fall.
            share = min(max(3 / turns, FIRST_ROWS * mean / max(left, 1.0)), 1 / 3)
            affordable, most = max(share * left, min(worth, left / 2)), self._num_rows
        else:
            affordable = left / turns
            if affordable < worth:
                affordable = worth if self._is_due(progress, left // worth, turns) else 0.0
        rows = choose_panel(
            candidates,
            self._strata_N,
            self._last_scored_N,
            self._scoring_N,
            affordable=min(affordable, most_now),
            most=most,
            rng=segment_rng(self._seed, progress.segment, "panel"),
        )
        if len(rows) < fewest or len(rows) == 0:
            return Request(rows=np.zeros(0, np.int64), why="free levels")
        return Request(rows=rows, why="panel")

    def _is_due(self, progress: Progress, num_panels: float, turns: int) -> bool:
        """True where so many panels, spread over so many decisions, are to have one now."""
        if num_panels < 1:
            return False
        last = int(self._last_scored_N.max())
        return last < 0 or self._age(progress, last) >= turns / num_panels

    def know(self, cached_N: np.ndarray | None) -> None:
        """Take in losses of step 0 that an earlier run measured."""
        if cached_N is not None and not self._knows_initial:
            self._initial_N, self._knows_initial = _finite(cached_N), True

    # what came of it

    def take(
        self, progress: Progress, request: Request, losses_N: np.ndarray | None, cost: Mapping[str, Any], board: Board
    ) -> Budgeted:
        """Take in what was measured and estimate the rest.

        Args:
            losses_N: of the rows asked for, NaN for the others; None where nothing was to be measured.
            cost: of that pass.
            board: what training showed of each row.
        """
        rows = self._note(progress, request, losses_N, cost)
        scored_N = np.zeros(self._num_rows, dtype=bool)
        scored_N[rows] = True
        record: dict[str, Any] = {"share": self.share, "why": request.why, "panel_rows": len(rows)}
        if progress.step == 0 and self._knows_initial:
            record |= {"estimator": "none: exact"}
            scored_N = np.isfinite(self._initial_N)
            return self._budgeted(self._initial_N, scored_N, None, record)
        if len(rows) == np.count_nonzero(self._trainable_N) and losses_N is not None and progress.step > 0:
            return self._exact(losses_N, scored_N, record)
        at_base = self._compares and progress.step == 0
        found, base_N = self._estimate(progress, board, of_start=at_base)
        if found is None:  # at the start only the falls to come can be told; they are counted from 0
            unknown = {"estimator": "none", "uniform": "no loss is known yet that others could be estimated from"}
            record |= {"estimator": "none yet"} if at_base else unknown
            return self._budgeted(np.where(self._trainable_N, 0.0, np.nan), scored_N, None, record)
        losses_now_N = base_N + found.values_N
        not_finite = rows[~np.isfinite(losses_N[rows])] if losses_N is not None else rows[:0]
        losses_now_N[not_finite] = np.nan
        losses_now_N = np.where(self._trainable_N, losses_now_N, np.nan)
        record |= {"estimator": found.estimator, "num_checked": len(found.checked_C)}
        if at_base:
            self._guess_N = losses_now_N.astype(np.float32)
        else:
            record |= self._quality(found, base_N)
        return self._budgeted(losses_now_N, scored_N, found, record)

    def _exact(self, losses_N: np.ndarray, scored_N: np.ndarray, record: dict[str, Any]) -> Budgeted:
        """A decision for which every row was scored."""
        record |= {"estimator": "none: exact"}
        falls_N = self._initial_N - losses_N
        known_N = np.isfinite(falls_N)
        if self._compares and known_N.any():
            record["improved_share"] = float(np.mean(falls_N[known_N] >= 0))
        return self._budgeted(losses_N, scored_N, None, record)

    def recall(self, progress: Progress, line: Mapping[str, Any], columns_N: Mapping[str, np.ndarray]) -> None:
        """Take in a decision that a former process recorded, as if it had been made now."""
        record = line["scoring"]["budget"]
        losses_N, scored_N = columns_N["loss"], np.asarray(columns_N["scored"], dtype=bool)
        if record["why"] == CACHED:
            return  # they come from the cache again
        everything = record["why"] == "initial pass"
        rows = None if everything else np.flatnonzero(scored_N)
        measured_N = losses_N if everything else np.where(scored_N, losses_N, np.nan)
        self._note(progress, Request(rows=rows, why=record["why"]), measured_N, line["scoring"])
        if self._compares and progress.step == 0 and not everything:
            self._guess_N = np.asarray(losses_N, dtype=np.float32)

    def watch(self, progress: Progress, board: Board) -> None:
        """Keep the level of what training showed first; asked before every decision."""
        if self._level0_step >= 0 or self._knows_initial or not self._compares:
            return
        seen = np.flatnonzero(np.isfinite(board.last_losses_N))
        if len(seen) >= FEWEST_SEEN:
            self._level0_N = smooth(self._features(), seen, board.last_losses_N[seen])
            self._level0_step = progress.step

    def _note(
        self, progress: Progress, request: Request, losses_N: np.ndarray | None, cost: Mapping[str, Any]
    ) -> np.ndarray:
        """Keep what was measured and spent; return the rows of it."""
        rows = np.flatnonzero(self._trainable_N) if request.rows is None else request.rows
        if losses_N is None or len(rows) == 0:
            return rows[:0]
        self._spent["flops"] += float(self._scoring_N[rows].sum())
        self._spent["seconds"] += float(cost.get("seconds", 0.0))
        if request.rows is None:
            self._initial_N, self._knows_initial = _finite(losses_N), True
            return rows
        if progress.step == 0 and self._compares:
            self._initial_N[rows] = _finite(losses_N[rows])
        self._last_scored_N[rows] = progress.step
        steps = np.full(len(rows), progress.step)
        for name, values in (("rows", rows), ("losses", losses_N[rows].astype(np.float64)), ("steps", steps)):
            self._panels[name] = np.concatenate([self._panels[name], values])
        # What weighs next to nothing is dropped, or checkpoints would grow with every decision.
        half_life = PAIRED_HALF_LIFE if self._compares and not self._knows_initial else LEVEL_HALF_LIFE
        young = self._age(progress, self._panels["steps"]) <= FORGOTTEN * half_life
        self._panels = {name: values[young] for name, values in self._panels.items()}
        return rows

    def _estimate(self, progress: Progress, board: Board, *, of_start: bool) -> tuple[Estimate | None, np.ndarray]:
        """An estimate of every row now, and what it is counted from."""
        panels, trained = self._observed(progress, board)
        features_NxF, base_N = self._features(), np.zeros(self._num_rows)
        half_life = LEVEL_HALF_LIFE
        if self._knows_initial:
            base_N = self._initial_N.astype(np.float64)
            known_N = np.where(np.isfinite(base_N), base_N, np.nanmean(base_N))
            features_NxF = np.hstack([features_NxF, known_N[:, None].astype(np.float32)])
            seen = Observations.joined(panels, trained)
        elif self._compares and not of_start:
            base_N, half_life = self._guess_N.astype(np.float64), PAIRED_HALF_LIFE
            fall_N = self._free_fall(progress, board)
            if self._last_scored_N.max() <= 0:  # no row was scored twice: the levels are all there is
                return (None if fall_N is None else _free(-fall_N)), base_N
            if fall_N is not None:
                features_NxF = np.hstack([features_NxF, fall_N[:, None].astype(np.float32)])
            seen = panels.part(np.isfinite(self._initial_N[panels.rows_K]) & (panels.ages_K < self._age(progress, 0)))
        else:
            seen = Observations.joined(panels, trained)
        seen = replace(seen, values_K=seen.values_K - base_N[seen.rows_K])
        seen = seen.part(np.isfinite(seen.values_K))
        if len(seen) == 0:
            return None, base_N
        rng = segment_rng(self._seed, progress.segment, "folds")
        if len(seen) > MOST_FITTED:  # the youngest; among equals at random
            seen = seen.part(np.sort(np.lexsort((rng.random(len(seen)), seen.ages_K))[:MOST_FITTED]))
        return estimate(features_NxF, seen, half_life=half_life, recent=RECENT, rng=rng), base_N

    def _observed(self, progress: Progress, board: Board) -> tuple[Observations, Observations]:
        """Losses that passes measured and that training showed, the latter of late."""
        panels = Observations(
            rows_K=self._panels["rows"],
            values_K=self._panels["losses"],
            ages_K=self._age(progress, self._panels["steps"]),
            trained_K=np.zeros(len(self._panels["rows"]), dtype=bool),
        )
        age_N = self._age(progress, board.last_steps_N)
        rows = np.flatnonzero(np.isfinite(board.last_losses_N) & (age_N <= RECENT))
        trained = Observations(
            rows_K=rows,
            values_K=board.last_losses_N[rows].astype(np.float64),
            ages_K=age_N[rows],
            trained_K=np.ones(len(rows), dtype=bool),
        )
        return panels, trained

    def _age(self, progress: Progress, steps: Any) -> Any:
        """Decisions since an optimizer step."""
        return (progress.step - np.asarray(steps, dtype=np.float64)) / self._plan.update_step

    def _free_fall(self, progress: Progress, board: Board) -> np.ndarray | None:
        """Fall of each row's loss by the levels of what training showed first and of late; None: not known yet."""
        if self._level0_step < 0 or progress.step <= self._level0_step:
            return None
        late = (board.last_steps_N >= self._level0_step) & (self._age(progress, board.last_steps_N) <= 2.0)
        seen = np.flatnonzero(np.isfinite(board.last_losses_N) & late)
        if len(seen) < FEWEST_SEEN:
            return None
        return self._level0_N - smooth(self._features(), seen, board.last_losses_N[seen])

    def _quality(self, found: Estimate, base_N: np.ndarray) -> dict[str, Any]:
        """Rank correlation by rows left out, the share of improved rows, and what follows for the decision."""
        rho = found.rank_correlation(None if self._compares else base_N)
        said: dict[str, Any] = {"rank_correlation": rho}
        checked_C = found.checked_C[np.isfinite(found.checked_C)]
        if self._compares and len(checked_C):
            said["improved_share"] = float(np.mean(checked_C <= 0))
        if rho is not None and rho < WORST:
            said["uniform"] = (
                f"the estimated losses rank rows that were left out with {rho:.2f} only (at least {WORST})"
            )
        return said

    def _budgeted(
        self, losses_N: np.ndarray, scored_N: np.ndarray, found: Estimate | None, record: Mapping[str, Any]
    ) -> Budgeted:
        errors = found.errors_C if found is not None else np.zeros(0)
        return Budgeted(
            losses_N=losses_N.astype(np.float32), scored_N=scored_N, errors=errors[np.isfinite(errors)],
            record={**record, "spent_flops": self._spent["flops"], "spent_seconds": self._spent["seconds"]},
        )  # fmt: skip

    def _features(self) -> np.ndarray:
        if self._features_NxF is None:
            self._features_NxF = self._read_features()
        return self._features_NxF

    # saving, restoring

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        return {
            "initial_N": self._initial_N,
            "knows_initial": np.array(self._knows_initial),
            "guess_N": self._guess_N,
            "level0_N": self._level0_N,
            "level0_step": np.array(self._level0_step),
            "last_scored_N": self._last_scored_N,
            **{f"panel.{name}": values for name, values in self._panels.items()},
            **{f"spent.{name}": np.array(value) for name, value in self._spent.items()},
        }

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what ``arrays`` returned.

        Raises:
            ConfigError: an array is missing.
        """
        self.reset()
        missing = sorted(self.arrays().keys() - arrays.keys())
        if missing:
            raise ConfigError(
                f"the checkpoint does not hold the budget's {', '.join(missing)}; resume from another, or start anew"
            )
        self._initial_N, self._guess_N = arrays["initial_N"].copy(), arrays["guess_N"]
        self._knows_initial = bool(arrays["knows_initial"])
        self._last_scored_N = arrays["last_scored_N"].copy()
        self._level0_N, self._level0_step = arrays["level0_N"], int(arrays["level0_step"])
        self._panels = {name: arrays[f"panel.{name}"] for name in self._panels}
        self._spent = {name: float(arrays[f"spent.{name}"]) for name in self._spent}


def _finite(losses: np.ndarray) -> np.ndarray:
    """Losses, float32; NaN where they are not finite."""
    return np.where(np.isfinite(losses), losses, np.nan).astype(np.float32)


def _free(values_N: np.ndarray) -> Estimate:
    """An estimate that no measured row could check."""
    nothing = np.zeros(0)
    return Estimate(
        values_N=values_N, estimator="free levels", checked_rows_C=nothing.astype(np.int64), checked_C=nothing,
        predicted_C=nothing,
    )  # fmt: skip
