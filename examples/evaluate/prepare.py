"""Write held-out questions of the quickstart's tasks: other numbers and words than the pool that was trained on.

    python examples/evaluate/prepare.py

It needs the quickstart's packages; the models are those that `make demo` leaves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "quickstart"))
from prepare import TASKS  # noqa: E402

ROWS_PER_TASK, SEED = 5, 1007  # the pool's seed is 7


def main() -> None:
    from reasoning_gym import create_dataset

    rows = [
        {"input": item["question"], "output": item["answer"], "task": task}
        for task in TASKS
        for item in create_dataset(task, size=ROWS_PER_TASK, seed=SEED)
    ]
    path = Path(__file__).resolve().parent / "data" / "held_out.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    print(f"{len(rows)} questions: {path}")


if __name__ == "__main__":
    main()
