"""What a measurement returns: values and their cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

OTHER = ("other_tokens", "other_macs")  # of these tokens, those that another model scored: times its weights
FROM_CACHE = {"source": "cache", "num_rows": 0, "num_tokens": 0, "seconds": 0.0}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A signal's values, one per pool row, and the cost of a model pass (empty where there was none)."""

    values: np.ndarray
    cost: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-4  # how far apart two measurements of the same weights may be, relative


def only(rows: np.ndarray, values_N: np.ndarray) -> np.ndarray:
    """The values of ``rows``, NaN for the others."""
    kept_N = np.full_like(values_N, np.nan)
    kept_N[rows] = values_N[rows]
    return kept_N


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What two passes of a decision cost together; that of a pass which was not made is empty."""
    if not one or not other:
        return dict(one or other)
    total = {**other, **one, "source": "measured" if "measured" in (one["source"], other["source"]) else one["source"]}
    for name in ("num_rows", "num_tokens", "num_tokens_kept", "seconds", "gradient_tokens", "out_of_memory", *OTHER):
        if name in one or name in other:
            total[name] = one.get(name, 0) + other.get(name, 0)
    if total["source"] == "measured":
        total["tokens_per_s"] = total["num_tokens"] / max(total["seconds"], 1e-9)
    files = {**one.get("files", {}), **other.get("files", {})}
    return {**total, "files": files} if files else total
