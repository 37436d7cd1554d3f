"""What all mixers share: how their proportions become rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import DomainInfo, Progress, Signals, State
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MixerBase:
    """Parameters of every mixer.

    Args:
        unit: the proportions are shares of ``rows`` or of label ``tokens``.
        exhausted: a domain whose rows were all trained begins again (``repeat``), or yields its share to the others
            (``redistribute``).
        max_repeats: a row is trained at most this often, then its domain yields its share; None: no limit.
    """

    unit: Literal["rows", "tokens"] = "rows"
    exhausted: Literal["repeat", "redistribute"] = "repeat"
    max_repeats: int | None = None

    needs: ClassVar[frozenset[str]] = frozenset()
    step_needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = ""

    def __post_init__(self) -> None:
        require_one_of("unit", self.unit, ("rows", "tokens"))
        require_one_of("exhausted", self.exhausted, ("repeat", "redistribute"))
        if self.max_repeats is not None:
            require_range("max_repeats", self.max_repeats, at_least=1)
            if self.exhausted == "redistribute":
                raise ConfigError(
                    f"max_repeats is {self.max_repeats} beside exhausted: redistribute, which trains a row once; "
                    "leave one of them out"
                )

    @property
    def max_times(self) -> int | None:
        """How often a row may be trained in all."""
        return 1 if self.exhausted == "redistribute" else self.max_repeats

    def sizes_D(self, domains: DomainInfo) -> np.ndarray:
        """Sizes of the domains in the unit of the proportions."""
        return domains.num_rows_D if self.unit == "rows" else domains.num_label_tokens_D

    def needs_at(self, progress: Progress) -> frozenset[str]:
        return frozenset() if progress.is_warmup else self.needs

    def observe(self, state: State, signals: Signals, progress: Progress) -> State:
        return state

    def domain_weights(self, state: State) -> np.ndarray | None:
        return None

    def learned(self, state: State) -> np.ndarray | None:
        """Proportions that the run found for another one to train on, sum 1; None where it finds none."""
        return None
