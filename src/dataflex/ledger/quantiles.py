"""Quantiles of the recorded columns, as a ledger line keeps them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

LEVELS = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)


def quantiles(columns_N: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Minimum, 5, 25, 50, 75, 95 % and maximum of the finite values of each float column."""
    result = {}
    for name, values in columns_N.items():
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values[:0]
        if name != "weight" and len(finite):
            numbers = np.quantile(finite.astype(np.float64), LEVELS)
            result[name] = {f"{level:g}": float(number) for level, number in zip(LEVELS, numbers, strict=True)}
    return result
