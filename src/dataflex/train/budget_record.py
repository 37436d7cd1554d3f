"""What passes between a scoring budget and the decisions made under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BUDGET = "budget."  # prefix in a checkpoint
# Rows of a panel: fewer tell too little, so that the share of several decisions is saved up; where the initial losses
# are not known, more tell hardly anything. The panel of step 0 has FIRST_ROWS at least, where a third of the budget
# affords them.
FEWEST_ROWS, MOST_ROWS, FIRST_ROWS = 8, 500, 25
PANEL_ROWS = 100  # of each decision that an initial pass must leave affordable
CACHED = "cached initial losses"


@dataclass(frozen=True, kw_only=True)
class Request:
    """Rows to be scored now."""

    rows: np.ndarray | None  # None: all of the pool
    why: str  # "initial pass", "panel", "cached initial losses", "free levels"

    @property
    def source(self) -> str:
        """Where losses come from that no pass measures now."""
        return "cache" if self.why == CACHED else "estimate"


@dataclass(frozen=True, kw_only=True)
class Budgeted:
    """The losses of a decision, measured or estimated, and how they came about."""

    losses_N: np.ndarray  # float32
    scored_N: np.ndarray  # measured exactly for this decision, bool
    errors: np.ndarray  # of rows that were left out of the estimate; empty where none was made
    record: dict[str, Any] = field(default_factory=dict)  # for the ledger, JSON values

    @property
    def signals(self) -> dict[str, np.ndarray]:
        """Those of ``BUDGET_SIGNALS``."""
        return recorded_signals(self.record, {"scored": self.scored_N})


def recorded_signals(record: Mapping[str, Any], columns_N: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of ``BUDGET_SIGNALS``, from what a ledger keeps of a decision."""
    signals = {"scored": np.asarray(columns_N["scored"], dtype=bool)}
    if "improved_share" in record:
        signals["improved_share"] = np.array([record["improved_share"]])
    return signals
