"""What a checkpoint and the ledger know of one another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

STATE_FILE = "dataflex_state.safetensors"  # ours in a checkpoint folder


def trained_digest(segments: Mapping[int, Mapping[str, Any]], step: int) -> str:
    """Hash of the rows of all segments that start before optimizer step ``step``.

    Args:
        segments: the ledger line in force of each segment, by its number.
    """
    rows = [line["sha256"]["rows"] for _, line in sorted(segments.items()) if line["start"] < step]
    return hashlib.sha256(" ".join(rows).encode()).hexdigest()
