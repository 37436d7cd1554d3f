"""Target gradients as one vector a group: all that a mean of cosines needs to know of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from dataflex.core.errors import ConfigError
from dataflex.signals.gradient.capture import Captured
from dataflex.signals.gradient.weights import Weights


@dataclass(frozen=True, kw_only=True)
class TargetGroups:
    """``q_k = mean over j in group k of g_j / ||g_j||``, a weight at a time, so that
    ``<u, q_k> = mean_j <u, g_j> / ||g_j||``; the cosines' mean is that over ``||u||``.
    """

    vectors: Mapping[str, torch.Tensor]  # by parameter name, shape (G, *weight.shape)
    num_groups: int
    norms_M: np.ndarray  # ||g_j|| of each target row


class GroupVectors:
    """An engine for target rows: adds their unit gradients to their groups' vectors; returns their norms.

    A batch's activations are kept until the norms over all weights are known, then each weight's sum is one product.

    Args:
        groups_M: group of each target row, 0 .. G-1, each with a row at least.
        dtype: of the vectors; bfloat16 halves their memory.

    Raises:
        ConfigError: a group without rows.
    """

    num_columns = 1

    def __init__(self, weights: Weights, groups_M: np.ndarray, dtype: torch.dtype = torch.float32) -> None:
        self._groups_M = np.asarray(groups_M)
        self._sizes_G = np.bincount(self._groups_M)
        if len(self._groups_M) == 0 or not self._sizes_G.all():
            empty = np.flatnonzero(self._sizes_G == 0).tolist()
            raise ConfigError(f"target groups {empty} have no rows; leave them out" if empty else "there is no target")
        self._vectors = {
            weight.name: torch.zeros(
                len(self._sizes_G), *weight.parameter.shape, dtype=dtype, device=weight.parameter.device
            )
            for weight in weights.included
        }
        self._held: list[Captured] = []
        self._norms_M = np.full(len(self._groups_M), np.nan)

    def begin(self, rows_R: np.ndarray, device: torch.device) -> None:
        self._rows_R, self._held = rows_R, []
        self._squares_R = torch.zeros(len(rows_R), dtype=torch.float64, device=device)

    def take(self, captured: Captured) -> None:
        self._squares_R += squared_norms(captured)
        self._held.append(captured)

    def finish(self) -> torch.Tensor:
        norms_R = self._squares_R.sqrt()
        groups_R = torch.from_numpy(self._groups_M[self._rows_R]).to(norms_R.device)
        sizes_R = torch.from_numpy(self._sizes_G[self._groups_M[self._rows_R]]).to(norms_R.device)
        coefficients_R = (1 / (norms_R * sizes_R)).float()
        for captured in self._held:
            vectors = self._vectors[captured.weight.name]
            for group in groups_R.unique().tolist():
                vectors[group] += captured.weighted_sum(coefficients_R * (groups_R == group)).to(vectors.dtype)
        self._held = []
        return norms_R[:, None]

    def result(self, norms_M: np.ndarray) -> TargetGroups:
        """The vectors, once every target row was measured.

        Raises:
            ConfigError: a target row whose gradient is zero or not finite, such as one without label tokens.
        """
        wrong = np.flatnonzero(~(np.isfinite(norms_M) & (norms_M > 0))).tolist()
        if wrong:
            raise ConfigError(
                f"{len(wrong)} of {len(norms_M)} target samples have no gradient (the first is row {wrong[0]}), as one "
                "whose answer was cut off; raise cutoff_len, or take them out of the target"
            )
        return TargetGroups(vectors=self._vectors, num_groups=len(self._sizes_G), norms_M=norms_M)


def squared_norms(captured: Captured) -> torch.Tensor:
    """``||G_i||^2`` of each row, float64, shape (R,): by pairs of positions, or from G where that costs less."""
    a, e = captured.inputs_RxLxI.float(), captured.output_gradients_RxLxO.float()
    num_positions, num_in, num_out = a.shape[1], a.shape[2], e.shape[2]
    if num_positions * (num_in + num_out) < num_in * num_out:
        return ((a @ a.mT) * (e @ e.mT)).sum((1, 2)).double()
    squares = [captured.gradients(part).square_().sum((1, 2)) for part in row_chunks(captured)]
    return torch.cat(squares).double()


# Elements of materialised gradients at a time: a CPU's cache, or an accelerator's launch that is worth it.
CHUNK = {"cpu": 1 << 19}
CHUNK_ACCELERATOR = 1 << 26


def row_chunks(captured: Captured) -> list[slice]:
    """Parts of a batch whose materialised gradients are few enough to be held at once."""
    limit = CHUNK.get(captured.inputs_RxLxI.device.type, CHUNK_ACCELERATOR)
    size = max(1, limit // captured.weight.size)
    return [slice(start, start + size) for start in range(0, len(captured), size)]
