"""Two records side by side: what they were told, what they chose, where they part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex.core.errors import LedgerError
from dataflex.ledger.audit import Audit

SECTIONS = ("params", "parts", "schedule", "config", "versions")
FACTS = ("num_rows", "data", "global_batch")


@dataclass(frozen=True)
class Difference:
    """A value of run.yaml that is another in the second run; None where one has none."""

    name: str
    left: Any
    right: Any


@dataclass(frozen=True)
class SegmentPair:
    """One segment of both runs."""

    segment: int
    left: Mapping[str, Any] | None  # ledger lines; None where a run has no such segment
    right: Mapping[str, Any] | None
    same: bool  # the same steps, trained on the same rows in the same order
    jaccard: float | None  # distinct rows in both / distinct rows in either; None where it cannot be told


@dataclass(frozen=True)
class Comparison:
    differences: list[Difference]
    segments: list[SegmentPair]
    same_pool: bool  # else one row number means two different rows

    @property
    def equal(self) -> bool:
        """Every decision is the same."""
        return self.same_pool and all(pair.same for pair in self.segments)

    @property
    def first_apart(self) -> int | None:
        """The first segment that differs."""
        return next((pair.segment for pair in self.segments if not pair.same), None)


def compare(left: Audit, right: Audit) -> Comparison:
    """Compare two audited records."""
    data = [_section(audit.run, "fingerprint").get("data") for audit in (left, right)]
    numbers = sorted(left.history.in_force.keys() | right.history.in_force.keys())
    return Comparison(
        differences=list(_differences(left.run, right.run)),
        segments=[_pair(left, right, segment) for segment in numbers],
        same_pool=data[0] == data[1],
    )


def _differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[Difference]:
    for name in ("method", "seed"):
        if left.get(name) != right.get(name):
            yield Difference(name, left.get(name), right.get(name))
    for section, names in (("fingerprint", FACTS), *((section, None) for section in SECTIONS)):
        theirs, ours = _section(left, section), _section(right, section)
        for name in names or sorted({*theirs, *ours}, key=str):
            if theirs.get(name) != ours.get(name):
                yield Difference(f"{section}: {name}", theirs.get(name), ours.get(name))


def _section(run: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = run.get(name)
    return found if isinstance(found, dict) else {}


def _pair(left: Audit, right: Audit, segment: int) -> SegmentPair:
    lines = [audit.history.in_force.get(segment) for audit in (left, right)]
    first, second = (entry.content if entry is not None else None for entry in lines)
    if first is None or second is None:
        return SegmentPair(segment, first, second, same=False, jaccard=None)
    same = all(first[name] == second[name] for name in ("start", "stop"))
    same = same and first["sha256"]["rows"] == second["sha256"]["rows"]
    try:
        rows, others = left.ledger.rows_of(first), right.ledger.rows_of(second)
    except LedgerError:  # said by the audit
        return SegmentPair(segment, first, second, same=False, jaccard=None)
    either = len(np.union1d(rows, others))
    jaccard = len(np.intersect1d(rows, others)) / either if either else 1.0
    return SegmentPair(segment, first, second, same=same, jaccard=jaccard)
