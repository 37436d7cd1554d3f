"""What the curator asks of the training's own forwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from dataflex.train.seen import Entries


class Training(Protocol):
    """Losses and weights of the rows that are trained; methods are collective where it says so."""

    def drain(self) -> Entries:
        """Rows trained since the last call, of all ranks (collective)."""
        ...

    def take_step(self) -> dict[str, np.ndarray]:
        """Signals by domain of the optimizer step that is done, over all ranks (collective)."""
        ...

    def weight_statistics(self) -> dict[str, Any]:
        """Of the coefficients since the last call, over all ranks; {} without a weigher (collective)."""
        ...

    def state_arrays(self) -> dict[str, np.ndarray]:
        """The weighers' state, the same on all ranks (collective)."""
        ...

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what ``state_arrays`` returned."""
        ...
