"""Stages: proportions that change with the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dataflex.algorithms.base import DomainInfo, Mixture, Progress, Signals, State
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.algorithms.mix.base import MixerBase
from dataflex.algorithms.mix.proportions import check_proportions, resolve_proportions
from dataflex.core.errors import ConfigError, shown


@dataclass(frozen=True, kw_only=True)
class Stages(MixerBase):
    """Proportions given for some optimizer steps, held or interpolated in between; the last stage holds.

    With p_k at step s_k and s_k <= s < s_{k+1}: p(s) = p_k (``step``), or p_k + (s - s_k) / (s_{k+1} - s_k) x
    (p_{k+1} - p_k) (``linear``). A segment has the proportions of its first step.

    Args:
        stages: pairs [step, proportions], steps ascending from 0; proportions as in ``static``.
        between: ``step`` or ``linear``.

    Raises:
        ConfigError: a parameter out of range, an unknown domain.

    Source: staged pre-training mixtures; own definition.
    """

    stages: tuple[list[Any], ...]
    between: Literal["step", "linear"] = "step"

    source: ClassVar[str] = "staged mixtures"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one_of("between", self.between, ("step", "linear"))
        last = -1
        for stage in self.stages:
            if not isinstance(stage, (list, tuple)) or len(stage) != 2:
                raise ConfigError(f"a stage is {shown(stage)}; write [step, proportions]")
            step, proportions = stage
            if not isinstance(step, int) or isinstance(step, bool):
                raise ConfigError(f"the step of a stage is {shown(step)}; it must be a whole number")
            require_range("the step of a stage", step, above=last)
            check_proportions(f"the proportions of step {step}", proportions)
            last = step
        if not self.stages or self.stages[0][0] != 0:
            raise ConfigError(f"stages is {shown(self.stages)}; the first stage must begin at step 0")

    def init(self, domains: DomainInfo) -> State:
        sizes_D = self.sizes_D(domains)
        stages_SxD = [resolve_proportions(f"the stage of step {s}", p, domains, sizes_D) for s, p in self.stages]
        return {"stages_SxD": np.stack(stages_SxD), "proportions_D": stages_SxD[0]}

    def mix(
        self, state: State, signals: Signals, progress: Progress, rng: np.random.Generator
    ) -> tuple[Mixture, State]:
        starts_S = np.array([step for step, _ in self.stages])
        stage = int(np.searchsorted(starts_S, progress.step, side="right")) - 1
        proportions_D = np.array(state["stages_SxD"][stage])
        if self.between == "linear" and stage + 1 < len(starts_S):
            way = (progress.step - starts_S[stage]) / (starts_S[stage + 1] - starts_S[stage])
            proportions_D += way * (state["stages_SxD"][stage + 1] - proportions_D)
        return Mixture(proportions_D=proportions_D, decision="staged", notes={"stage": stage}), state
