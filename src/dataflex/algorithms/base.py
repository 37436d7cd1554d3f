"""What a method is: the protocol, what it is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from dataflex.core.errors import ConfigError
from dataflex.core.segment import Progress

__all__ = [
    "DomainInfo",
    "MeasuredOnce",
    "Mixer",
    "Mixture",
    "Order",
    "PoolInfo",
    "Progress",
    "Selection",
    "Selector",
    "SelectorBase",
    "Signals",
    "State",
    "TrainedBatch",
    "Weigher",
    "WeigherBase",
    "Weights",
]

# Arrays that outlive a decision; saved with every checkpoint and restored exactly.
State = Mapping[str, np.ndarray]

# Signals by name, each with one entry per pool row: see ``SIGNALS``.
Signals = Mapping[str, np.ndarray]

SIGNALS = {
    "training_loss": "the loss of each row when it was last trained, float32, NaN where it never was (no model pass)",
    "loss": "mean negative log-likelihood over the label tokens of each row, float32, NaN where it cannot be scored",
    "times_trained": "how often each row was trained before this decision, int32 (no model pass)",
    "file": "scores read from the file that the method's `path` names, float64, NaN where a row is not listed",
    "replay": "the rows that a former run's ledger recorded for this segment, in training order, int64",
    "similarities": "mean cosine of each row's update with the gradients of each target group, float32, shape (N, G)",
    "target_sizes": "rows of each target group, int64, shape (G,) (no model pass)",
    "learning_rate": "the optimizer's present learning rate, float64, shape (1,) (no model pass)",
    "embeddings": "a unit vector of each row, float32, shape (N, E), memory-mapped, NaN where it has none",
    "target_embeddings": "the same of each target row, shape (M, E)",
    "neighbours_file": "nearest pool rows of each query, from the file that `indices_path` names, int64, shape (M, K)",
    "reference_loss": "loss of each row under the reference model that the method names, float32, NaN as for loss",
    "answer_losses": "mean loss of the answer's tokens after the prompt and without it, float32, shape (N, 2)",
    "trajectories": "losses of each row over a former run, float32, shape (N, C), NaN where it was not measured",
    "source": "data set of each row, counted from 0, int64; -1 where it is not known",
}

# Those that tell how a row serves the target: the run must name one.
TARGET_SIGNALS = frozenset({"similarities", "target_sizes", "target_embeddings"})

# Model passes that a method may limit to some rows of a decision (``candidates``).
LIMITED_SIGNALS = frozenset({"loss", "similarities"})

# What a decision under a scoring budget is told besides ``loss``, which is then estimated where it was not measured.
BUDGET_SIGNALS = {
    "scored": "whether the loss of each row was measured for this decision, bool",
    "improved_share": "share of the pool whose loss has fallen since the start, by rows measured twice, float64, (1,)",
}

# What a mixer may ask for; one entry a domain, float64.
DOMAIN_SIGNALS = {
    "domain_loss": "mean training loss per label token since the last decision, NaN where a domain was not trained",
    "proportions_file": "the proportions in the file that the method's `path` names",
    "domain_excess_sums": "after every optimizer step: sum over label tokens of max(loss - reference loss, 0)",
    "domain_tokens": "after every optimizer step: label tokens of the global batch",
}


@dataclass(frozen=True, kw_only=True)
class PoolInfo:
    """What is known of the pool before any model pass; arrays have one entry per row."""

    num_tokens_N: np.ndarray  # prompt and answer
    num_label_tokens_N: np.ndarray  # tokens that carry a loss

    def __len__(self) -> int:
        return len(self.num_tokens_N)

    @property
    def trainable_N(self) -> np.ndarray:
        """Rows with at least one label token; the others cannot be scored and are never drawn."""
        return self.num_label_tokens_N > 0


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows of the next segment and why they were chosen."""

    rows_Q: np.ndarray  # pool rows, int64; a row may occur twice only where the user allowed replacement
    decision: str  # "first", "guided", "uniform", ...: one word for tables
    ordered: bool = False  # rows_Q is the training order; else it is shuffled before training
    columns_N: Mapping[str, np.ndarray] = field(
        default_factory=dict
    )  # per pool row: delta, rank, in_window, weight ...
    window: Mapping[str, float] | None = None  # start and end, in rows of the ranking and as shares of the pool
    notes: Mapping[str, Any] = field(default_factory=dict)  # what a person needs to understand the draw; JSON values
    warnings: tuple[str, ...] = ()  # sentences for the log: anything other than the method's usual course


@runtime_checkable
class Selector(Protocol):
    """A method that chooses rows. Implementations are frozen keyword-only dataclasses of their parameters."""

    needs: ClassVar[frozenset[str]]  # every signal it may ask for, e.g. {"loss"}
    source: ClassVar[str]  # where the method comes from

    def needs_at(self, progress: Progress) -> frozenset[str]:
        """Signals to measure for this decision; also asked at every warm-up, for ``observe``."""
        ...

    def init(self, pool: PoolInfo) -> State:
        """State before the first decision."""
        ...

    def observe(self, state: State, signals: Signals, progress: Progress) -> State:
        """Take in signals that were measured at a warm-up; chooses nothing."""
        ...

    def select(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[Selection, State]:
        """Choose ``quota`` rows. Pure: the same arguments give the same result."""
        ...


class SelectorBase:
    """Defaults that most methods share; a method may as well implement the protocol on its own."""

    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = ""
    # True: ``select`` also decides the warm-up segments (replay).
    serves_warmup: ClassVar[bool] = False
    # True: ranks by the fall of each loss since the first one it was given; its ``baseline`` says which that is.
    compares_losses: ClassVar[bool] = False

    @property
    def follows_host(self) -> bool:
        """True: nothing is chosen, the host's own sampler order is trained (static without a path)."""
        return False

    def needs_at(self, progress: Progress) -> frozenset[str]:
        return frozenset() if progress.is_warmup and not self.serves_warmup else self.needs

    def init(self, pool: PoolInfo) -> State:
        return {"trainable_N": pool.trainable_N}

    def observe(self, state: State, signals: Signals, progress: Progress) -> State:
        return state

    def candidates(
        self, state: State, signals: Signals, quota: int, progress: Progress, rng: np.random.Generator
    ) -> tuple[np.ndarray | None, State]:
        """Rows, int64, to which model passes of this decision are limited, None: all; and the state after it. Pure.

        ``signals`` are those that take no pass over the pool (all but ``LIMITED_SIGNALS``). A method that limits them
        says so by a class variable ``limits_passes = True``; it finds NaN for the other rows.
        """
        return None, state

    def rank(self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator) -> np.ndarray:
        """All rows that may be drawn, best first, int64, shape (M,): what a mixer takes its counts from.

        Not asked of a method whose selection has a column ``weight``: the ranking is then a draw by it.

        Raises:
            ConfigError: the method has neither.
        """
        raise ConfigError(
            f"{type(self).__name__} gives neither weights nor a ranking, of which a mixer could take its share of each "
            "domain; leave the mixer out"
        )

    def plan_note(self, progress: Progress) -> dict[str, Any]:
        """What is known of a decision before the run, e.g. its window in shares of the pool; for ``plan``."""
        return {}


class MeasuredOnce(SelectorBase):
    """Asks for everything at its first selection and keeps in its state what it made of it."""

    def needs_at(self, progress: Progress) -> frozenset[str]:
        if progress.is_warmup:
            return frozenset()
        return self.needs if progress.is_first_selection else self.needs & {"times_trained"}


@dataclass(frozen=True, kw_only=True)
class DomainInfo:
    """What is known of the domains before any model pass; arrays have one entry a domain."""

    names: tuple[str, ...]
    num_rows_D: np.ndarray  # rows with a label token
    num_label_tokens_D: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mean_tokens_D(self) -> np.ndarray:
        """Label tokens of a row, 0 for a domain without rows."""
        return self.num_label_tokens_D / np.maximum(1, self.num_rows_D)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The proportions of the next segment and why."""

    proportions_D: np.ndarray  # >= 0, sum 1, float64; of rows or of label tokens, as the mixer's ``unit`` says
    decision: str  # "fixed", "drawn", "learned", ...: one word for tables
    columns_D: Mapping[str, np.ndarray] = field(default_factory=dict)  # per domain: reward, excess ...
    notes: Mapping[str, Any] = field(default_factory=dict)  # JSON values
    warnings: tuple[str, ...] = ()


@runtime_checkable
class Mixer(Protocol):
    """A method that chooses proportions of domains. Implementations are frozen keyword-only dataclasses."""

    needs: ClassVar[frozenset[str]]  # of ``DOMAIN_SIGNALS``, read by ``mix``
    step_needs: ClassVar[frozenset[str]]  # of ``DOMAIN_SIGNALS``, read by ``observe``
    source: ClassVar[str]
    unit: Literal["rows", "tokens"]

    @property
    def max_times(self) -> int | None:
        """How often a row may be trained in all, before its domain yields its share; None: no limit."""
        ...

    def needs_at(self, progress: Progress) -> frozenset[str]:
        """Signals to measure for this decision."""
        ...

    def init(self, domains: DomainInfo) -> State:
        """State before the first decision; ``proportions_D`` in it is the mixture of the warm-up."""
        ...

    def observe(self, state: State, signals: Signals, progress: Progress) -> State:
        """Take in what one optimizer step measured, sums over the global batch and all ranks; chooses nothing."""
        ...

    def mix(
        self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator
    ) -> tuple[Mixture, State]:
        """Choose proportions. Pure: the same arguments give the same result."""
        ...

    def domain_weights(self, state: State) -> np.ndarray | None:
        """Coefficients of the loss of each domain at the next optimizer step, shape (D,); None: all 1."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainedBatch:
    """Rows of one micro-batch over all ranks, in the order of ``core.order.deal``, as their forward saw them.

    ``token_losses_BxT`` is NaN where a position has no label.
    """

    losses_B: np.ndarray  # mean over the label tokens of each row; not finite: the row is left out
    tokens_B: np.ndarray  # label tokens
    step: int  # optimizer step, 0, 1, 2 ...
    num_steps: int  # of the whole run
    columns_B: Mapping[str, np.ndarray] = field(default_factory=dict)  # dataset columns that the weigher names
    token_losses_BxT: np.ndarray | None = None  # given to weighers with "token_loss" in ``needs``
    reference_losses_BxT: np.ndarray | None = None  # of the same tokens, with "reference_token_loss"
    embeddings_BxE: np.ndarray | None = None  # unit rows, NaN where a row has none, with "embedding"

    def __len__(self) -> int:
        return len(self.losses_B)

    @property
    def scored_B(self) -> np.ndarray:
        """Rows with a label token and a finite loss, bool, shape (B,)."""
        return np.isfinite(self.losses_B) & (np.asarray(self.tokens_B) > 0)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Coefficients of one micro-batch: loss = sum_i c_i S_i / sum_i T_i, with the host's own token count below."""

    weights_B: np.ndarray  # c_i >= 0, float64
    token_weights_BxT: np.ndarray | None = None  # c_it >= 0, 0 where no label; multiplied with weights_B
    notes: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Weigher(Protocol):
    """A method that says how much each row counts. Implementations are frozen keyword-only dataclasses."""

    needs: ClassVar[frozenset[str]]  # "loss", "token_loss", "reference_token_loss", "embedding", "column"
    source: ClassVar[str]

    def init(self) -> State:
        """State before the first step."""
        ...

    def weigh(self, state: State, batch: TrainedBatch) -> tuple[Weights, State]:
        """Coefficients of one micro-batch over all ranks. Pure; equal rows get equal coefficients."""
        ...

    def check_rows_in_scope(self, num_rows: int) -> None:
        """Raise where micro-batches of ``num_rows`` rows over all ranks would make the method a no-op."""
        ...


class WeigherBase:
    """Defaults that most weighers share."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})
    source: ClassVar[str] = ""

    def init(self) -> State:
        return {}

    def check_rows_in_scope(self, num_rows: int) -> None:
        return None


@runtime_checkable
class Order(Protocol):
    """A method that arranges rows that are already chosen. Implementations are frozen keyword-only dataclasses."""

    source: ClassVar[str]
    by: Literal["length", "loss", "column", "file"]
    over: Literal["segment", "run"]

    def arrange(self, scores_Q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A permutation of 0 .. Q-1, int64: which row comes first, second ... Pure."""
        ...
