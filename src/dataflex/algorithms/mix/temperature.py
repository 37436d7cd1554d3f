"""Temperature: small domains more often than their size says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import DomainInfo, Mixture, Progress, Signals, State
from dataflex.algorithms.checks import require_range
from dataflex.algorithms.mix.base import MixerBase
from dataflex.core.domains import softmax


@dataclass(frozen=True, kw_only=True)
class Temperature(MixerBase):
    """p_d proportional to n_d ** (1 / temperature), n_d the size of the domain in the unit of the proportions.

    >>> domains = DomainInfo(names=("a", "b"), num_rows_D=np.array([900, 100]), num_label_tokens_D=np.array([1, 1]))
    >>> Temperature(temperature=2.0).init(domains)["proportions_D"].round(9).tolist()
    [0.75, 0.25]

    Args:
        temperature: > 0; 1 is proportional to size, ``.inf`` equal shares of all domains that have rows.

    Raises:
        ConfigError: a parameter out of range.

    Source: multilingual practice of T5, arXiv 1910.10683, and mT5, arXiv 2010.11934.
    """

    temperature: float = 1.0

    source: ClassVar[str] = "1910.10683; 2010.11934"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature != math.inf:
            require_range("temperature", self.temperature, above=0)

    def init(self, domains: DomainInfo) -> State:
        sizes_D = np.asarray(self.sizes_D(domains), dtype=np.float64)
        full_D = sizes_D > 0
        exponents_D = np.full(len(sizes_D), -np.inf)
        # Differences to the largest before the division: a tiny temperature would overflow.
        exponents_D[full_D] = np.log(sizes_D[full_D] / sizes_D.max(initial=1.0)) / self.temperature
        return {"proportions_D": softmax(exponents_D)}

    def mix(
        self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator
    ) -> tuple[Mixture, State]:
        return Mixture(proportions_D=np.array(state["proportions_D"]), decision="fixed"), state
