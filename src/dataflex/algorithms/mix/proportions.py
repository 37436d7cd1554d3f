"""Proportions as a user writes them: a list, a mapping of names, or a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from dataflex.algorithms.base import DomainInfo
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.core.domains import shares
from dataflex.core.errors import ConfigError, did_you_mean, shown

# In the order of the domains, or by name (a domain that is left out has none), or equal, or by size.
Proportions = tuple[float, ...] | dict[str, float] | Literal["uniform", "sizes"]


def check_proportions(name: str, value: Any) -> None:
    """Raise unless the value can be proportions of some domains: numbers >= 0, one of them above 0."""
    if isinstance(value, str):
        return require_one_of(name, value, ("uniform", "sizes"))
    if not isinstance(value, (list, tuple, Mapping)):
        raise ConfigError(f"{name} is {shown(value)}; write one number for each domain, or uniform, or sizes")
    numbers = list(value.values() if isinstance(value, Mapping) else value)
    for number in numbers:
        require_range(f"a number of {name}", number, at_least=0)
    if not any(number > 0 for number in numbers):
        raise ConfigError(f"{name} is {shown(value)}; at least one number must be above 0")


def resolve_proportions(name: str, value: Any, domains: DomainInfo, sizes_D: np.ndarray) -> np.ndarray:
    """The value as shares of these domains, sum 1, float64, shape (D,).

    Raises:
        ConfigError: another number of domains, or the name of none.
    """
    known = ", ".join(domains.names)
    if isinstance(value, str):
        return shares(np.ones(len(domains)) if value == "uniform" else sizes_D)
    if isinstance(value, Mapping):
        for domain in value:
            if domain not in domains.names:
                raise ConfigError(
                    f"{name} names the domain {shown(domain)}{did_you_mean(domain, domains.names)}; known: {known}"
                )
        value = [value.get(domain, 0.0) for domain in domains.names]
    if len(value) != len(domains):
        raise ConfigError(f"{name} has {len(value)} numbers; the data has {len(domains)} domains: {known}")
    return shares(np.array(value, dtype=np.float64))
