"""A TRL trainer whose rows are scored by its own loss, run by one or two gloo ranks; started by test_own_loss.py.

Usage: own_loss_program.py KIND OUTPUT_DIR
"""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "trl"), str(TESTS.parent / "examples" / "trl")]


def main() -> None:
    import contextlib

    with contextlib.suppress(ImportError):
        import llamafactory.extras.packages  # noqa: F401  TRL 0.24 beside transformers 5 wants it imported first
    from trl_runs import DeltaLoss, build, pairs, rated

    kind, output_dir = sys.argv[1], Path(sys.argv[2])
    data = rated() if kind == "KTO" else pairs()
    micro_batch = 4 // int(os.environ.get("WORLD_SIZE", "1"))
    build(kind, output_dir, data, selector=DeltaLoss(), per_device_train_batch_size=micro_batch).train()


if __name__ == "__main__":
    main()
