"""Checkpoints as witnesses: what they were trained on must be in the record, whose last lines else could be cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataflex.ledger.findings import Finding, damage
from dataflex.ledger.history import FILE, History
from dataflex.ledger.trained import STATE_FILE, trained_digest

MOST_HEADER = 2**24  # bytes of a header that is read


def audit_checkpoints(output_dir: Path, run_id: str | None, history: History) -> Iterator[Finding]:
    """Yield what contradicts the checkpoints of this very run; after a rollback they may be of an older branch."""
    if run_id is None or history.of_kind("rollback"):
        return
    in_force = {segment: entry.content for segment, entry in history.in_force.items()}
    for path in sorted(output_dir.glob(f"checkpoint-*/{STATE_FILE}")):
        state = _state(path)
        step = state.get("step")
        if state.get("run_id") != run_id or not isinstance(step, int):
            continue
        name = path.parent.name
        if step > history.num_steps:
            yield damage(
                FILE, f"it reaches step {history.num_steps}, but {name} was trained to step {step}: lines are missing"
            )
        elif "trained" in state and state["trained"] != trained_digest(in_force, step):
            yield damage(FILE, f"{name} was trained on other rows up to step {step} than are recorded")


def _state(path: Path) -> Mapping[str, Any]:
    """Values of a checkpoint's state file, from its header alone; empty where it cannot be read."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MOST_HEADER else {}
        state = json.loads(header["__metadata__"]["dataflex"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}
