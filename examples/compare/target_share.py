"""How many of the rows that each method chose are of the target's task, from the records of the comparison.

python examples/compare/target_share.py [saves/compare_target]
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from dataflex.ledger.ledger import Ledger

TASK = "median"


def shares(run: Path) -> tuple[float, float, Counter[str]]:
    """Share of the task among rows chosen (first decision, all decisions), and how often each task was chosen."""
    ledger = Ledger(run)
    tasks = pq.read_table(ledger.root / "rows.parquet", columns=["task"])["task"].to_pylist()
    chosen = [line for _, line in sorted(ledger.segments().items()) if line["decision"] != "warm-up"]
    counted = [Counter(tasks[row] for row in ledger.rows_of(line)) for line in chosen]
    total = sum(counted, Counter())
    return counted[0][TASK] / counted[0].total(), total[TASK] / total.total(), total


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "saves/compare_target")
    print("| method | first decision | all decisions | most chosen tasks |\n|---|---:|---:|---|")
    for method in sorted(path for path in (root / "runs").iterdir() if path.is_dir()):
        runs = [shares(run.parent) for run in sorted(method.rglob("dataflex")) if (run / "ledger.jsonl").exists()]
        if not runs:
            continue
        first, every = (sum(run[k] for run in runs) / len(runs) for k in (0, 1))
        total = sum((run[2] for run in runs), Counter())
        most = ", ".join(f"{task} {count / total.total():.0%}" for task, count in total.most_common(4))
        print(f"| {method.name} | {first:.1%} | {every:.1%} | {most} |")


if __name__ == "__main__":
    main()
