"""Ways to damage a record: by hand, or with checksums and chain in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from audited_runs import edit_texts, forge, forge_array, line_of

from dataflex.ledger.quantiles import quantiles
from dataflex.ledger.run_file import write_run

LINE = "ledger.jsonl line"
# Name of a record, what is done to it, where it is found, what is said.
Damage = tuple[str, Callable[[Path], Any], str, str]


def root(run: Path) -> Path:
    return run / "dataflex"


def flip(path: Path, column: int) -> None:
    """Flip a bit in the middle of a column's values."""
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(column)
    data = bytearray(path.read_bytes())
    data[chunk.dictionary_page_offset + chunk.total_compressed_size // 2] ^= 0x10
    path.write_bytes(bytes(data))


def reseal(run: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change run.yaml with a new seal."""
    content = yaml.safe_load((root(run) / "run.yaml").read_text())
    seal = content.pop("seal")
    edit(content)
    write_run(root(run) / "run.yaml", content, seal["rows"])


def replace_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def segments(k: int) -> str:
    return f"segments/{k:06d}.parquet"


def signals(k: int) -> str:
    return f"signals/{k:06d}.parquet"


def swap(run: Path, which: str, a: int, b: int) -> None:
    paths = [root(run) / which / f"{k:06d}.parquet" for k in (a, b)]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)


def put(index: int, value: Any) -> Callable[[dict[str, np.ndarray]], None]:
    """Set one entry of the column that is not row, position or times_trained."""

    def edit(columns: dict[str, np.ndarray]) -> None:
        next(v for name, v in columns.items() if name not in ("row", "position", "times_trained"))[index] = value

    return edit


def set_row(index: int, row: int) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda columns: columns["row"].__setitem__(index, row)


def other_rows(run: Path, segment: int) -> None:
    """Replace a choice by valid other rows, each once, with all counts, hashes and the chain in order."""
    losses_N = pq.read_table(root(run) / signals(segment))["loss"].to_numpy()
    in_window_N = pq.read_table(root(run) / signals(segment))["in_window"].to_numpy()
    chosen = pq.read_table(root(run) / segments(segment))["row"].to_numpy()
    # From inside or outside the window as before, so that the line's counts stay true.
    spare = [r for r in np.flatnonzero(np.isfinite(losses_N)) if r not in chosen and not in_window_N[r]]
    place = next(i for i, r in enumerate(chosen) if not in_window_N[r])
    forge_array(run, "segments", segment, set_row(place, int(spare[0])))


def times_trained(run: Path, segment: int, count: int) -> None:
    forge_array(run, "signals", segment, lambda c: c["times_trained"].__setitem__(7, count))


def cut_off(run: Path, num_lines: int) -> None:
    """Leave the first lines and their arrays alone, as if the run had stopped there."""
    edit_texts(run, lambda texts: texts[:num_lines])
    for path in root(run).glob("s*/*.parquet"):
        if int(path.stem) >= num_lines:
            path.unlink()


def without_position(run: Path) -> None:
    path = root(run) / segments(2)
    pq.write_table(pq.read_table(path).select(["row"]), path)


def line_edit(segment: int, **fields: Any) -> Callable[[Path], None]:
    return lambda run: forge(run, lambda lines: line_of(lines, segment).update(fields))


def note_edit(segment: int, **notes: Any) -> Callable[[Path], None]:
    return lambda run: forge(run, lambda lines: line_of(lines, segment)["notes"].update(notes))


def quantiles_of(run: Path, segment: int) -> dict[str, Any]:
    table = pq.read_table(root(run) / signals(segment))
    return quantiles({name: table[name].to_numpy() for name in table.column_names})
