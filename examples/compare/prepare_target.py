"""Write the data of the comparison with a target, and train the small model that all its runs start from.

    python examples/compare/prepare_target.py

Twenty tasks in equal parts; the target are rows of one of them, which neither the pool nor the held-out rows have.
"""

from __future__ import annotations

from more_tasks import ALL_TASKS, median
from prepare import MODELS, UNTRAINED, held_out_losses, train_base, write_data, write_sets, write_untrained
from tasks import make_rows

NUM_BASE, NUM_POOL, NUM_TARGET, NUM_HELD_OUT = 4800, 2400, 32, 200
BASE_20 = MODELS / "base_20"


def write_target_data() -> None:
    """Rows for the base model and the pool, of twenty tasks; target and held-out rows, of one of them."""
    wanted = make_rows(NUM_TARGET + NUM_HELD_OUT, seed=13, tasks=(median,))
    avoid = frozenset(row["instruction"] for row in wanted)
    sets = {
        "base_20": make_rows(NUM_BASE, seed=11, avoid=avoid, tasks=ALL_TASKS),
        "pool_20": make_rows(NUM_POOL, seed=12, avoid=avoid, tasks=ALL_TASKS),
        "target": wanted[:NUM_TARGET],
        "held_out_target": wanted[NUM_TARGET:],
    }
    write_sets(sets)


def main() -> None:
    write_data()
    write_target_data()
    if not UNTRAINED.is_dir():
        write_untrained()
    if not BASE_20.is_dir():
        train_base(BASE_20, "dataset=base_20", "eval_dataset=held_out_target")
    untrained, trained = held_out_losses(BASE_20)
    print(f"held-out loss of the target's task: {untrained:.3f} untrained, {trained:.3f} after {NUM_BASE} rows")


if __name__ == "__main__":
    main()
