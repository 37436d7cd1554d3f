"""What is asked of a selection without training: which decision, how many rows, compared with what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataflex.core.errors import ConfigError
from dataflex.core.plan import SegmentPlan
from dataflex.core.segment import Segment
from dataflex.ledger.ledger import DIRECTORY, Ledger
from dataflex.signals.file import read_scores
from dataflex.train.method import Method
from dataflex.train.pool import Pool


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for."""

    take: int | float | None = None  # rows, or a share of the pool; None: the quota of the decision
    update: int | None = None  # which decision of the schedule, from 1, warm-ups not counted; None: the first guided
    baseline: str | None = None  # a run, a selection or a file whose losses are the initial ones


def find_decision(plan: SegmentPlan, method: Method, wish: Wish) -> Segment:
    """The decision of the schedule that is wished for: the first that the method makes by what it measured.

    Raises:
        ConfigError: no such decision, or initial losses that are missing or that nothing compares with.
    """
    updates = [segment for segment in plan.segments() if not segment.is_warmup]
    if not updates:
        raise ConfigError("this schedule ends in its warm-up; lower warmup_step, or train longer")
    uniform = [method.plan_note(plan.progress(segment)).get("decision") == "first (uniform)" for segment in updates]
    compares = any(uniform)  # such a method keeps the initial losses at its first decision
    if compares and wish.baseline is None:
        raise ConfigError(
            f"{method.name} compares two models, and one is loaded here: name the losses of the other with "
            "--baseline-from: a run, a selection that was made with that model, or a file of losses"
        )
    if not compares and wish.baseline is not None:
        raise ConfigError(f"{method.name} compares with no earlier losses; remove --baseline-from")
    if wish.update is not None and not 1 <= wish.update <= len(updates):
        raise ConfigError(f"--update is {wish.update}; the schedule has decisions 1 to {len(updates)}")
    number = next((i for i, is_uniform in enumerate(uniform) if not is_uniform), 0)
    number = number if wish.update is None else wish.update - 1
    if uniform[number]:
        raise ConfigError(
            f"decision {number + 1} of this schedule is {method.name}'s first, which is uniform; "
            + ("name a later one with --update" if wish.update else "set update_times to 2 or more")
        )
    return updates[number]


def num_rows(wish: Wish, quota: int, method: Method, pool: Pool) -> int:
    """The number of rows to choose; ``quota`` where none is asked for.

    Raises:
        ConfigError: more than can be drawn.
    """
    available = int(pool.info.trainable_N.sum())
    if wish.take is None:
        number, asked = quota, f"the decision's quota is {quota}"
    else:
        number = max(1, round(wish.take * len(pool))) if isinstance(wish.take, float) else wish.take
        asked = f"--take asks for {number}"
    if number > available and not method.replacement:
        raise ConfigError(f"{asked} samples, but {available} can be drawn; name fewer with --take")
    return number


def read_baseline(path: str, pool: Pool) -> np.ndarray:
    """Initial losses, float32, shape (N,): the earliest that a run or a selection recorded, or those of a file.

    Raises:
        ConfigError: nothing there, other data, or no losses.
    """
    place = Path(path)
    if not place.is_dir():
        return read_scores(path, len(pool), pool.digest).astype(np.float32)
    ledger = next((ledger for ledger in (Ledger(place), _of_its_own(place)) if ledger.exists()), None)
    if ledger is None:
        raise ConfigError(f"{path} holds no record of a run ({DIRECTORY}/run.yaml); name its output_dir, or a file")
    if ledger.run().get("fingerprint", {}).get("data") != pool.digest:
        raise ConfigError(
            f"{path} recorded other data; initial losses must be of the same data set, tokenizer, template and cutoff"
        )
    for _, line in sorted(ledger.segments().items()):
        columns_N = ledger.signals_of(line)
        for name in ("initial_loss", "loss"):
            if name in columns_N:
                return columns_N[name].astype(np.float32)
    raise ConfigError(f"{path} recorded no losses; name a run of a method that measures them, or a file")


def _of_its_own(place: Path) -> Ledger:
    return Ledger(place.resolve().parent, directory=place.resolve().name)
