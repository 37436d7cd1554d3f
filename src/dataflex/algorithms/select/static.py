"""Static: the host's own order, or a fixed list of rows or scores from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import Progress, Selection, SelectorBase, Signals, State
from dataflex.algorithms.checks import require_one_of
from dataflex.algorithms.select.ranked import REUSE, Reuse, take_ranked, take_weighted
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Static(SelectorBase):
    """Choose nothing, or choose by a file.

    Without a ``path`` the host's sampler order is trained as it is, with the ledger engaged: warm-up and updates set
    only how often a ledger line is written, an epoch is a pass over the pool. With a ``path`` the file's scores are
    read once and every segment takes the next rows by them.

    Args:
        path: a .npy, .json or .parquet file: whole numbers are row ids of the tokenised training set, best first;
            fractions are scores, one a row.
        draw: ``top`` by score or in the order of the list, each row once before any comes again; ``weighted``: draw
            with probability proportional to the score.
        reuse: rows already trained come again ``after_exhaustion`` of the others, ``never`` or ``always``.

    Raises:
        ConfigError: a parameter out of range, or a file that does not fit the pool.

    Source: precomputed selection, the baseline of every offline method.
    """

    path: str | None = None
    draw: Literal["top", "weighted"] = "top"
    reuse: Reuse = "after_exhaustion"

    source: ClassVar[str] = "host order, or a precomputed list"

    def __post_init__(self) -> None:
        if self.path == "":
            raise ConfigError("path is ''; name a file, or leave it out to train the host's own order")
        require_one_of("draw", self.draw, ("top", "weighted"))
        require_one_of("reuse", self.reuse, REUSE)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({"file", "times_trained"}) if self.path is not None else frozenset()

    @property
    def follows_host(self) -> bool:
        return self.path is None

    def needs_at(self, progress: Progress) -> frozenset[str]:
        if self.follows_host or progress.is_warmup:
            return frozenset()
        return self.needs if progress.is_first_selection else frozenset({"times_trained"})

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        if self.follows_host:
            raise ConfigError("static without a path chooses nothing; the host's order is trained")
        scores_N = signals["file"] if "file" in signals else state["scores_N"]
        selection = Selection(
            rows_Q=self._take(scores_N, state, signals, quota, rng),
            decision=self.draw,
            ordered=self.draw == "top",
            notes={"num_listed": int(self._listed(scores_N, state).sum())},
        )
        return selection, {**state, "scores_N": scores_N}

    def rank(self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        return self._take(signals["file"] if "file" in signals else state["scores_N"], state, signals, None, rng)

    def _listed(self, scores_N: np.ndarray, state: State) -> np.ndarray:
        """Rows that the file names and that can be trained, bool, shape (N,)."""
        return np.isfinite(scores_N) & state["trainable_N"]

    def _take(
        self, scores_N: np.ndarray, state: State, signals: Signals, quota: int | None, rng: np.random.Generator
    ) -> np.ndarray:
        """The rows by the file, all that it names where there is no quota."""
        listed_N, used_N = self._listed(scores_N, state), signals["times_trained"]
        if self.draw == "weighted":
            if np.any(scores_N[listed_N] < 0):
                raise ConfigError(
                    "draw: weighted needs scores that are not negative; use draw: top, or shift the scores"
                )
            return take_weighted(np.nan_to_num(scores_N), used_N, quota, self.reuse, listed_N, rng)
        return take_ranked(np.nan_to_num(scores_N), used_N, quota, self.reuse, listed_N)
