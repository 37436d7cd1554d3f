"""What training showed: the last loss of each row, and the loss of each domain since the last decision (rank 0)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex.core.board import Board
from dataflex.train.domains import Domains

BOARD, SINCE = "board.", "since."  # prefixes in a checkpoint


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Rows that were trained, of all ranks, sorted by optimizer step and row; one entry a visit."""

    rows: np.ndarray  # int64
    loss_sums: np.ndarray  # over the label tokens, float64; not finite where the loss was not
    tokens: np.ndarray  # label tokens, int64
    steps: np.ndarray  # optimizer step, int64


class Seen:
    """Takes in what was trained; everything it keeps is saved with a checkpoint."""

    def __init__(self, num_rows: int, domains: Domains | None) -> None:
        self.board = Board.empty(num_rows)
        self._domains = domains
        self._begin()

    def _begin(self) -> None:
        num_domains = len(self._domains.info) if self._domains is not None else 0
        self._since = {"loss_sums_D": np.zeros(num_domains), "tokens_D": np.zeros(num_domains, dtype=np.int64)}

    def take(self, entries: Entries) -> None:
        """Take in entries, all younger than those before."""
        with np.errstate(divide="ignore", invalid="ignore"):
            losses = entries.loss_sums / entries.tokens
        self.board = self.board.with_seen(entries.rows, losses.astype(np.float32), entries.steps)
        if self._domains is None:
            return
        counted = np.isfinite(entries.loss_sums) & (entries.tokens > 0)
        domains = self._domains.domain_N[entries.rows[counted]]
        # One after the other: where the entries are cut into calls then changes no bit.
        np.add.at(self._since["loss_sums_D"], domains, entries.loss_sums[counted])
        np.add.at(self._since["tokens_D"], domains, entries.tokens[counted])

    @property
    def domain_losses_D(self) -> np.ndarray:
        """Mean training loss per label token since the last decision, float64; NaN where a domain was not trained."""
        sums_D, tokens_D = self._since["loss_sums_D"], self._since["tokens_D"]
        return np.divide(sums_D, tokens_D, out=np.full(len(sums_D), np.nan), where=tokens_D > 0)

    def finished(self) -> dict[str, Any]:
        """What is recorded of the segment that was trained, and begin another."""
        said: dict[str, Any] = {}
        if self._domains is not None:
            named = zip(self._domains.info.names, self.domain_losses_D.tolist(), strict=True)
            said["domain_losses"] = {name: loss for name, loss in named if np.isfinite(loss)}
            tokens = zip(self._domains.info.names, self._since["tokens_D"].tolist(), strict=True)
            said["domain_tokens"] = dict(tokens)
        self._begin()
        return said

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        board = {f"{BOARD}{name}": values for name, values in self.board.arrays().items()}
        return {**board, **{f"{SINCE}{name}": values for name, values in self._since.items()}}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what ``arrays`` returned."""
        board = {name.removeprefix(BOARD): v for name, v in arrays.items() if name.startswith(BOARD)}
        self.board = Board.from_arrays(board, len(self.board))
        self._since = {name.removeprefix(SINCE): v.copy() for name, v in arrays.items() if name.startswith(SINCE)}
