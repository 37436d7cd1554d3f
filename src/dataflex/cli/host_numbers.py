"""Numbers in the host's config, which nobody has checked yet."""

from __future__ import annotations

from typing import Any

from dataflex.core.errors import ConfigError, shown

MOST_NUMBER = 2**63  # of anything that is counted


def number(host: dict[str, Any], key: str, default: float, *, whole: bool = False) -> Any:
    """The number under a key of the host's config, or the default.

    Raises:
        ConfigError: it is no number, not finite, 2**63 or more, or should be whole and is not.
    """
    value = host.get(key, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST_NUMBER  # no NaN
    if not is_number or (whole and value != int(value)):
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{key} is {shown(value)}; it must be {what} below {MOST_NUMBER}")
    return int(value) if whole else value


def positive(key: str, value: Any) -> int:
    """The same value, if it is a whole number of rows and at least 1; else a ConfigError."""
    if number({key: value}, key, 0, whole=True) < 1:
        raise ConfigError(f"{key} is {shown(value)}; it must be at least 1, or left out")
    return int(value)
