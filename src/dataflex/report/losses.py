"""Training and evaluation losses of a run, as its trainer logged them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dataflex.report.record import Record

TRAINER_STATE, TRAINER_LOG, OUR_STATE = "trainer_state.json", "trainer_log.jsonl", "dataflex_state.safetensors"


def loss_series(record: Record) -> dict[str, list[list[float]]]:
    """Points [step, loss] by name: ``loss`` for training, ``eval_loss`` and the like for evaluation."""
    series: dict[str, dict[int, float]] = {}
    for entry in _entries(record):
        step = entry.get("step", entry.get("current_steps"))
        for name, value in entry.items():
            is_loss = name == "loss" or (name.startswith("eval_") and name.endswith("loss"))
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if is_loss and number and isinstance(step, int):
                series.setdefault(name, {})[step] = float(
                    value
                )  # the last entry of a step: after a resume, the new one
    return {name: [[step, loss] for step, loss in sorted(points.items())] for name, points in sorted(series.items())}


def files_read(record: Record) -> Iterator[Path]:
    """The files whose change means new losses."""
    yield record.path / TRAINER_LOG
    yield record.path / TRAINER_STATE
    yield from (checkpoint / TRAINER_STATE for _, checkpoint in _checkpoints(record.path))


def _entries(record: Record) -> Iterable[dict[str, Any]]:
    states = [state for state in (_root_state(record), _checkpoint_state(record)) if state]
    newest = max(states, key=lambda state: state.get("global_step") or 0, default={})
    entries = [entry for entry in newest.get("log_history") or [] if isinstance(entry, dict)]
    if record.end is None:  # a run under way has logged more than its newest checkpoint knows
        known = max((entry.get("step") or 0 for entry in entries), default=-1)
        entries += [entry for entry in _logged(record) if entry.get("current_steps", -1) > known]
    return entries


def _root_state(record: Record) -> dict[str, Any] | None:
    path = record.path / TRAINER_STATE
    return _read_json(path) if record.end is not None or _is_of_this_run(record, path) else None


def _checkpoint_state(record: Record) -> dict[str, Any] | None:
    """The newest checkpoint of this very run: older runs may have left theirs in the same directory."""
    for _, checkpoint in sorted(_checkpoints(record.path), reverse=True):
        try:
            with safe_open(checkpoint / OUR_STATE, framework="numpy") as file:
                run_id = json.loads(file.metadata()["dataflex"])["run_id"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            continue
        if run_id == record.run_id and (state := _read_json(checkpoint / TRAINER_STATE)):
            return state
    return None


def _logged(record: Record) -> Iterator[dict[str, Any]]:
    """Lines of LLaMA-Factory's log, which it writes at every logging step."""
    path = record.path / TRAINER_LOG
    if not _is_of_this_run(record, path):
        return
    for text in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(text)
        except ValueError:  # empty, or being written
            continue
        if isinstance(entry, dict):
            yield entry


def _checkpoints(path: Path) -> list[tuple[int, Path]]:
    found = [(folder.name.rsplit("-", 1)[1], folder) for folder in path.glob("checkpoint-*")]
    return [(int(number), folder) for number, folder in found if number.isdigit()]


def _is_of_this_run(record: Record, path: Path) -> bool:
    """Written since this run began, which is when rows.parquet was written."""
    try:
        return path.stat().st_mtime >= (record.ledger.root / "rows.parquet").stat().st_mtime
    except OSError:
        return False


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
