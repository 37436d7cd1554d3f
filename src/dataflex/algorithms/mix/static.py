"""Static: the same proportions throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import DomainInfo, Mixture, Progress, Signals, State
from dataflex.algorithms.mix.base import MixerBase
from dataflex.algorithms.mix.proportions import Proportions, check_proportions, resolve_proportions


@dataclass(frozen=True, kw_only=True)
class StaticMix(MixerBase):
    """Keep given proportions: p_d = proportions_d / sum.

    >>> domains = DomainInfo(names=("a", "b"), num_rows_D=np.array([9, 9]), num_label_tokens_D=np.array([50, 60]))
    >>> StaticMix(proportions=(3, 1)).init(domains)["proportions_D"].tolist()
    [0.75, 0.25]

    Args:
        proportions: one number for each domain in the order of the data sets, or by name, >= 0; ``uniform``; or
            ``sizes``, the data as it is.

    Raises:
        ConfigError: a parameter out of range, an unknown domain.

    Source: the fixed mixture, the baseline of every mixer.
    """

    proportions: Proportions = "sizes"

    source: ClassVar[str] = "fixed mixture"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_proportions("proportions", self.proportions)

    def init(self, domains: DomainInfo) -> State:
        sizes_D = self.sizes_D(domains)
        return {"proportions_D": resolve_proportions("proportions", self.proportions, domains, sizes_D)}

    def mix(
        self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator
    ) -> tuple[Mixture, State]:
        return Mixture(proportions_D=np.array(state["proportions_D"]), decision="fixed"), state
