"""Column: the weight that the data says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dataflex.algorithms.base import State, TrainedBatch, WeigherBase, Weights
from dataflex.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Column(WeigherBase):
    """c_i is the number in a column of the data set, 1 where it is missing (NaN).

    >>> batch = TrainedBatch(losses_B=np.ones(2), tokens_B=np.ones(2), step=0, num_steps=1,
    ...                      columns_B={"weight": np.array([2.5, np.nan])})
    >>> Column().weigh({}, batch)[0].weights_B.tolist()
    [2.5, 1.0]

    Args:
        column: its name.
        allow_negative: a negative weight raises the loss of its row (unlearning); else it is an error.

    Raises:
        ConfigError: no name, or a weight that is infinite or negative.

    Source: per-sample weights as asked for in trl#5761.
    """

    column: str = "weight"
    allow_negative: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"column"})
    source: ClassVar[str] = "a column of the data"

    def __post_init__(self) -> None:
        if not self.column:
            raise ConfigError("column is ''; name the column of the data set that holds the weights")

    def weigh(self, state: State, batch: TrainedBatch) -> tuple[Weights, State]:
        values_B = np.asarray(batch.columns_B[self.column], dtype=np.float64)
        self.check_values(values_B)
        return Weights(weights_B=np.where(np.isnan(values_B), 1.0, values_B)), state

    def check_values(self, values_N: np.ndarray) -> None:
        """Raise for weights that cannot be used; to be asked of the whole column before a model is loaded."""
        for bad_N, what, remedy in (
            (np.isinf(values_N), "infinite", "give it a finite weight"),
            ((values_N < 0) & ~np.isinf(values_N), "negative", "set allow_negative: true, or mend the data"),
        ):
            if bad_N.any() and not (what == "negative" and self.allow_negative):
                row = int(np.argmax(bad_N))
                raise ConfigError(f"{self.column} of row {row} is {values_N[row]:g}, which is {what}; {remedy}")
