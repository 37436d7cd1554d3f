"""One run as its ledger tells it: what it is, where it stands, which lines are in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dataflex.core.errors import LedgerError
from dataflex.ledger.ledger import DIRECTORY, Ledger
from dataflex.ledger.summary import components

# Decisions that went by nothing that was measured; the others are "guided".
UNGUIDED = frozenset(
    {"warm-up", "first", "uniform", "random", "host order", "fixed", "drawn", "staged", "initial", "in order"}
)
SECRET_ENDINGS = ("token", "_key", "password", "secret")


@dataclass(frozen=True)
class Record:
    """What was read of a run; arrays are read one segment at a time, by ``ledger``."""

    path: Path
    ledger: Ledger
    run: dict[str, Any]
    lines: list[dict[str, Any]]
    segments: list[dict[str, Any]]  # in force, in order

    @cached_property
    def run_id(self) -> str | None:
        return self.run.get("run_id")

    @property
    def planned_steps(self) -> int | None:
        return mapping(self.run.get("plan")).get("num_steps")

    @cached_property
    def end(self) -> dict[str, Any] | None:
        """The line that says where the run ended; None while it goes on or after a crash."""
        for line in reversed(self.lines):
            if line["kind"] == "end":
                return line
            if line["kind"] in ("segment", "rollback"):
                return None
        return None

    @property
    def global_batch(self) -> int | None:
        """Samples of one optimizer step."""
        geometry = mapping(self.run.get("geometry"))
        try:
            return geometry["world_size"] * geometry["accumulation"] * geometry["micro_batch"]
        except (KeyError, TypeError):
            return None

    def num_trained(self, line: dict[str, Any]) -> int:
        """Rows of a segment that were trained: a run that ended early leaves the last segment's rest."""
        if self.end is None or self.global_batch is None:
            return line["num_rows"]
        return max(0, min(line["num_rows"], (self.end["step"] - line["start"]) * self.global_batch))


def read_record(run_dir: str | Path) -> Record:
    """Read a run directory, or the ``dataflex`` folder in it.

    Raises:
        LedgerError: nothing is recorded there, or run.yaml or the ledger is damaged.
    """
    path = Path(run_dir)
    if path.name == DIRECTORY and (path / "run.yaml").exists():
        path = path.parent
    ledger = Ledger(path)
    if not ledger.exists():
        raise LedgerError(
            f"{path} holds no record of a run ({DIRECTORY}/run.yaml is missing); name the output_dir of a dynamic run"
        )
    run = ledger.run()
    segments = [line for _, line in sorted(ledger.segments().items())]
    return Record(path, ledger, run, ledger.lines(), segments)


def is_guided(line: Mapping[str, Any]) -> bool:
    return line["decision"] not in UNGUIDED


def title_of(record: Record) -> str | None:
    """The components in a few words; a selector that chose nothing is none of them."""
    parts = components(mapping(record.run.get("parts")))
    method = record.run.get("method")
    nothing = method == "static" and not mapping(record.run.get("params")).get("path")
    words = [f"{decides} {part.get('method')}" for decides, part in parts]
    return ", ".join(([] if nothing and parts else [str(method)]) + words) if method or parts else None


def names_of(records: list[Record]) -> list[str]:
    """A short name for each run: its folder, with as many parents as tell them apart."""
    parts = [record.path.resolve().parts for record in records]
    names = ["/".join(part[-1:]) for part in parts]
    for depth in range(2, max(len(part) for part in parts) + 1):
        if len(set(names)) == len(names):
            break
        names = ["/".join(part[-depth:]) for part in parts]
    return names


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def without_secrets(config: Any) -> Any:
    """The config with access tokens and keys blotted out: a report is made to be passed on."""
    if isinstance(config, dict):
        return {
            key: "(hidden)" if str(key).endswith(SECRET_ENDINGS) and value else without_secrets(value)
            for key, value in config.items()
        }
    return config
