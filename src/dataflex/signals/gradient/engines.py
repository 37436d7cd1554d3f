"""Inner products of pool rows with group vectors: from materialised gradients, or without any."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from dataflex.signals.gradient.capture import Captured
from dataflex.signals.gradient.moments import Adam
from dataflex.signals.gradient.targets import TargetGroups, row_chunks, squared_norms


class Engine(Protocol):
    """What is made of the captured gradients of a batch; nothing of a row is kept but its numbers."""

    num_columns: int

    def begin(self, rows_R: np.ndarray, device: torch.device) -> None:
        """A batch of these rows comes."""
        ...

    def take(self, captured: Captured) -> None:
        """One weight, each once a batch; without positions where no row used it."""
        ...

    def finish(self) -> torch.Tensor:
        """The batch's numbers, float64, shape (R, num_columns)."""
        ...


class Exact:
    """``<u_i, q_k>`` for every group, ``||u_i||`` and ``||g_i||``, with u_i Adam's update or the gradient itself.

    Materialises one weight's gradients of a few rows at a time: O(L n_o n_i + G n_o n_i) per row and weight.
    """

    normalises = True

    def __init__(self, targets: TargetGroups, adam: Adam | None) -> None:
        self.num_columns = targets.num_groups + 2
        self._targets, self._adam = targets, adam

    def begin(self, rows_R: np.ndarray, device: torch.device) -> None:
        self._sums_RxC = torch.zeros(len(rows_R), self.num_columns, dtype=torch.float64, device=device)

    def take(self, captured: Captured) -> None:
        unused = captured.inputs_RxLxI.shape[1] == 0
        if unused and self._adam is None:
            return
        # A weight that no row used has the same update in all of them: that of the moments.
        for part in [slice(0, 1)] if unused else row_chunks(captured):
            sums_RxC = self._sums_RxC if unused else self._sums_RxC[part]
            sums_RxC += self._products(captured.weight.name, captured.gradients(part))

    def _products(self, name: str, gradients_Rx: torch.Tensor) -> torch.Tensor:
        vectors_GxP = self._targets.vectors[name].flatten(1).float()
        # Not vector_norm: in fp32 it is off by 5e-4 for some million elements.
        raw_R = torch.linalg.vecdot(gradients_Rx.flatten(1), gradients_Rx.flatten(1)).double()
        updates_RxP = (gradients_Rx if self._adam is None else self._adam.update(name, gradients_Rx)).flatten(1)
        squares_R = raw_R if self._adam is None else torch.linalg.vecdot(updates_RxP, updates_RxP).double()
        return torch.cat([dot(updates_RxP, vectors_GxP), squares_R[:, None], raw_R[:, None]], dim=1)

    def finish(self) -> torch.Tensor:
        self._sums_RxC[:, -2:].sqrt_()
        return self._sums_RxC


# Longer sums than this are added up in float64: some processors' fp32 products of millions of terms are off by 3e-4.
BLOCK = 1 << 16


def dot(left_RxP: torch.Tensor, right_GxP: torch.Tensor) -> torch.Tensor:
    """Inner products of all rows, float64, shape (R, G)."""
    blocks = zip(left_RxP.split(BLOCK, dim=1), right_GxP.split(BLOCK, dim=1), strict=True)
    return sum(((left @ right.T).double() for left, right in blocks), start=left_RxP.new_zeros((), dtype=torch.float64))


class Ghost:
    """The same without a materialised gradient: ``<G_i, Q> = sum_t e_it^T Q a_it``, norms by pairs of positions.

    Under Adam only its frozen diagonal can be applied, and that to the group vectors alone:
    ``<u_i, q> = (1 - b1) <G_i, P q> + b1 <m, P q>``. The norm of u_i is then unknown (NaN).

    Source: GREATS (NeurIPS 2024), ghost inner products.
    """

    def __init__(self, targets: TargetGroups, adam: Adam | None) -> None:
        self.normalises = adam is None
        self.num_columns = targets.num_groups + 2
        self._vectors, self._constant_G = scaled_vectors(targets, adam)

    def begin(self, rows_R: np.ndarray, device: torch.device) -> None:
        self._sums_RxC = torch.zeros(len(rows_R), self.num_columns, dtype=torch.float64, device=device)
        self._sums_RxC[:, :-2] = self._constant_G

    def take(self, captured: Captured) -> None:
        if captured.inputs_RxLxI.shape[1] == 0:
            return
        self._sums_RxC[:, -1] += squared_norms(captured)
        for group, vector in enumerate(self._vectors[captured.weight.name]):
            self._sums_RxC[:, group] += inner_products(captured, vector)

    def finish(self) -> torch.Tensor:
        self._sums_RxC[:, -1].sqrt_()
        self._sums_RxC[:, -2] = self._sums_RxC[:, -1] if self.normalises else torch.nan
        return self._sums_RxC


def inner_products(captured: Captured, vector: torch.Tensor) -> torch.Tensor:
    """``<G_i, Q>`` of each row with a matrix of the weight's shape, float64, shape (R,)."""
    a, e = captured.inputs_RxLxI.float(), captured.output_gradients_RxLxO.float()
    matrix_OxI = vector.float().mT if captured.weight.input_first else vector.float()
    if captured.weight.num_in <= captured.weight.num_out:
        return ((e @ matrix_OxI) * a).sum((1, 2)).double()
    return ((a @ matrix_OxI.mT) * e).sum((1, 2)).double()


def pair_products(left: Captured, right: Captured) -> torch.Tensor:
    """``<G_i, G_j> = sum_st (a_is . a_jt) (e_is . e_jt)`` of each row of ``left`` with each of ``right``, float64."""
    a = torch.einsum("isn,jtn->ijst", left.inputs_RxLxI.float(), right.inputs_RxLxI.float())
    e = torch.einsum("isn,jtn->ijst", left.output_gradients_RxLxO.float(), right.output_gradients_RxLxO.float())
    return (a * e).sum((2, 3)).double()


def scaled_vectors(targets: TargetGroups, adam: Adam | None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Vectors q' and constants c of ``<u_i, q_k> = <G_i, q'_k> + c_k`` under the frozen diagonal of Adam."""
    constant_G = torch.zeros(targets.num_groups, dtype=torch.float64)
    if adam is None:
        return dict(targets.vectors), constant_G
    scaled = {}
    for name, vectors in targets.vectors.items():
        diagonal, momentum, share = adam.frozen_diagonal(name)
        product = vectors.float() * diagonal
        constant_G = constant_G.to(product.device) + (product * momentum).flatten(1).double().sum(1)
        scaled[name] = (product * share).to(vectors.dtype)
    return scaled, constant_G
