"""Random: new proportions at every decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import DomainInfo, Mixture, Progress, Signals, State
from dataflex.algorithms.checks import require_range
from dataflex.algorithms.mix.base import MixerBase
from dataflex.algorithms.mix.proportions import Proportions, check_proportions, resolve_proportions
from dataflex.core.domains import shares


@dataclass(frozen=True, kw_only=True)
class RandomMix(MixerBase):
    """Draw proportions from Dirichlet(concentration, ..., concentration), anew at every decision.

    p_d = g_d / sum g, g_d a sum of ``concentration`` exponential variables, which is a gamma variable: only uniforms
    are drawn, whose stream no numpy release changes.

    Args:
        concentration: whole number >= 1; 1 is uniform over all mixtures, large ones stay near equal shares.
        initial: the proportions of the warm-up.

    Raises:
        ConfigError: a parameter out of range.

    Source: baseline; upstream draws once and keeps it, which is not followed.
    """

    concentration: int = 1
    initial: Proportions = "uniform"

    source: ClassVar[str] = "random mixture baseline"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("concentration", self.concentration, at_least=1, at_most=1000)
        check_proportions("initial", self.initial)

    def init(self, domains: DomainInfo) -> State:
        sizes_D = self.sizes_D(domains)
        return {"proportions_D": resolve_proportions("initial", self.initial, domains, sizes_D)}

    def mix(
        self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator
    ) -> tuple[Mixture, State]:
        num_domains = len(state["proportions_D"])
        gammas_D = -np.log1p(-rng.random((num_domains, self.concentration))).sum(axis=1)
        gammas_D += np.finfo(float).tiny  # u may be 0 in every domain
        return Mixture(proportions_D=shares(gammas_D), decision="drawn"), state
