"""The verb ``audit``: is a run's record what it wrote, and in what do two runs differ?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataflex.algorithms.catalog import COMPONENTS, component_class
from dataflex.algorithms.combine import Part
from dataflex.cli.strict import build
from dataflex.core.errors import ConfigError
from dataflex.ledger.audit import Audit
from dataflex.ledger.audit import audit as audit_record
from dataflex.ledger.compare import Comparison, compare
from dataflex.ledger.findings import Finding, damage, note, num_damages
from dataflex.ledger.ledger import DIRECTORY, Ledger
from dataflex.ledger.summary import summary
from dataflex.train.method import Method
from dataflex.train.rederive import rederive

VERIFIED, DAMAGED, DIFFERENT = 0, 1, 3  # exit codes; 2 is a user's mistake, as in every verb
SHOWN_SEGMENTS = 40
WIDTH_WHEN_PIPED = 160


def audit(run_dirs: list[str], run_code: bool) -> int:
    """Verify one record, or two and their differences; return the exit code.

    Raises:
        ConfigError: not one or two directories, or one without a record.
    """
    if len(run_dirs) > 2:
        raise ConfigError(f"audit takes one run or two to compare, not {len(run_dirs)}")
    ledgers = [_open(run_dir) for run_dir in run_dirs]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_WHEN_PIPED)
    audits = []
    for ledger in ledgers:
        audits.append(audit_record(ledger))
        audits[-1].findings += _derive(audits[-1], run_code)
        _print(console, audits[-1])
    code = DAMAGED if any(num_damages(found.findings) for found in audits) else VERIFIED
    if len(audits) == 2:
        comparison = compare(*audits)
        _print_comparison(console, comparison)
        code = code or (VERIFIED if comparison.equal else DIFFERENT)
    return code


def _open(run_dir: str) -> Ledger:
    """The record in an output_dir, or the record's own folder, such as one that was moved aside."""
    path = Path(run_dir).resolve()
    for ledger in (Ledger(path), Ledger(path.parent, directory=path.name)):
        if ledger.exists():
            return ledger
    raise ConfigError(f"{run_dir} holds no record of a run ({DIRECTORY}/run.yaml); name the output_dir of a run")


def _derive(found: Audit, run_code: bool) -> list[Finding]:
    """Derive the choices again with the method that run.yaml names; other people's code runs only when asked for."""
    if found.facts is None:
        return []
    recorded = _recorded_parts(found)
    foreign = sorted({part["method"] for kind, part in recorded if part["method"] not in COMPONENTS[kind]})
    if foreign and not run_code:
        return [
            note(
                "choices",
                f"not derived again: the method {', '.join(map(repr, foreign))} is not one of this package, and a "
                "record must not run code; with --run-code it is imported",
            )
        ]
    said = [note("choices", f"code of {name!r} was run to derive them again") for name in foreign]
    try:
        method = _recorded_method(found, recorded)
    except ConfigError as error:
        return [*said, (note if foreign else damage)("choices", f"the method cannot be built: {error}")]
    return [*said, *rederive(found, method)]


def _recorded_parts(found: Audit) -> list[tuple[str, Mapping[str, Any]]]:
    """Kind, method and parameters of each component that run.yaml names and that decides on rows."""
    assert found.facts is not None
    parts = found.run.get("parts", {})
    beside = [("mixers", parts.get("mix")), *(("orders", order) for order in parts.get("order") or [])]
    named = [(kind, part) for kind, part in beside if isinstance(part, dict) and isinstance(part.get("method"), str)]
    return [("selectors", {"method": found.facts.method, "params": found.facts.params}), *named]


def _recorded_method(found: Audit, recorded: list[tuple[str, Mapping[str, Any]]]) -> Method:
    """The components that decided, as run.yaml names them."""
    built: dict[str, list[Part]] = {"selectors": [], "mixers": [], "orders": []}
    for kind, part in recorded:
        value = build(component_class(kind, part["method"]), part.get("params") or {}, where="run.yaml: ")
        built[kind].append(Part(name=part["method"], method=value, every=part.get("every", 1)))
    parts = found.run.get("parts", {})
    together = {name: parts[name] for name in ("every", "mode", "keep") if name in parts}
    return Method(
        name=built["selectors"][0].name,
        selector=built["selectors"][0].method,
        mixer=built["mixers"][0] if built["mixers"] else None,
        orders=tuple(built["orders"]),
        **together,
    )


def _print(console: Console, found: Audit) -> None:
    console.print(Text(_plain(str(found.ledger.root)), style="bold"), soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    for name, text in summary(found):
        table.add_row(Text(name), Text(_plain(text), overflow="fold"))
    console.print(table)
    for finding in sorted(found.findings, key=lambda finding: finding.severity):
        style = "red" if finding.severity == "damage" else ""
        console.print(Text(_plain(str(finding)), style=style), soft_wrap=True)
    damages = num_damages(found.findings)
    verdict = "verified" if not damages else f"{damages} damages found" if damages > 1 else "1 damage found"
    console.print(Text(f"{verdict}\n", style="red" if damages else "green"))


def _print_comparison(console: Console, found: Comparison) -> None:
    if found.differences:
        table = Table(title="What they were told differently", box=None, title_justify="left", padding=(0, 2, 0, 0))
        for header in ("", "first", "second"):
            table.add_column(header, overflow="fold")
        for difference in found.differences:
            table.add_row(*(Text(_value(v)) for v in (difference.name, difference.left, difference.right)))
        console.print(table)
    table = Table(title="What they chose", box=None, title_justify="left", padding=(0, 2, 0, 0))
    for header in ("segment", "steps", "decision", "window", "steps", "decision", "window", "rows in common"):
        table.add_column(header)
    for pair in found.segments[:SHOWN_SEGMENTS]:
        common = "?" if pair.jaccard is None else "all, in order" if pair.same else f"{pair.jaccard:.1%}"
        table.add_row(str(pair.segment), *_cells(pair.left), *_cells(pair.right), common)
    console.print(table)
    if len(found.segments) > SHOWN_SEGMENTS:
        console.print(f"and {len(found.segments) - SHOWN_SEGMENTS} more segments")
    if not found.same_pool:
        console.print("the runs were made on different data: one row number means two different rows")
    if found.equal:
        console.print("every decision is the same")
    elif found.first_apart is not None:
        console.print(f"the first segment that differs is {found.first_apart}")


def _cells(line: Mapping[str, Any] | None) -> tuple[Text, Text, Text]:
    if line is None:
        return Text("-"), Text("-"), Text("-")
    window = line["window"] or {}
    shares = [f"{window[name]:.3f}" for name in ("start_share", "end_share") if name in window]
    return Text(f"{line['start']}-{line['stop']}"), Text(_plain(line["decision"])), Text(" to ".join(shares) or "-")


def _value(value: Any) -> str:
    return "-" if value is None else _plain(str(value))


def _plain(text: str) -> str:
    """Text of a record without what a terminal would obey."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
