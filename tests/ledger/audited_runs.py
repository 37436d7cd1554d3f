"""Records to audit: whole runs of a curator without a trainer, and a forger who keeps checksums and chain in order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.cli.strict import build
from dataflex.core.errors import ConfigError
from dataflex.ledger.audit import Audit, audit
from dataflex.ledger.files import array_digest
from dataflex.ledger.findings import Finding
from dataflex.ledger.ledger import Ledger
from dataflex.ledger.lines import digest, seal
from dataflex.train.measured import Measured
from dataflex.train.method import Method
from dataflex.train.rederive import rederive

sys.path.append(str(Path(__file__).parents[1] / "train"))
from curated_runs import GEOMETRY, SCHEDULE, Run

from dataflex.algorithms.catalog import SELECTORS

NAMES = {cls: name for name, cls in SELECTORS.items()}


def make_run(output_dir: Path, selector: Any, *, begin: bool = True, **options: Any) -> Run:
    """A run whose run.yaml has all the fields of a real one."""
    run = Run(output_dir, selector, **options)
    curator = run.curator
    curator.method = Method(name=NAMES.get(type(selector), type(selector).__name__), selector=selector)
    measure = curator._measure

    def from_files(name: str, progress: Any, rows: Any = None) -> Measured:
        if name == "replay":
            former = Ledger(selector.path)
            return Measured(values=former.rows_of(former.segments()[progress.segment]))
        if name == "file":
            return Measured(values=np.load(selector.path))
        measured = measure(name, progress)
        return replace(measured, cost={**measured.cost, "seconds": 0.5, "tokens_per_s": 2.0})

    curator._measure = from_files
    return begin_run(run) if begin else run


def fingerprint_of(run: Run) -> dict[str, Any]:
    method = run.curator.method
    return {
        "learning_rate": 1e-4,
        "method": method.name,
        "params": {name: value for name, value in method.params.items() if name != "cache_dir"},
        "schedule": dict(vars(SCHEDULE)),
        "num_rows": len(run.pool),
        "data": run.pool.digest,
        "global_batch": GEOMETRY.global_batch,
        **({"world_size": 1} if method.selector.follows_host else {}),
    }


def begin_run(run: Run, checkpoint: Path | None = None) -> Run:
    method = run.curator.method
    record = {
        "fingerprint": fingerprint_of(run),
        "config": {"learning_rate": 1e-4, "logging_steps": 1},
        "method": method.name,
        "params": method.params,
        "schedule": dict(vars(SCHEDULE)),
        "plan": {"num_steps": run.plan.num_steps, "steps_per_epoch": run.plan.steps_per_epoch},
        "geometry": dict(vars(GEOMETRY)),
        "seed": run.curator.seed,
        "versions": {"numpy": "1"},
    }
    info = run.pool.info
    rows = {
        "row": np.arange(len(run.pool)),
        "num_tokens": info.num_tokens_N,
        "num_label_tokens": info.num_label_tokens_N,
    }
    run.curator.begin(record, rows, overwrite=False, checkpoint=checkpoint and str(checkpoint))
    run.ledger.unlock()
    return run


def finished(output_dir: Path, selector: Any, **options: Any) -> Run:
    run = make_run(output_dir, selector, **options)
    run.train()
    run.curator.end(run.plan.num_steps, None)
    return run


def save(run: Run, step: int) -> Path:
    checkpoint = run.output_dir / f"checkpoint-{step}"
    run.curator.save(checkpoint, step, fingerprint_of(run))
    return checkpoint


def interrupted(output_dir: Path, selector: Any, *, at: int, saved_at: int, **options: Any) -> tuple[Run, Path]:
    """A run killed after step ``at`` whose last checkpoint is of step ``saved_at``."""

    class Killed(BaseException):
        pass

    run = make_run(output_dir, selector, **options)
    checkpoints: list[Path] = []

    def after_step(step: int) -> None:
        if step == saved_at:
            checkpoints.append(save(run, step))
        if step == at:
            raise Killed

    with contextlib.suppress(Killed):
        run.train(after_step=after_step)
    return run, checkpoints[0]


def everything_found(output_dir: Path) -> list[Finding]:
    """What the command finds."""
    found: Audit = audit(Ledger(output_dir))
    if found.facts is None:
        return found.findings
    try:
        selector = build(SELECTORS[found.facts.method], found.facts.params, where="")
    except (KeyError, ConfigError):
        return found.findings
    return [*found.findings, *rederive(found, Method(name=found.facts.method, selector=selector))]


def damages(output_dir: Path) -> list[Finding]:
    return [finding for finding in everything_found(output_dir) if finding.severity == "damage"]


# damage


def edit_texts(output_dir: Path, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    """Change the ledger's lines as texts; checksums and chain stay as they were."""
    path = Ledger(output_dir).path
    path.write_bytes(b"".join(text + b"\n" for text in edit(path.read_bytes().split(b"\n")[:-1])))


def forge(output_dir: Path, edit: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Change the ledger's lines with new checksums and a new chain."""
    ledger = Ledger(output_dir)
    lines = [json.loads(text) for text in ledger.path.read_bytes().split(b"\n")[:-1]]
    lines = edit(lines) or lines
    previous, texts = digest(str(ledger.run_id()).encode()), []
    for line in lines:
        texts.append(seal({k: v for k, v in line.items() if k not in ("previous", "checksum")}, previous))
        previous = hashlib.sha256(texts[-1]).hexdigest()
    ledger.path.write_bytes(b"".join(text + b"\n" for text in texts))


def line_of(lines: list[dict[str, Any]], segment: int) -> dict[str, Any]:
    return next(line for line in reversed(lines) if line.get("segment") == segment)


def rewrite_array(path: Path, edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray] | None]) -> None:
    columns = {name: column.to_numpy().copy() for name, column in _columns(path)}
    pq.write_table(pa.table(edit(columns) or columns), path)


def _columns(path: Path) -> list[tuple[str, Any]]:
    table = pq.read_table(path)
    return [(name, table[name]) for name in table.column_names]


def forge_array(
    output_dir: Path, which: str, segment: int, edit: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray] | None]
) -> None:
    """Change an array and record its new sha256, with checksums and chain in order."""
    path = Ledger(output_dir).array_path(which, segment)
    rewrite_array(path, edit)
    columns = {name: column.to_numpy() for name, column in _columns(path)}
    if which == "segments":
        columns = {"row": columns["row"].astype(np.int64)}

    def record(lines: list[dict[str, Any]]) -> None:
        name = "rows" if which == "segments" else "signals"
        line_of(lines, segment)["sha256"][name] = array_digest(columns)

    forge(output_dir, record)
