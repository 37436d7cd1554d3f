"""What an audit finds: damage, or a note that is none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that an audit has to say."""

    severity: Literal["damage", "note"]
    where: str  # a file of the record, a line of it, or a segment
    sentence: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.sentence}"


def damage(where: str, sentence: str) -> Finding:
    return Finding("damage", where, sentence)


def note(where: str, sentence: str) -> Finding:
    return Finding("note", where, sentence)


def num_damages(findings: Iterable[Finding]) -> int:
    return sum(finding.severity == "damage" for finding in findings)
