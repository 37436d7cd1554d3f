"""How long a selection by embeddings takes, and how much memory, once the embeddings are there.

python -m benchmarks.neighbours [--rows 1000000] [--dim 384] [--queries 100] --out FILE.json

Synthetic unit vectors around 200 centres, a hundredth of them near copies of others, in a memory-mapped file. Each
method makes its first decision in a process of its own, whose peak memory is read from the system.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dataflex import Near, Schedule, Tsds
from dataflex.algorithms.base import PoolInfo
from dataflex.core.plan import SegmentPlan

WAYS = {
    "near": Near(),
    "near, round robin": Near(walk="round_robin"),
    "near, ivf": Near(index="ivf"),
    "tsds": Tsds(),
}
QUOTA = 10_000
BLOCK = 50_000


def write_vectors(folder: Path, num_rows: int, width: int, num_queries: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, width))
    shape = (num_rows, width)
    rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.float32, shape)
    for start in range(0, num_rows, BLOCK):
        size = min(BLOCK, num_rows - start)
        block = centres[rng.integers(0, 200, size)] + rng.standard_normal((size, width)) * 0.7
        copies = max(1, size // 100)
        block[:copies] = block[-copies:] + rng.standard_normal((copies, width)) * 0.01
        rows[start : start + size] = block / np.linalg.norm(block, axis=1, keepdims=True)
    rows.flush()
    queries = centres[rng.integers(0, 40, num_queries)] + rng.standard_normal((num_queries, width)) * 0.9
    np.save(folder / "queries.npy", (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32))


def decide(folder: Path, way: str) -> dict[str, float]:
    """One decision in this process: seconds, peak memory in GiB, distinct rows."""
    selector = WAYS[way]
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    ones_N = np.ones(len(rows), dtype=np.int64)
    signals = {
        "embeddings": rows,
        "target_embeddings": np.load(folder / "queries.npy"),
        "times_trained": np.zeros(len(rows), dtype=np.int32),
    }
    plan = SegmentPlan.dynamic(Schedule(update_step=1, update_times=1), num_epochs=1, pool_steps=9)
    state = selector.init(PoolInfo(num_tokens_N=ones_N, num_label_tokens_N=ones_N))
    began = time.perf_counter()
    progress = plan.progress(plan.segment_at(0))
    selection, _ = selector.select(state, signals, QUOTA, progress, np.random.default_rng(0))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "peak_gib": peak, "num_distinct": len(np.unique(selection.rows_Q))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(decide(Path(given.one[0]), given.one[1])))
        return
    found = {}
    with tempfile.TemporaryDirectory() as name:
        write_vectors(Path(name), given.rows, given.dim, given.queries)
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.neighbours", "--one", name, way]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[way] = json.loads(said.splitlines()[-1])
            print(f"{way}: {found[way]['seconds']:.1f} s, peak {found[way]['peak_gib']:.2f} GiB", flush=True)
    if given.out:
        size = {"rows": given.rows, "dim": given.dim, "queries": given.queries, "quota": QUOTA}
        given.out.write_text(json.dumps({"size": size, "ways": found}, indent=1))


if __name__ == "__main__":
    main()
