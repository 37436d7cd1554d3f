"""ODM: a bandit that favours the domains whose loss is high."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import DomainInfo, Mixture, Progress, Signals, State
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.algorithms.mix.base import MixerBase
from dataflex.algorithms.mix.proportions import Proportions, check_proportions, resolve_proportions
from dataflex.core.domains import softmax
from dataflex.core.errors import ConfigError, shown

LARGEST_REWARD = 20.0  # nats; a loss above it counts as this one, exp of it would crowd out all others


@dataclass(frozen=True, kw_only=True)
class ODM(MixerBase):
    """Online data mixing: the reward r_d of a domain is its mean training loss since the last decision.

    With a = ``smoothing``, t optimizer steps since the warm-up and eps_t = min(1/D, max(sqrt(ln D / (D t)), eps_min)):

    - ``proportional``: R <- a R + (1 - a) exp(r); pi = (1 - D eps_t) R / sum R + eps_t
    - ``gibbs``: R <- a R + (1 - a) r / pi (``importance``) or r; pi = (1 - D eps_t) softmax(reward_scale eps_{t-1} R)
      + eps_t

    A domain that was not trained, or whose loss is not finite, keeps its R. Until t > D ln D, where eps_t is 1/D, the
    initial proportions hold while rewards are gathered.

    Args:
        form: ``proportional``, the update that the authors released; ``gibbs``, the paper's. R is an average, so that
            eps_t -> 0 leads plain gibbs to equal shares.
        smoothing: a, 0 to 1.
        importance: divide the reward by the probability it was drawn with; for gibbs.
        reward_scale: factor of the exponent, > 0; for gibbs.
        eps_min: lowest share of a domain, at least 0; where it exceeds 1/D it is 1/D.
        exponent_floor: exponents below this far under the largest count as this, < 0; for gibbs. None: no floor.
        initial: proportions of the warm-up.

    Raises:
        ConfigError: a parameter out of range.

    Source: arXiv 2312.02406 and its code. The tables published for DataFlex used gibbs with importance,
    reward_scale 15, eps_min 0.03, exponent_floor -5. The loss is that of training instead of a sample's.
    """

    form: Literal["proportional", "gibbs"] = "proportional"
    smoothing: float = 0.9
    importance: bool = True
    reward_scale: float = 1.0
    eps_min: float = 0.0
    exponent_floor: float | None = None
    initial: Proportions = "uniform"

    needs: ClassVar[frozenset[str]] = frozenset({"domain_loss"})
    source: ClassVar[str] = "2312.02406"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("form", self.form, ("proportional", "gibbs"))
        require_range("smoothing", self.smoothing, at_least=0, below=1)
        require_range("reward_scale", self.reward_scale, above=0)
        require_range("eps_min", self.eps_min, at_least=0, below=1)
        if self.exponent_floor is not None:
            require_range("exponent_floor", self.exponent_floor, below=0)
        check_proportions("initial", self.initial)
        if self.form == "proportional" and (self.reward_scale != 1.0 or self.exponent_floor is not None):
            value = self.reward_scale if self.reward_scale != 1.0 else self.exponent_floor
            name = "reward_scale" if self.reward_scale != 1.0 else "exponent_floor"
            raise ConfigError(f"{name} is {shown(value)}, which form: proportional does not use; set form: gibbs")

    def init(self, domains: DomainInfo) -> State:
        initial_D = resolve_proportions("initial", self.initial, domains, self.sizes_D(domains))
        return {
            "initial_D": initial_D,
            "proportions_D": initial_D,
            "rewards_D": np.zeros(len(domains)),
            "eps": np.array(1 / len(domains)),
            "first_step": np.array(-1, dtype=np.int64),
        }

    def mix(
        self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator
    ) -> tuple[Mixture, State]:
        num_domains = len(state["rewards_D"])
        first_step = int(state["first_step"]) if state["first_step"] >= 0 else progress.step
        rewards_D = self._rewards(state, np.asarray(signals["domain_loss"], dtype=np.float64))
        eps = self._eps(progress.step - first_step, num_domains)
        # The scale decides nothing while eps is 1/D: every mixture would be uniform.
        if eps >= 1 / num_domains or not rewards_D.any():
            proportions_D, decision = state["initial_D"], "initial"
        else:
            preferred_D = self._preferred(rewards_D, float(state["eps"]))
            proportions_D, decision = (1 - num_domains * eps) * preferred_D + eps, "learned"
        proportions_D = np.array(proportions_D)
        mixture = Mixture(
            proportions_D=proportions_D,
            decision=decision,
            columns_D={"loss": np.array(signals["domain_loss"], dtype=np.float64), "reward": rewards_D},
            notes={"eps": eps},
        )
        new = {"proportions_D": proportions_D, "rewards_D": rewards_D, "eps": np.array(eps)}
        return mixture, {**state, **new, "first_step": np.array(first_step, dtype=np.int64)}

    def _rewards(self, state: State, losses_D: np.ndarray) -> np.ndarray:
        """R after the losses of one segment."""
        capped_D = np.minimum(losses_D, LARGEST_REWARD)
        if self.form == "proportional":
            reward_D = np.exp(capped_D)
        else:
            with np.errstate(divide="ignore"):
                reward_D = capped_D / state["proportions_D"] if self.importance else capped_D
        mixed_D = self.smoothing * state["rewards_D"] + (1 - self.smoothing) * reward_D
        return np.where(np.isfinite(losses_D) & np.isfinite(reward_D), mixed_D, state["rewards_D"])

    def _eps(self, num_steps: int, num_domains: int) -> float:
        """eps_t, t = ``num_steps`` since the warm-up."""
        decayed = math.sqrt(math.log(num_domains) / (num_domains * num_steps)) if num_steps > 0 else math.inf
        return min(1 / num_domains, max(decayed, self.eps_min))

    def _preferred(self, rewards_D: np.ndarray, eps_before: float) -> np.ndarray:
        """The mixture without the exploration, sum 1."""
        if self.form == "proportional":
            return rewards_D / rewards_D.sum()
        exponents_D = self.reward_scale * eps_before * rewards_D
        exponents_D = exponents_D - exponents_D.max()
        return softmax(exponents_D if self.exponent_floor is None else np.maximum(exponents_D, self.exponent_floor))
