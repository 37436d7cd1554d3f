"""Small features of gradients whose inner products are, in expectation, those of the gradients themselves."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from dataflex.signals.gradient.capture import Captured
from dataflex.signals.gradient.engines import scaled_vectors
from dataflex.signals.gradient.moments import Adam
from dataflex.signals.gradient.targets import TargetGroups
from dataflex.signals.gradient.weights import Weight, Weights


class Factorised:
    """``z_i = vec(P_o G_i P_i^T) = sum_t (P_o e_it) kron (P_i a_it)`` of each weight, end to end.

    P_o is k_o x n_o and P_i is k_i x n_i, Gaussian with variance 1 / k, seeded by (seed, name of the weight, side), so
    that no two weights share a projection; a side no longer than k is left as it is. ``E <z_i, z_j> = <G_i, G_j>``.

    Args:
        rank: k of both sides.

    Source: LoGra (2405.13954).
    """

    def __init__(self, weights: Weights, *, rank: int = 16, seed: int = 0) -> None:
        self._sides = {
            weight.name: tuple(
                _projection(length, rank, seed, weight, side)
                for length, side in ((weight.num_out, "out"), (weight.num_in, "in"))
            )
            for weight in weights.included
        }
        self._starts: dict[str, int] = {}
        start = 0
        for weight in weights.included:
            self._starts[weight.name] = start
            start += min(rank, weight.num_out) * min(rank, weight.num_in)
        self.num_columns = start

    def begin(self, rows_R: np.ndarray, device: torch.device) -> None:
        self._features_RxF = torch.zeros(len(rows_R), self.num_columns, dtype=torch.float32, device=device)

    def take(self, captured: Captured) -> None:
        out, into = self._sides[captured.weight.name]
        a, e = captured.inputs_RxLxI.float(), captured.output_gradients_RxLxO.float()
        a, e = a if into is None else a @ into.mT, e if out is None else e @ out.mT
        self._put(self._features_RxF, captured.weight.name, torch.bmm(e.mT, a))

    def finish(self) -> torch.Tensor:
        return self._features_RxF.double()

    def group_features(
        self, targets: TargetGroups, adam: Adam | None, weights: Weights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (G, F) of the group vectors and constants (G,): ``<u_i, q_k>`` is ``<z_i, features_k> + c_k``.

        Adam's frozen diagonal is applied before the projection.
        """
        scaled, constant_G = scaled_vectors(targets, adam)
        features_GxF = torch.zeros(targets.num_groups, self.num_columns)
        for weight in weights.included:
            out, into = self._sides[weight.name]
            vectors = scaled[weight.name].float()
            vectors = vectors.mT if weight.input_first else vectors
            vectors = vectors if out is None else out @ vectors
            self._put(features_GxF, weight.name, (vectors if into is None else vectors @ into.mT).cpu())
        return features_GxF, constant_G.cpu()

    def _put(self, features: torch.Tensor, name: str, values: torch.Tensor) -> None:
        start = self._starts[name]
        features[:, start : start + values[0].numel()] = values.flatten(1)


def _projection(length: int, rank: int, seed: int, weight: Weight, side: str) -> torch.Tensor | None:
    """A Gaussian matrix (rank, length), the same on every machine; None where nothing is to be gained."""
    if length <= rank:
        return None
    words = np.frombuffer(hashlib.sha256(f"{weight.name} {side}".encode()).digest(), dtype=np.uint32)
    rng = np.random.default_rng([seed, *words.tolist()])
    matrix = rng.standard_normal((rank, length), dtype=np.float32) / np.float32(np.sqrt(rank))
    return torch.from_numpy(matrix).to(weight.parameter.device)
