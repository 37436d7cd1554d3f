"""How many steps a method may train for a given amount of compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dataflex.core.errors import ConfigError

MOST_STEPS = 10_000_000
TOLERANCE = 1e-9  # relative: the dearest method must get the very steps that its own cost was measured at


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a method was measured to cost."""

    flops_per_step: float  # of training
    flops_per_pass: float  # of scoring the pool once; 0 where the method never does

    def total(self, num_steps: int, num_passes: int) -> float:
        return num_steps * self.flops_per_step + num_passes * self.flops_per_pass


def steps_within(budget: float, price: Price, passes: Callable[[int], int]) -> int:
    """The largest number of steps whose training and choosing together cost at most ``budget``.

    Args:
        budget: FLOPs.
        passes: number of scoring passes of a run of so many steps; must not fall when steps grow.

    Raises:
        ConfigError: not even one step fits.
    """
    limit = budget * (1 + TOLERANCE)

    def fits(num_steps: int) -> bool:
        return price.total(num_steps, passes(num_steps)) <= limit

    if not fits(1):
        raise ConfigError(
            f"a budget of {budget:.3g} FLOPs pays for no step: one step and its choosing cost "
            f"{price.total(1, passes(1)):.3g}; raise flops"
        )
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
        if low > MOST_STEPS:
            raise ConfigError(f"a budget of {budget:.3g} FLOPs pays for more than {MOST_STEPS:,} steps; lower flops")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
