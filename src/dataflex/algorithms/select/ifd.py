"""IFD: the samples whose answer the prompt helps with least, but does help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import MeasuredOnce, Progress, Selection, Signals, State
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.algorithms.select.ranked import REUSE, Reuse, take_ranked
from dataflex.core.draw import check_quota
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Ifd(MeasuredOnce):
    """Take samples by instruction-following difficulty, once measured, the most difficult first.

    With s(a | q) and s(a) the mean loss of the answer's tokens after the prompt and without it::

        ifd = exp(s(a | q) - s(a))     or     s(a | q) / s(a)

    Samples at or above ``upper``, whose answer the prompt does not help with, come only when all others are fewer than
    a decision draws: then it has all those below, and the rest nearest to the limit.

    Args:
        ratio: ``perplexity``, the first form, or ``loss``, the second.
        upper: samples at or above it are left out; None: none is.
        model: ``self``, the model that is trained, as it is at the first decision; or a small one that scores instead.
        header: text before an answer without its prompt, such as a template's mark of it.
        reuse: rows already trained come again ``after_exhaustion`` of the others, ``never`` or ``always``.
        cache_dir: where the losses are kept for other runs; None: beside the run's record.

    Raises:
        ConfigError: a parameter out of range.

    Source: IFD (2308.12032), the ratio of losses; Superfiltering (2402.00530), of perplexities. Departure: answers are
    cut to the same tokens in both readings.
    """

    ratio: Literal["perplexity", "loss"] = "perplexity"
    upper: float | None = 1.0
    model: str = "self"
    header: str = ""
    reuse: Reuse = "after_exhaustion"
    cache_dir: str | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"answer_losses", "times_trained"})
    source: ClassVar[str] = "IFD 2308.12032; Superfiltering 2402.00530"

    def __post_init__(self) -> None:
        require_one_of("ratio", self.ratio, ("perplexity", "loss"))
        if self.upper is not None:
            require_range("upper", self.upper, above=0)
        if not self.model:
            raise ConfigError("model is ''; name a model to score with, or self for the one that is trained")
        require_one_of("reuse", self.reuse, REUSE)

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        state = self._scored(state, signals)
        scores_N, passing_N = state["scores_N"], self._passing(state["scores_N"])
        times_N, warnings = signals["times_trained"], []
        num_passing = int(passing_N.sum())
        if num_passing >= quota:
            rows_Q = take_ranked(np.nan_to_num(scores_N), times_N, quota, self.reuse, passing_N)
        else:
            others_N = np.isfinite(scores_N) & ~passing_N
            check_quota(quota, num_passing + int(others_N.sum()))
            missing = quota - num_passing
            # Nearest to the limit first.
            rest = take_ranked(-np.nan_to_num(scores_N), times_N, missing, self.reuse, others_N)
            rows_Q = np.concatenate(
                [take_ranked(np.nan_to_num(scores_N), times_N, num_passing, self.reuse, passing_N), rest]
            )
            warnings.append(
                f"the prompt helps with {num_passing} of {int(np.isfinite(scores_N).sum())} answers (ifd below "
                f"{self.upper:g}), and {quota} samples are drawn: the other {missing} are those nearest to the limit"
            )
        selection = Selection(
            rows_Q=rows_Q,
            decision="guided",
            columns_N={
                "ifd": scores_N.astype(np.float32),
                "answer_loss": state["answer_losses_Nx2"][:, 0],
                "answer_loss_alone": state["answer_losses_Nx2"][:, 1],
            },
            notes={"num_passing": num_passing, "num_scored": int(np.isfinite(scores_N).sum())},
            warnings=tuple(warnings),
        )
        return selection, state

    def rank(self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        scores_N = self._scored(state, signals)["scores_N"]
        return take_ranked(np.nan_to_num(scores_N), signals["times_trained"], None, self.reuse, self._passing(scores_N))

    def _passing(self, scores_N: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.isfinite(scores_N) & (scores_N < (np.inf if self.upper is None else self.upper))

    def _scored(self, state: State, signals: Signals) -> State:
        if "scores_N" in state:
            return state
        losses_Nx2 = np.asarray(signals["answer_losses"], dtype=np.float32)
        scores_N = ifd(losses_Nx2[:, 0], losses_Nx2[:, 1], self.ratio)
        scores_N[~state["trainable_N"]] = np.nan
        return {**state, "scores_N": scores_N, "answer_losses_Nx2": losses_Nx2}


def recorded_answer_losses(columns_N: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The signal that a record's columns were made of, shape (N, 2); None where there are none."""
    names = ("answer_loss", "answer_loss_alone")
    return np.stack([columns_N[name] for name in names], axis=1) if all(n in columns_N for n in names) else None


def ifd(conditional_N: np.ndarray, direct_N: np.ndarray, ratio: Literal["perplexity", "loss"]) -> np.ndarray:
    """Difficulty of each sample, float64, shape (N,); NaN where a loss is not finite or the direct one is not above 0.

    >>> ifd(np.array([1.2, 0.5]), np.array([1.5, 2.0]), "loss").tolist()
    [0.7999999999999999, 0.25]
    """
    conditional_N, direct_N = (np.asarray(part, dtype=np.float64) for part in (conditional_N, direct_N))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        known_N = np.isfinite(conditional_N) & np.isfinite(direct_N) & (direct_N > 0)
        scores_N = np.exp(conditional_N - direct_N) if ratio == "perplexity" else conditional_N / direct_N
    return np.where(known_N & np.isfinite(scores_N), scores_N, np.nan)
