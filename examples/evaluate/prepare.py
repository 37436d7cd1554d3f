"""Write 100 puzzles that the quickstart's pool has not, to evaluate its models on; with four choices each as well.

    python examples/quickstart/prepare.py
    python examples/evaluate/prepare.py

The files lie in examples/evaluate/data afterwards.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
QUICKSTART = HERE.parent / "quickstart"
ROWS_PER_TASK = 5
SEED = 8  # the pool's is 7
NUM_CHOICES = 4


def held_out(task: str, known: set[str], rng: random.Random) -> list[dict[str, Any]]:
    """Puzzles of one task, none of which is in the pool; the wrong choices are right answers of its other puzzles."""
    from reasoning_gym import create_dataset

    items = [item for item in create_dataset(task, size=80, seed=SEED) if item["question"] not in known]
    answers = list(dict.fromkeys(item["answer"] for item in items))
    rows = []
    for item in items[:ROWS_PER_TASK]:
        wrong = [answer for answer in answers if answer != item["answer"]]
        choices = [item["answer"], *rng.sample(wrong, min(len(wrong), NUM_CHOICES - 1))]
        rng.shuffle(choices)
        puzzle = {"input": item["question"], "output": item["answer"], "task": task}
        rows.append({**puzzle, "choices": choices, "place": choices.index(item["answer"])})
    return rows


def main() -> int:
    """Run the program; 0, or 2 after one sentence on stderr."""
    pool = QUICKSTART / "data" / "reasoning_pool.json"
    if not pool.is_file():
        print(f"{pool} does not exist; run python examples/quickstart/prepare.py first", file=sys.stderr)
        return 2
    known_rows = json.loads(pool.read_text(encoding="utf-8"))
    known = {row["instruction"] for row in known_rows}
    rng = random.Random(SEED)
    rows = [row for task in dict.fromkeys(row["task"] for row in known_rows) for row in held_out(task, known, rng)]
    (HERE / "data").mkdir(exist_ok=True)
    for name, keys in (("puzzles", ("input", "output", "task")), ("puzzles_choices", tuple(rows[0]))):
        content = [{key: row[key] for key in keys} for row in rows]
        path = HERE / "data" / f"{name}.json"
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(f"{len(content)} rows: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
