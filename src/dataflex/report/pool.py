"""The rows that could be chosen: their texts, and the groups they fall into."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc_typed
import pyarrow.parquet as pq

from dataflex.ledger.groups import PREFERRED, Groups, groups_of
from dataflex.report.record import Record

pc: Any = pc_typed  # its functions are made when it is imported, and type checkers see few of them

OWN_COLUMNS = frozenset({"row", "source_row", "num_tokens", "num_label_tokens", "excerpt"})
MAX_GROUP_COLUMNS = 4


@dataclass(frozen=True)
class Pool:
    key: str  # equal for equal pools, so that two runs over one pool share its texts
    num_rows: int
    texts: pa.Array | None
    tokens_N: np.ndarray | None
    groups: list[Groups]

    def texts_of(self, rows: np.ndarray) -> list[str]:
        return [] if self.texts is None else [text or "" for text in self.texts.take(pa.array(rows)).to_pylist()]

    def beginnings(self, num_chars: int) -> list[str]:
        """The first characters of every row's text."""
        if self.texts is None or num_chars == 0:
            return []
        return pc.utf8_slice_codeunits(pc.fill_null(self.texts, ""), 0, num_chars).to_pylist()


def read_pool(record: Record) -> tuple[Pool, str | None]:
    """The pool of a run, and what is wrong with it, if anything."""
    path = record.ledger.root / "rows.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        fingerprint = record.run.get("fingerprint")
        num_rows = fingerprint.get("num_rows") if isinstance(fingerprint, dict) else 0
        return Pool("", num_rows or 0, None, None, []), f"rows.parquet cannot be read ({type(error).__name__})"
    texts = table["excerpt"].combine_chunks() if "excerpt" in table.column_names else None
    if texts is not None and not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        texts = texts.cast(pa.string())
    tokens_N = table["num_tokens"].to_numpy() if "num_tokens" in table.column_names else None
    return Pool(_key(table), table.num_rows, texts, tokens_N, find_groups(table)), None


def find_groups(table: pa.Table) -> list[Groups]:
    """Columns of few distinct values, well-known names first."""
    names = [name for name in table.column_names if name not in OWN_COLUMNS]
    names.sort(key=lambda name: PREFERRED.index(name) if name in PREFERRED else len(PREFERRED))
    found = (groups_of(name, table[name]) for name in names)
    return [groups for groups in found if groups is not None][:MAX_GROUP_COLUMNS]


def _key(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for name in table.column_names:
        digest.update(name.encode())
        for chunk in table[name].chunks:
            for buffer in chunk.buffers():
                if buffer is not None:
                    digest.update(buffer)
    return digest.hexdigest()[:16]
