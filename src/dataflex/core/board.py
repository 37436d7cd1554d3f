"""Losses seen in training, by row: the latest value, its age and the number of visits, at no extra forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dataflex.core.errors import DataFlexError


@dataclass(frozen=True, kw_only=True)
class Board:
    """What training showed of each pool row; a value, so that a step never half-changes it."""

    last_losses_N: np.ndarray  # mean over the label tokens when last trained, float32; NaN: never seen finite
    last_steps_N: np.ndarray  # optimizer step of that loss, int64; -1: never
    visits_N: np.ndarray  # times trained, int32, also where the loss was not finite

    @classmethod
    def empty(cls, num_rows: int) -> Board:
        """Nothing seen yet."""
        return cls(
            last_losses_N=np.full(num_rows, np.nan, dtype=np.float32),
            last_steps_N=np.full(num_rows, -1, dtype=np.int64),
            visits_N=np.zeros(num_rows, dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.visits_N)

    def with_seen(self, rows_B: np.ndarray, losses_B: np.ndarray, steps_B: np.ndarray | int) -> Board:
        """The board after these rows were trained, in any order; of several losses of a row the latest counts.

        A loss that is not finite is a visit and leaves the value before it; the latest of equal steps is the last
        entry. One call for a whole segment costs one copy of the arrays.

        Args:
            rows_B: pool rows, int; a row may occur several times.
            losses_B: mean loss over the label tokens of each.
            steps_B: optimizer step of each, one for all or one each; none older than what the board holds of the row.

        Raises:
            DataFlexError: a row outside of the pool, or a step older than the one on the board.

        >>> board = Board.empty(3).with_seen(np.array([2, 2]), np.array([1.5, 1.0]), np.array([4, 5]))
        >>> board.last_losses_N.tolist(), board.visits_N.tolist()
        ([nan, nan, 1.0], [0, 0, 2])
        """
        rows_B = np.asarray(rows_B, dtype=np.int64)
        steps_B = np.broadcast_to(np.asarray(steps_B, dtype=np.int64), rows_B.shape)
        if len(rows_B) and not (rows_B.min() >= 0 and rows_B.max() < len(self)):
            raise DataFlexError(f"rows {rows_B.min()} to {rows_B.max()} are not all among the pool's {len(self)}")
        if np.any(steps_B < self.last_steps_N[rows_B]):
            raise DataFlexError("a loss is older than the one on the board; record steps in their order")
        losses_N, last_N, visits_N = self.last_losses_N.copy(), self.last_steps_N.copy(), self.visits_N.copy()
        np.add.at(visits_N, rows_B, 1)
        losses_B = np.asarray(losses_B)
        finite = np.flatnonzero(np.isfinite(losses_B))
        latest = finite[np.argsort(steps_B[finite], kind="stable")]
        _, first_of_reversed = np.unique(rows_B[latest][::-1], return_index=True)
        latest = latest[::-1][first_of_reversed]  # one entry a row: numpy leaves open which of several is kept
        losses_N[rows_B[latest]] = losses_B[latest]
        last_N[rows_B[latest]] = steps_B[latest]
        return Board(last_losses_N=losses_N, last_steps_N=last_N, visits_N=visits_N)

    def ages(self, step: int) -> np.ndarray:
        """Optimizer steps since each row's loss was seen, int64, shape (N,); -1 where it never was."""
        return np.where(self.last_steps_N >= 0, step - self.last_steps_N, -1)

    def signals(self, step: int, *, max_age: int | None = None) -> dict[str, np.ndarray]:
        """What ``source: reuse`` reads: ``loss``, NaN where unseen or older than ``max_age``; ``age``; ``visits``."""
        age_N = self.ages(step)
        known_N = (age_N >= 0) & (True if max_age is None else age_N <= max_age)
        return {
            "loss": np.where(known_N, self.last_losses_N, np.float32(np.nan)).astype(np.float32),
            "age": age_N,
            "visits": self.visits_N.copy(),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], num_rows: int) -> Board:
        """The board that ``arrays`` were saved of.

        Raises:
            DataFlexError: an array is missing, of another type or of another pool.
        """
        fresh = cls.empty(num_rows)
        for name, empty_N in vars(fresh).items():
            saved_N = arrays.get(name)
            if saved_N is None or saved_N.shape != empty_N.shape or saved_N.dtype != empty_N.dtype:
                found = "missing" if saved_N is None else f"{saved_N.dtype} of shape {saved_N.shape}"
                raise DataFlexError(
                    f"the saved losses of training do not fit a pool of {num_rows} rows: {name} is {found}; resume "
                    "from another checkpoint, or start anew"
                )
        return cls(**{name: arrays[name] for name in vars(fresh)})
