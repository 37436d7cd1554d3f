"""How rows are cut into padded batches: as few padded tokens and as few forwards as the lengths allow."""

from __future__ import annotations

import numpy as np

# What one more forward costs beyond its tokens, in tokens: reading the weights, and on an accelerator launching the
# kernels. Measured 56 on two CPU cores (SmolLM2-135M); on an H200 the smallest forward takes as long as 2,065 tokens of
# a 1B Llama (11.6 ms) and as 1,470 of an 8B (42.7 ms).
FORWARD_TOKENS = {"cpu": 64}
FORWARD_TOKENS_ACCELERATOR = 2048


def forward_tokens(device_type: str) -> int:
    """Fixed cost of one forward on a kind of device, in tokens."""
    return FORWARD_TOKENS.get(device_type, FORWARD_TOKENS_ACCELERATOR)


def batches_by_length(
    lengths_N: np.ndarray, rows: np.ndarray, batch_tokens: int, overhead: int = FORWARD_TOKENS["cpu"]
) -> list[np.ndarray]:
    """Cut ``rows`` into batches of similar length, longest first, each of at most ``batch_tokens`` padded tokens.

    The lengths are first cut into ranges, each padded to its longest, so that ``padded tokens + overhead x forwards``
    is smallest (dynamic programming over the distinct lengths); a range is then cut into equally large batches. A
    budget that is too large for a small pool thus costs no padding. The longest batches come first, so that one that
    does not fit into memory shows itself at once. A batch's composition does not depend on the number of ranks.

    Args:
        lengths_N: tokens of each pool row.
        rows: the rows to cut.
        batch_tokens: padded tokens of one batch; a longer row is a batch of its own.
        overhead: cost of one more forward, in tokens.

    >>> [b.tolist() for b in batches_by_length(np.array([9, 100, 10, 98]), np.arange(4), 1000, overhead=64)]
    [[1, 3], [2, 0]]
    """
    if len(rows) == 0:
        return []
    order = rows[np.lexsort((rows, -lengths_N[rows]))]
    sorted_lengths = np.maximum(lengths_N[order].astype(np.int64), 1)
    batches: list[np.ndarray] = []
    for start, stop in _ranges(sorted_lengths, batch_tokens, overhead):
        size = max(1, batch_tokens // int(sorted_lengths[start]))
        batches += np.array_split(order[start:stop], -(-(stop - start) // size))
    return batches


def _ranges(sorted_lengths: np.ndarray, batch_tokens: int, overhead: int) -> list[tuple[int, int]]:
    """Cheapest cut of descending lengths into ranges [start, stop) of rows, each padded to its first."""
    distinct, starts = np.unique(-sorted_lengths, return_index=True)
    lengths_U = -distinct  # descending
    stops_U = np.append(starts[1:], len(sorted_lengths))
    cost = np.full(len(lengths_U) + 1, np.inf)  # of the lengths before
    cost[0] = 0.0
    came_from = np.zeros(len(lengths_U) + 1, dtype=np.int64)
    for first, length in enumerate(lengths_U.tolist()):
        # Cutting a range in two costs one forward at most, and saves a row's difference in length at least: no range of
        # the best cut spans more lengths than a forward costs.
        last = int(np.searchsorted(-lengths_U, overhead - length, side="right"))
        num_rows = stops_U[first:last] - starts[first]
        forwards = -(-num_rows // max(1, batch_tokens // length))
        total = cost[first] + num_rows * length + overhead * forwards
        better = total < cost[first + 1 : last + 1]
        cost[first + 1 : last + 1][better] = total[better]
        came_from[first + 1 : last + 1][better] = first
    ranges, end = [], len(lengths_U)
    while end > 0:
        first = int(came_from[end])
        ranges.append((int(starts[first]), int(stops_U[end - 1])))
        end = first
    return ranges[::-1]
