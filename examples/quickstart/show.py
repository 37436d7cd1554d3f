"""Show which tasks a run drew its rows from, segment by segment.

python examples/quickstart/show.py saves/quickstart/delta_loss
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

# The words for rows drawn before a component has anything to go by; None in case a warm-up records no word.
UNGUIDED = (None, "warm-up", "warmup", "first", "uniform", "random")


class ShowError(Exception):
    """Something the user can read in one sentence."""


def need(path: Path) -> Path:
    """The path, if there is a file."""
    if not path.is_file():
        raise ShowError(f"{path} is missing; is the folder the output_dir of a dataflex run?")
    return path


def read_segments(ledger: Path) -> list[dict[str, Any]]:
    """The segments that count: a rollback takes earlier ones back, and the later line of a segment wins."""
    segments: dict[int, dict[str, Any]] = {}
    for line in need(ledger).read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # the run is still writing this line, or died doing so
        entry = json.loads(line)
        if entry.get("kind") == "segment":
            segments[entry["segment"]] = entry
        elif entry.get("kind") == "rollback":
            segments = {index: kept for index, kept in segments.items() if index < entry["from_segment"]}
    return [segments[index] for index in sorted(segments)]


def read_tasks(rows: Path) -> dict[int, str]:
    """The task of every row of the pool, or its dataset where the pool names no tasks."""
    label = "task" if "task" in pq.read_schema(need(rows)).names else "dataset"
    table = pq.read_table(rows, columns=["row", label])
    return dict(zip(table["row"].to_pylist(), table[label].to_pylist(), strict=True))


def count_tasks(segment: Path, tasks: dict[int, str]) -> Counter[str]:
    """How many of a segment's rows each task gave."""
    return Counter(tasks[row] for row in pq.read_table(need(segment), columns=["row"])["row"].to_pylist())


def is_guided(segment: dict[str, Any]) -> bool:
    """Whether a component chose the rows by what it measured."""
    return segment["decision"] not in UNGUIDED


def make_table(segments: list[dict[str, Any]], counts: list[Counter[str]], tasks: dict[int, str]) -> Table:
    """One line a task and one column a segment; the tasks that guided segments drew most come first."""
    guided: Counter[str] = sum((n for s, n in zip(segments, counts, strict=True) if is_guided(s)), Counter())
    total: Counter[str] = sum(counts, Counter())
    table = Table(title="Rows drawn from each task", show_footer=True)
    table.add_column("task", footer="all tasks")
    for segment, count in zip(segments, counts, strict=True):
        header = f"steps {segment['start']}-{segment['stop']}\n{segment['decision'] or 'warm-up'}"
        table.add_column(header, justify="right", footer=str(count.total()))
    table.add_column("total", justify="right", footer=str(total.total()))
    for task in sorted(set(tasks.values()), key=lambda task: (-guided[task], -total[task], task)):
        table.add_row(task, *(str(count[task]) for count in counts), str(total[task]))
    return table


def show(run_dir: Path, console: Console) -> None:
    """Print the table, and where the adapter and the ledger are."""
    record = run_dir / "dataflex"
    ledger = record / "ledger.jsonl"
    segments = read_segments(ledger)
    if not segments:
        raise ShowError(f"{ledger} names no segment yet.")
    tasks = read_tasks(record / "rows.parquet")
    counts = [count_tasks(record / "segments" / f"{segment['segment']:06}.parquet", tasks) for segment in segments]
    console.print(make_table(segments, counts, tasks))
    adapter = run_dir / "adapter_model.safetensors"
    console.print(f"Adapter: {adapter if adapter.is_file() else 'not saved yet'}", soft_wrap=True, highlight=False)
    console.print(f"Ledger:  {ledger}", soft_wrap=True, highlight=False)


def main() -> int:
    """Run the program; 0, or 2 after one sentence on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="the output_dir of a run")
    try:
        show(parser.parse_args().run_dir, Console())
    except (ShowError, OSError) as error:
        print(f"show.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
