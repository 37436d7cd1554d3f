"""The lines of a record, read without stopping at damage: what each says, and which are in force."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflex.ledger import schema
from dataflex.ledger.findings import Finding, damage, note
from dataflex.ledger.lines import complete_lines, digest, not_following, unseal
from dataflex.ledger.run_facts import Facts, without_cache

FILE = "ledger.jsonl"


@dataclass(frozen=True)
class Entry:
    """A readable line and its number in the file, from 1."""

    number: int
    content: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{FILE} line {self.number}"


@dataclass
class History:
    """All readable lines, the segments in force after the last, and what is wrong with any of them."""

    entries: list[Entry] = field(default_factory=list)
    in_force: dict[int, Entry] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.content["kind"] == kind]

    @property
    def num_steps(self) -> int:
        """Steps that the segments in force reach."""
        return max((entry.content["stop"] for entry in self.in_force.values()), default=0)

    @property
    def has_ended(self) -> bool:
        return bool(self.entries) and self.entries[-1].content["kind"] == "end"


def read_history(path: Path, run_id: str | None, facts: Facts | None) -> History:
    """Read and judge all lines.

    Args:
        path: of ledger.jsonl.
        run_id: of the run, None where run.yaml does not say.
        facts: what the lines must agree with, None where run.yaml does not say.
    """
    history = History()
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        history.findings.append(damage(FILE, f"it cannot be read ({error.strerror or error})"))
        return history
    previous = digest(run_id.encode()) if run_id is not None else None
    sound = True
    for number, text in enumerate(complete_lines(data), start=1):
        read = unseal(text, previous)
        where = f"{FILE} line {number}"
        if read.problem is not None:
            history.findings.append(damage(where, read.problem))
        # A changed line has another hash, so that the next one does not follow: that is said once.
        if not read.follows and sound:
            history.findings.append(damage(where, not_following(number)))
        sound, previous = read.problem is None, digest(text)
        if read.content is not None:
            _take(history, Entry(number, read.content))
    if data and not data.endswith(b"\n"):
        history.findings.append(note(FILE, "its last line is unfinished, as a kill leaves it; it does not count"))
    _replay(history, facts)
    return history


def _take(history: History, entry: Entry) -> None:
    """Keep a line whose fields are of the right types."""
    fields = schema.KINDS.get(entry.content["kind"])
    if fields is None:
        history.findings.append(damage(entry.where, f"its kind {entry.content['kind']!r} is unknown"))
        return
    wrong = schema.wrong_fields(entry.content, fields)
    if wrong:
        history.findings.append(damage(entry.where, ", ".join(wrong)))
    else:
        history.entries.append(entry)


def _replay(history: History, facts: Facts | None) -> None:
    """Follow the lines from the first to the last and note what cannot have happened."""
    in_force = history.in_force
    for entry in history.entries:
        line = entry.content
        if line["kind"] == "segment":
            wrong = _misplaced(line, in_force)
            if facts is not None:
                wrong += _against_run(line, facts)
            in_force[line["segment"]] = entry
        elif line["kind"] == "rollback":
            cancelled = [segment for segment in in_force if segment >= line["from_segment"]]
            wrong = [] if cancelled else [f"it cancels segment {line['from_segment']}, which was not recorded before"]
            for segment in cancelled:
                del in_force[segment]
        elif line["kind"] == "trained":
            wrong = _wrong_trained(line, in_force)
        elif line["kind"] == "resume":
            wrong = _wrong_resume(line, in_force, facts)
        else:
            wrong = _wrong_end(entry, history, facts)
        history.findings += [damage(entry.where, sentence) for sentence in wrong]


def _misplaced(line: Mapping[str, Any], in_force: Mapping[int, Entry]) -> list[str]:
    """Segments follow one another without gap or overlap, in steps and in number."""
    segment, start, stop = line["segment"], line["start"], line["stop"]
    wrong = []
    if segment in in_force:
        wrong.append(
            f"segment {segment} is recorded a second time, after line {in_force[segment].number}, and no rollback "
            "stands between them"
        )
    expected = max(in_force, default=-1) + 1
    if segment > expected:
        wrong.append(f"segment {segment} comes where segment {expected} is due: segments are missing before it")
    before = in_force.get(segment - 1)
    due = 0 if segment == 0 else before.content["stop"] if before is not None else start
    if start != due:
        what = "overlaps with" if start < due else "leaves a gap after"
        wrong.append(f"segment {segment} starts at step {start} and {what} the one before, which stops at step {due}")
    if stop <= start:
        wrong.append(f"segment {segment} stops at step {stop}, not after its start {start}")
    return wrong


def _against_run(line: Mapping[str, Any], facts: Facts) -> list[str]:
    """A segment's place is the schedule's; method, parameters and seed are those of the run."""
    wrong = []
    segment, plan = line["segment"], facts.plan
    if line["start"] >= plan.num_steps:
        wrong.append(f"segment {segment} starts at step {line['start']}, but the run has {plan.num_steps} steps")
    else:
        planned = plan.segment_at(line["start"])
        found = tuple(line[name] for name in ("segment", "start", "stop", "cycle", "update"))
        if found != (planned.index, planned.start, planned.stop, planned.cycle, planned.update):
            wrong.append(
                f"it records segment {segment}, steps {line['start']}-{line['stop']}, cycle {line['cycle']}, update "
                f"{line['update']}; the schedule of run.yaml has there segment {planned.index}, steps "
                f"{planned.start}-{planned.stop}, cycle {planned.cycle}, update {planned.update}"
            )
    if line["method"] != facts.method:
        wrong.append(f"segment {segment} was chosen by {line['method']}, run.yaml names {facts.method}")
    if without_cache(line["params"]) != without_cache(facts.params):
        wrong.append(f"segment {segment} was chosen with other parameters than run.yaml names")
    if line["seed"] != facts.seed:
        wrong.append(f"segment {segment} was chosen with seed {line['seed']}, run.yaml has {facts.seed}")
    return wrong


def _wrong_trained(line: Mapping[str, Any], in_force: Mapping[int, Entry]) -> list[str]:
    """What training showed is said of a segment that is in force."""
    entry = in_force.get(line["segment"])
    if entry is None:
        return [f"it tells of the training of segment {line['segment']}, which is not recorded before it"]
    steps = [entry.content[name] for name in ("start", "stop")]
    if steps != [line["start"], line["stop"]]:
        return [f"it tells of steps {line['start']}-{line['stop']} of a segment that has {steps[0]}-{steps[1]}"]
    return []


def _wrong_resume(line: Mapping[str, Any], in_force: Mapping[int, Entry], facts: Facts | None) -> list[str]:
    """What a run goes on from is recorded, and what was recorded after it is rolled back."""
    wrong, step = [], line["step"]
    reached = max((entry.content["stop"] for entry in in_force.values()), default=0)
    if step > reached:
        wrong.append(f"the run goes on after step {step}, but only {reached} steps are recorded before")
    later = [segment for segment, entry in in_force.items() if entry.content["start"] > step]
    if later:
        wrong.append(f"the run goes on after step {step}, but segment {min(later)}, which starts later, is in force")
    geometry = line["geometry"]
    if facts is not None and math.prod(geometry.values()) != facts.global_batch:
        wrong.append(f"the run goes on with {math.prod(geometry.values())} samples a step, it has {facts.global_batch}")
    return wrong


def _wrong_end(entry: Entry, history: History, facts: Facts | None) -> list[str]:
    """Training stopped within the last segment recorded; its cost is the sum of the lines before."""
    line, wrong = entry.content, []
    last = history.in_force[max(history.in_force)].content if history.in_force else {"start": 0, "stop": 0}
    if not last["start"] <= line["step"] <= last["stop"]:
        wrong.append(
            f"it says that training stopped at step {line['step']}, but the last segment recorded has the steps "
            f"{last['start']}-{last['stop']}"
        )
    if facts is not None and line["step"] > facts.plan.num_steps:
        wrong.append(f"it says that training stopped at step {line['step']} of {facts.plan.num_steps}")
    before = [e.content for e in history.of_kind("segment") if e.number < entry.number]
    measured = [s for s in (content["scoring"] for content in before) if s and s.get("source") == "measured"]
    counts = {"num_passes": len(measured)}
    counts |= {name: sum(scoring[name] for scoring in measured) for name in ("num_rows", "num_tokens")}
    for name, count in counts.items():
        if line.get("choosing", {}).get(name, count) != count:
            wrong.append(f"it counts {line['choosing'][name]} for {name} of all scoring, the lines before it {count}")
    return wrong
