"""The lines of a model card that say how the training data were chosen, from the record of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.core.errors import LedgerError
from dataflex.ledger.audit import Audit, audit
from dataflex.ledger.findings import num_damages
from dataflex.ledger.ledger import Ledger
from dataflex.ledger.summary import components, nothing_selects

BEGIN, END = "<!-- dataflex: how the training data were chosen -->", "<!-- dataflex: end -->"


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run that trained a model or an adapter, and up to which step."""

    ledger: Ledger
    step: int | None  # of a checkpoint; None: to its end


def find_run(folder: str | Path) -> TrainedRun | None:
    """The run whose output_dir, or checkpoint of it, a folder is; None where there is no record."""
    path = Path(folder)
    if not path.is_dir():
        return None
    if Ledger(path).exists():
        return TrainedRun(ledger=Ledger(path), step=None)
    name, _, number = path.resolve().name.rpartition("-")
    parent = path.resolve().parent
    if name == "checkpoint" and number.isdigit() and Ledger(parent).exists():
        return TrainedRun(ledger=Ledger(parent), step=int(number))
    return None


def card_lines(run: TrainedRun) -> list[tuple[str, str]]:
    """What a card says of a run: names and texts.

    Raises:
        LedgerError: the record is damaged.
    """
    found = audit(run.ledger)
    if num_damages(found.findings) or found.facts is None:
        raise LedgerError(
            f"{run.ledger.root} is damaged, and a model card must not quote it; see dataflex-cli audit "
            f"{run.ledger.root.parent}"
        )
    record, facts = found.run, found.facts
    lines = [entry.content for _, entry in sorted(found.history.in_force.items())]
    reached = _reached(found)
    best = _best_step(found) if run.step is None else None
    step = min(reached, run.step if run.step is not None else best if best is not None else reached)
    trained = [line for line in lines if line["start"] < step]
    rows = [run.ledger.rows_of(line)[: (step - line["start"]) * facts.global_batch] for line in trained]
    drawn = np.concatenate([np.zeros(0, dtype=np.int64), *rows])
    parts = record.get("parts") if isinstance(record.get("parts"), dict) else {}
    said = [("base model", _base_model(record)), ("train type", str(record["config"].get("train_type") or "in Python"))]
    if record["config"].get("component_name") is not None:
        said.append(("component", str(record["config"]["component_name"])))
    if not parts or not nothing_selects(facts):
        said.append(("method", _method(facts.method, facts.params)))
    for word, part in components(parts or {}):
        said.append((word, _method(str(part.get("method")), part.get("params") or {})))
    schedule = ", ".join(f"{name} {value}" for name, value in record["schedule"].items())
    updates = sum(line["update"] is not None for line in trained)
    said += [
        ("schedule", schedule),
        ("steps", f"{step} of {facts.plan.num_steps}, {facts.global_batch} samples each{_went_on(best, reached)}"),
        ("decisions", f"{updates}; segments of warm-up: {len(trained) - updates}"),
        ("samples", f"{len(drawn):,}, {len(np.unique(drawn)):,} different ones of a pool of {facts.num_rows:,}"),
        ("seed", str(facts.seed)),
        ("data fingerprint", f"sha256 {facts.data}"),
        ("ledger", f"sha256 {hashlib.sha256(run.ledger.path.read_bytes()).hexdigest()}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in record["versions"].items())),
    ]
    return said


def _reached(found: Audit) -> int:
    """The step that training came to."""
    ends = found.history.of_kind("end")
    return ends[-1].content["step"] if found.history.has_ended else found.history.num_steps


def _best_step(found: Audit) -> int | None:
    """The step whose weights the run kept at its end, where that is not its last.

    The host names a best checkpoint whenever it has a metric for it, also where it does not load it.
    """
    if not found.history.has_ended or found.run["config"].get("load_best_model_at_end") is not True:
        return None
    name = Path(found.history.of_kind("end")[-1].content["best_checkpoint"] or "").name
    number = name.removeprefix("checkpoint-")
    return int(number) if name.startswith("checkpoint-") and number.isdigit() else None


def _went_on(best: int | None, reached: int) -> str:
    return f"; the best checkpoint, training went on to step {reached}" if best is not None and best < reached else ""


def hub_name(name: str) -> str | None:
    """A model's name if it is one of the hub; None for a folder, of whose place a card says nothing."""
    is_on_hub = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()
    return name if is_on_hub else None


def _base_model(record: Mapping[str, Any]) -> str:
    """Its name on the hub, else that of its folder alone: where it lay on this machine is nobody's business."""
    name = str(record["config"].get("model_name_or_path") or record["fingerprint"].get("model_name_or_path") or "")
    name = hub_name(name) or Path(name).name
    weights = record.get("base_weights")
    known = [name or "not recorded", *([f"frozen weights sha256 {weights}"] if isinstance(weights, str) else [])]
    return ", ".join(known)


def _method(name: str, params: Mapping[str, Any]) -> str:
    named = ", ".join(f"{key}={value}" for key, value in params.items() if value is not None and key != "cache_dir")
    return f"{name} ({named})" if named else name


def section_of(*folders: str | Path) -> str:
    """The section for a card of one's own: of the runs that trained a model, by output_dir or checkpoint in it.

    Raises:
        LedgerError: a folder holds no record, or a damaged one.
    """
    runs = []
    for folder in folders:
        run = find_run(folder)
        if run is None:
            raise LedgerError(f"{folder} holds no record of a run; name its output_dir, or a checkpoint in it")
        runs.append(card_lines(run))
    return card_section(runs)


def card_section(runs: list[list[tuple[str, str]]]) -> str:
    """The section as Markdown, one table for each run; what a second export finds and replaces."""
    tables = ["\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(text)} |" for name, text in run)]) for run in runs]
    head = "## How the training data were chosen"
    by = "Recorded by DataFlex; `dataflex-cli audit RUN_DIR` verifies the record whose hash stands below."
    return "\n\n".join([BEGIN, head, by, *tables, END])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def with_section(text: str, section: str) -> str:
    """A card's text with the section put in, or in the place of an earlier one."""
    begin, end = text.find(BEGIN), text.find(END)
    if 0 <= begin < end:
        return text[:begin] + section + text[end + len(END) :]
    return f"{text.rstrip()}\n\n{section}\n" if text.strip() else f"{section}\n"


def without_section(text: str) -> str | None:
    """A card's text without the section; None where it holds none."""
    begin, end = text.find(BEGIN), text.find(END)
    if not 0 <= begin < end:
        return None
    kept = [text[:begin].rstrip(), text[end + len(END) :].strip()]
    return "\n\n".join(part for part in kept if part) + "\n"
