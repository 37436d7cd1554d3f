"""Damage to arrays, run.yaml and rows.parquet.

Segments of the record "whole": 0 warm-up, 1 first, 2 guided, 3 warm-up, 4 and 5 guided.
"""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from audited_runs import edit_texts, forge, forge_array, line_of, rewrite_array
from planting import (
    LINE,
    Damage,
    cut_off,
    flip,
    other_rows,
    put,
    quantiles_of,
    replace_text,
    reseal,
    root,
    segments,
    set_row,
    signals,
    swap,
    times_trained,
    without_position,
)

DAMAGED_FILES: dict[str, Damage] = {
    # arrays
    "arrays of two segments swapped": (
        "whole",
        lambda r: swap(r, "segments", 2, 4),
        segments(2),
        "sha256 does not match",
    ),
    "signals of two segments swapped": (
        "whole",
        lambda r: swap(r, "signals", 2, 4),
        signals(4),
        "sha256 does not match",
    ),
    "a flipped byte": ("whole", lambda r: flip(root(r) / signals(4), 2), signals(4), "damaged|sha256|cannot be read"),
    "a truncated array": (
        "whole",
        lambda r: (root(r) / segments(3)).write_bytes((root(r) / segments(3)).read_bytes()[:-100]),
        segments(3),
        "damaged|cannot be read",
    ),
    "an empty array": (
        "whole",
        lambda r: (root(r) / signals(5)).write_bytes(b""),
        signals(5),
        "damaged|cannot be read",
    ),
    "a missing array": (
        "whole",
        lambda r: (root(r) / segments(3)).unlink(),
        segments(3),
        "missing, but line 4 records it",
    ),
    "missing signals": (
        "whole",
        lambda r: (root(r) / signals(2)).unlink(),
        signals(2),
        "missing, but line 3 records it",
    ),
    "an array that nobody recorded": (
        "whole",
        lambda r: shutil.copy(root(r) / segments(3), root(r) / segments(9)),
        segments(9),
        "no line records it",
    ),
    "a strange file": (
        "whole",
        lambda r: (root(r) / "signals/notes.txt").write_text(""),
        "signals/notes.txt",
        "no line",
    ),
    "a row edited": (
        "whole",
        lambda r: rewrite_array(root(r) / segments(4), set_row(0, 39)),
        segments(4),
        "sha256 does not match",
    ),
    "a column shortened": (
        "whole",
        lambda r: forge_array(r, "signals", 4, lambda c: {name: v[:-1] for name, v in c.items()}),
        signals(4),
        "have 39 entries, the pool has 40 rows",
    ),
    "a column of another type": (
        "whole",
        lambda r: forge_array(r, "signals", 4, lambda c: {**c, "rank": c["rank"].astype(np.float64)}),
        signals(4),
        "'rank' holds float64",
    ),
    "a column of words": (
        "whole",
        lambda r: rewrite_array(root(r) / signals(4), lambda c: {**c, "loss": np.array(["x"] * 40)}),
        signals(4),
        "damaged|sha256",
    ),
    "a planted NaN": (
        "whole",
        lambda r: forge_array(r, "signals", 4, put(3, np.nan)),
        signals(4),
        "num_scored|quantiles",
    ),
    "a planted NaN, old checksum": (
        "whole",
        lambda r: rewrite_array(root(r) / signals(4), put(3, np.nan)),
        signals(4),
        "sha256 does not match",
    ),
    "no column of positions": ("whole", without_position, segments(2), "no columns 'position' and 'row'"),
    "a row out of the pool": (
        "whole",
        lambda r: forge_array(r, "segments", 4, set_row(0, 40)),
        segments(4),
        "names row 40, but the pool has rows 0 to 39",
    ),
    "a row without a loss": (
        "whole",
        lambda r: forge_array(r, "segments", 4, set_row(0, 17)),
        signals(4),
        "row 17 was drawn, but its weight is 0",
    ),
    "times_trained edited": ("whole", lambda r: times_trained(r, 4, 9), signals(4), "times_trained of row 7 is 9"),
    "fewer rows than the steps need": (
        "whole",
        lambda r: (
            forge_array(r, "segments", 4, lambda c: {n: v[:-1] for n, v in c.items()}),
            forge(r, lambda t: line_of(t, 4).update(num_rows=7, num_distinct_rows=7)),
        ),
        "segment 4",
        "has 7 rows for the steps 10-12, which need 8",
    ),
    "a choice replaced by other valid rows": ("whole", lambda r: other_rows(r, 4), "segment 4", "give other rows"),
    "a choice in another order": (
        "whole",
        lambda r: forge_array(r, "segments", 4, lambda c: {**c, "row": c["row"][::-1].copy()}),
        "segment 4",
        "in another order",
    ),
    "a warm-up replaced": (
        "whole",
        lambda r: forge_array(r, "segments", 0, lambda c: {**c, "row": np.roll(c["row"], 1)}),
        "segment 0",
        "in another order",
    ),
    "a random choice replaced": (
        "random",
        lambda r: forge_array(r, "segments", 1, lambda c: {**c, "row": np.roll(c["row"], 1)}),
        "segment 1",
        "in another order",
    ),
    "an initial loss edited": (
        "whole",
        lambda r: (
            forge_array(r, "signals", 1, put(5, 2.0)),
            forge(r, lambda t: line_of(t, 1).update(quantiles=quantiles_of(r, 1))),
        ),
        "segment 2",
        "column 'delta' does not follow",
    ),
    "host order, a short segment in the middle of a pass": (
        "host",
        lambda r: (
            forge_array(r, "segments", 1, lambda c: {n: v[:-1] for n, v in c.items()}),
            forge(r, lambda t: line_of(t, 1).update(num_rows=7, num_distinct_rows=7)),
        ),
        "segment 1",
        "which need 8",
    ),
    # run.yaml and rows.parquet
    "no run.yaml": ("whole", lambda r: (root(r) / "run.yaml").unlink(), "run.yaml", "it is missing"),
    "run.yaml cut short": (
        "whole",
        lambda r: (root(r) / "run.yaml").write_text((root(r) / "run.yaml").read_text()[:300]),
        "run.yaml",
        "checksum|cannot be read",
    ),
    "run.yaml: fingerprint edited": (
        "whole",
        lambda r: replace_text(root(r) / "run.yaml", "learning_rate: 0.0001", "learning_rate: 0.0002"),
        "run.yaml",
        "checksum does not match",
    ),
    "run.yaml: params edited": (
        "whole",
        lambda r: replace_text(root(r) / "run.yaml", "window_size: 0.2", "window_size: 0.3"),
        "run.yaml",
        "checksum does not match",
    ),
    "run.yaml: fingerprint edited and sealed": (
        "whole",
        lambda r: reseal(r, lambda c: c["fingerprint"].update(learning_rate=2e-4)),
        "run.yaml",
        "learning_rate is one thing in the fingerprint and another in the config",
    ),
    "run.yaml: params edited and sealed": (
        "whole",
        lambda r: reseal(r, lambda c: c["params"].update(window_size=0.3)),
        "run.yaml",
        "params are one thing in the fingerprint",
    ),
    "run.yaml: params edited everywhere and sealed": (
        "whole",
        lambda r: reseal(
            r, lambda c: (c["params"].update(window_size=0.3), c["fingerprint"]["params"].update(window_size=0.3))
        ),
        f"{LINE} 1",
        "other parameters than run.yaml names",
    ),
    "run.yaml: another geometry": (
        "whole",
        lambda r: reseal(r, lambda c: c["geometry"].update(micro_batch=3)),
        "run.yaml",
        "the geometry makes 6 samples a step, the fingerprint has 4",
    ),
    "run.yaml: another schedule": (
        "whole",
        lambda r: reseal(
            r, lambda c: (c["schedule"].update(update_step=1), c["fingerprint"]["schedule"].update(update_step=1))
        ),
        LINE,
        "the schedule of run.yaml has there",
    ),
    "run.yaml: a field taken out": (
        "whole",
        lambda r: reseal(r, lambda c: c.pop("seed")),
        "run.yaml",
        "'seed' is missing",
    ),
    "run.yaml: another id": ("whole", lambda r: reseal(r, lambda c: c.update(run_id="x")), f"{LINE} 1", "another run"),
    "run.yaml: a pool that no memory holds": (
        "whole",
        lambda r: reseal(r, lambda c: c["fingerprint"].update(num_rows=2**50)),
        "rows.parquet",
        "it has 40 rows, the pool of this run has 1125899906842624",
    ),
    "rows.parquet of other data": (
        "whole",
        lambda r: pq.write_table(
            pa.table({"row": range(40), "num_tokens": [9] * 40, "num_label_tokens": [3] * 40}), root(r) / "rows.parquet"
        ),
        "rows.parquet",
        "not the file that this run wrote",
    ),
    "rows.parquet of another size": (
        "whole",
        lambda r: pq.write_table(pq.read_table(root(r) / "rows.parquet").slice(0, 30), root(r) / "rows.parquet"),
        "rows.parquet",
        "it has 30 rows, the pool of this run has 40",
    ),
    "rows.parquet in another order": (
        "whole",
        lambda r: rewrite_array(root(r) / "rows.parquet", lambda c: {n: v[::-1].copy() for n, v in c.items()}),
        "rows.parquet",
        "not numbered 0 to 39",
    ),
    "rows.parquet truncated": (
        "whole",
        lambda r: (root(r) / "rows.parquet").write_bytes((root(r) / "rows.parquet").read_bytes()[:200]),
        "rows.parquet",
        "cannot be read",
    ),
    "no rows.parquet": ("whole", lambda r: (root(r) / "rows.parquet").unlink(), "rows.parquet", "it is missing"),
    # a crashed run
    "a crashed run's line edited": (
        "crashed",
        lambda r: edit_texts(r, lambda t: [*t[:-1], t[-1].replace(b"warm-up", b"wArm-up")]),
        f"{LINE} 4",
        "checksum does not match",
    ),
    "a crashed run's array lost": ("crashed", lambda r: (root(r) / segments(1)).unlink(), segments(1), "is missing"),
    # checkpoints as witnesses
    "the last lines cut off with their arrays": (
        "crashed",
        lambda r: cut_off(r, 1),
        "ledger.jsonl",
        "reaches step 3, but checkpoint-4 was trained to step 4",
    ),
    "a checkpoint of other rows": (
        "crashed",
        lambda r: forge_array(r, "segments", 0, lambda c: {**c, "row": np.roll(c["row"], 1)}),
        "ledger.jsonl",
        "checkpoint-4 was trained on other rows",
    ),
}
