"""Range checks of parameters, each failing with one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dataflex.core.errors import ConfigError, did_you_mean, shown


def require_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"{name} is {shown(value)}; it must be one of {', '.join(allowed)}{did_you_mean(value, allowed)}"
        )


def require_range(
    name: str,
    value: float,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> None:
    """Raise unless ``value`` is a finite number within the bounds."""
    if _is_finite(value) and above < value < below and at_least <= value <= at_most:
        return
    low = f"above {above:g}" if above > -math.inf else f"at least {at_least:g}" if at_least > -math.inf else ""
    high = f"below {below:g}" if below < math.inf else f"at most {at_most:g}" if at_most < math.inf else ""
    limits = " and ".join(part for part in (low, high) if part) or "a finite number"
    raise ConfigError(f"{name} is {shown(value)}; it must be {limits}")


def require_quantile_pair(name: str, value: object, *, at_ends: bool) -> None:
    """Raise unless ``value`` is (low, high) with 0 < low < high < 1, the ends 0 and 1 included if ``at_ends``."""
    pair = list(value) if isinstance(value, (list, tuple)) else []
    numbers = [float(v) for v in pair if _is_finite(v)]
    fits = len(pair) == len(numbers) == 2 and numbers[0] < numbers[1]
    if not fits or not (numbers[0] >= 0 and numbers[1] <= 1 if at_ends else numbers[0] > 0 and numbers[1] < 1):
        limits = "0 <= low < high <= 1" if at_ends else "0 < low < high < 1"
        raise ConfigError(f"{name} is {shown(value)}; it must be [low, high] with {limits}")


def _is_finite(value: object) -> bool:
    """A number that a float can hold; True and False are none."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
