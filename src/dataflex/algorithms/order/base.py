"""What all orders share: rank by a score, lay out in a pattern, shuffle a little; over a segment or over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.core.errors import ConfigError, DataFlexError


@dataclass(frozen=True, kw_only=True)
class OrderBase:
    """Parameters of every order.

    Args:
        by: the score: label tokens (``length``), the ``loss``, a ``column`` of the data, or a ``file``.
        loss_source: the loss is measured before each decision (``sweep``), or the one seen when the row was last
            trained (``reuse``), which costs nothing; rows never trained come last.
        column: its name.
        path: the file, as in the selector ``static``.
        polarity: ``easy_first``: low scores first; ``hard_first``: high ones.
        over: arrange the rows of each ``segment``, or the whole pool once for the ``run``.
        jitter: shuffle inside blocks of this many neighbours at the end; 0: not.
    """

    by: Literal["length", "loss", "column", "file"] = "length"
    loss_source: Literal["sweep", "reuse"] = "sweep"
    column: str | None = None
    path: str | None = None
    polarity: Literal["easy_first", "hard_first"] = "easy_first"
    over: Literal["segment", "run"] = "segment"
    jitter: int = 0

    source: ClassVar[str] = "2506.21545; 2605.30334"

    def __post_init__(self) -> None:
        require_one_of("by", self.by, ("length", "loss", "column", "file"))
        require_one_of("loss_source", self.loss_source, ("sweep", "reuse"))
        require_one_of("polarity", self.polarity, ("easy_first", "hard_first"))
        require_one_of("over", self.over, ("segment", "run"))
        require_range("jitter", self.jitter, at_least=0)
        for name, kind in (("column", "column"), ("path", "file")):
            if (getattr(self, name) is None) == (self.by == kind):
                missing = f"{name} is missing; by: {kind} needs it"
                unused = f"{name} is given beside by: {self.by}, which does not use it; set by: {kind}, or leave it out"
                raise ConfigError(missing if self.by == kind else unused)

    def arrange(self, scores_Q: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The permutation: entry j says which of the rows is shown as the j-th; int64, shape (Q,).

        Rows are ranked by score, ties by their place in ``scores_Q``, so hand them over in ascending order of pool row.
        Rows whose score is not finite are shown last, in their order. 2 Q uniforms are drawn, whatever the parameters.
        """
        scores_Q = np.asarray(scores_Q, dtype=np.float64)
        shuffle_Q, jitter_Q = rng.random((2, len(scores_Q)))
        scored = np.flatnonzero(np.isfinite(scores_Q))
        keys = scores_Q[scored] if self.polarity == "easy_first" else -scores_Q[scored]
        ranked = scored[np.argsort(keys, kind="stable")]
        arranged = np.concatenate(
            [ranked[self.pattern(len(ranked), shuffle_Q)], np.flatnonzero(~np.isfinite(scores_Q))]
        )
        if self.jitter > 1:
            block_Q = np.arange(len(arranged)) // self.jitter
            arranged = arranged[np.lexsort((jitter_Q, block_Q))]
        return arranged.astype(np.int64)

    def pattern(self, n: int, shuffle_Q: np.ndarray) -> np.ndarray:
        """Which rank (0 is the easiest, or hardest) comes j-th among n; ``shuffle_Q`` are uniforms to draw by."""
        raise NotImplementedError


def layers(n: int, num_layers: int, *, alternate: bool = False) -> np.ndarray:
    """0, L, 2L ..., 1, L + 1 ...: every L-th rank, one layer after the other; odd layers backwards if ``alternate``.

    Rank i stands at start(i mod L) + i // L, where start(l) is the length of the layers before. More layers than ranks
    are as many as there are: the ranks themselves.

    >>> layers(7, 3).tolist(), layers(7, 3, alternate=True).tolist()
    ([0, 3, 6, 1, 4, 2, 5], [0, 3, 6, 4, 1, 2, 5])
    """
    ranks = np.arange(n)
    parts = [ranks[k::num_layers] for k in range(min(num_layers, max(n, 1)))]
    return np.concatenate([part[::-1] if alternate and k % 2 else part for k, part in enumerate(parts)])


def regions(n: int, sections: int, rho: float, num_layers: int, *, alternate: bool) -> np.ndarray:
    """The ranks in order, but layered around each boundary between sections.

    Boundaries are round(n k / sections), the regions reach round(n rho) to both sides; halves round to even. Regions
    that rounding makes meet are cut at the one before.
    """
    order, radius, free_from = np.arange(n), round(n * rho), 0
    for k in range(1, sections):
        middle = round(n * k / sections)
        first, last = max(free_from, middle - radius, 0), min(n, middle + radius)
        if last > first:
            order[first:last] = first + layers(last - first, num_layers, alternate=alternate)
            free_from = last
    return order


def check_regions(sections: int, rho: float, num_layers: int) -> None:
    """Raise unless the regions around the boundaries leave something between them."""
    require_range("sections", sections, at_least=1)
    require_range("rho", rho, at_least=0, below=1)
    require_range("layers", num_layers, at_least=1)
    if 2 * rho * sections >= 1:
        raise ConfigError(
            f"rho {rho:g} with {sections} sections makes the regions overlap; 2 x rho x sections must be below 1"
        )


def next_of_run(order_N: np.ndarray, cursor: int, quota: int) -> tuple[np.ndarray, int]:
    """The next ``quota`` rows of an order over the run, from its beginning again at its end, and the new cursor.

    >>> rows, cursor = next_of_run(np.array([7, 5, 6]), 2, 2)
    >>> rows.tolist(), cursor
    ([6, 7], 4)

    Raises:
        DataFlexError: there is no row.
    """
    if quota > 0 and len(order_N) == 0:
        raise DataFlexError("no row can be trained: none of the pool's rows has a label token")
    places_Q = (cursor + np.arange(quota)) % max(1, len(order_N))
    return np.asarray(order_N)[places_Q].astype(np.int64), cursor + quota
