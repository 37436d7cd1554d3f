"""One decision condensed to what a screen can show: its ranking, its window, where the draw fell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# What the rows were ranked by, best explanation first.
RANKINGS = ("delta", "score", "loss", "initial_loss")
CURVE_POINTS, DRAW_BINS, DENSITY_CELLS = 300, 40, 32


@dataclass(frozen=True)
class Condensed:
    """Arrays of at most a few hundred numbers; their exact values are in the ledger's own files."""

    ranking: str
    num_ranked: int
    at_P: np.ndarray  # positions in the ranking
    value_P: np.ndarray  # values there
    drawn_B: np.ndarray  # rows drawn from each of B equal parts of the ranking
    in_part_B: np.ndarray  # rows in each part
    density: tuple[np.ndarray, float, float] | None  # counts [current, first] over an even grid low ... high


def losses_of(columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The losses that a decision measured or took over, one per pool row."""
    return columns.get("loss", columns.get("initial_loss"))


def condense(
    line: Mapping[str, Any],
    rows_Q: np.ndarray,
    columns: Mapping[str, np.ndarray],
    first_N: np.ndarray | None,
    curve_points: int = CURVE_POINTS,
) -> Condensed | None:
    """Condense a decision; None where nothing was ranked.

    Args:
        first_N: the first losses on record, to set the present ones against; None for the decision that measured them.
    """
    ranking = next((name for name in RANKINGS if name in columns), None)
    if ranking is None:
        return None
    values_N = columns[ranking].astype(np.float64)
    finite_N = np.isfinite(values_N)
    num_ranked = int(finite_N.sum())
    if num_ranked == 0:
        return None
    order = np.argsort(-np.where(finite_N, values_N, -np.inf), kind="stable")
    ranks_N = np.empty(len(order), dtype=np.int64)
    ranks_N[order] = np.arange(len(order))

    at_P = _positions(line, num_ranked, curve_points)
    num_parts = min(DRAW_BINS, num_ranked)
    drawn = ranks_N[rows_Q[finite_N[rows_Q]]]
    losses_N = columns.get("loss")
    density = None
    if losses_N is not None and first_N is not None:
        density = _density(first_N, losses_N)
    return Condensed(
        ranking=ranking,
        num_ranked=num_ranked,
        at_P=at_P,
        value_P=values_N[order[at_P]],
        drawn_B=np.bincount(drawn * num_parts // num_ranked, minlength=num_parts),
        in_part_B=np.bincount(np.arange(num_ranked) * num_parts // num_ranked, minlength=num_parts),
        density=density,
    )


def _positions(line: Mapping[str, Any], num_ranked: int, curve_points: int) -> np.ndarray:
    """Even positions, and the exact ones where something begins or ends."""
    notes, window = line.get("notes") or {}, line.get("window") or {}
    marks = [window.get("start"), window.get("end"), notes.get("num_improved"), *(notes.get("planned_window") or ())]
    edges = [mark + side for mark in marks if isinstance(mark, int) for side in (-1, 0)]
    even = np.linspace(0, num_ranked - 1, min(curve_points, num_ranked)).round().astype(np.int64)
    return np.unique(np.clip(np.concatenate([even, np.array(edges, dtype=np.int64)]), 0, num_ranked - 1))


def _density(first_N: np.ndarray, losses_N: np.ndarray) -> tuple[np.ndarray, float, float] | None:
    both_N = np.isfinite(first_N) & np.isfinite(losses_N)
    if not both_N.any():
        return None
    first, current = first_N[both_N].astype(np.float64), losses_N[both_N].astype(np.float64)
    # A handful of extreme losses would squeeze all others into one corner: they are counted in the outermost cells.
    low, high = np.quantile(np.concatenate([first, current]), (0.002, 0.998))
    high = high if high > low else low + 1.0
    edges = np.linspace(low, high, DENSITY_CELLS + 1)
    counts, _, _ = np.histogram2d(np.clip(current, low, high), np.clip(first, low, high), bins=(edges, edges))
    return counts.astype(np.int64), float(low), float(high)
