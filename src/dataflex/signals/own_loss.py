"""Per-sample loss of any trainer: its own loss of each row in a batch by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn


class OwnLossSignal:
    """The trainer's own loss of each row alone, and 1, for each sample.

    ``loss_i = compute_loss(collate([row_i]))``: a pair's DPO loss, a row's KTO loss, a pair's reward loss, whatever a
    trainer of your own computes. Alone, because a trainer tells the mean of a batch only, and because some losses
    (KTO's estimate of the KL divergence) depend on the rest of the batch. Rows are measured one at a time, by batches
    of one token budget (``ONE_ROW``), so that every rank runs as many forwards.

    Args:
        model: handed to ``compute_loss``.
        features: rows -> one feature dict per sample, as the host's data set yields them.
        collate: the host's collator.
        to_device: moves a batch to the model's device.
        compute_loss: the host's ``compute_loss(model, inputs)``, the mean loss of a batch.
        untouched: a context that restores what the host counts while it computes losses.
    """

    num_columns = 2  # loss, 1
    verdict = "rows are more than tokens and labels"
    tolerance = 1e-4

    def __init__(
        self,
        *,
        model: nn.Module,
        features: Callable[[np.ndarray], list[dict[str, Any]]],
        collate: Callable[[list[dict[str, Any]]], Any],
        to_device: Callable[[Any], dict[str, Any]],
        compute_loss: Callable[[nn.Module, dict[str, Any]], torch.Tensor],
        untouched: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.model = model
        self._features, self._collate, self._to_device = features, collate, to_device
        self._compute_loss, self._untouched = compute_loss, untouched

    def prepare(self, rows_B: np.ndarray) -> list[Any]:
        return [self._collate([feature]) for feature in self._features(rows_B)]

    def measure(self, batch: list[Any]) -> torch.Tensor:
        with self._untouched():
            losses = [self._compute_loss(self.model, self._to_device(one)).detach().double() for one in batch]
        losses_B = torch.stack([loss.reshape(()) for loss in losses])
        return torch.stack([losses_B, torch.ones_like(losses_B)], dim=1)


ONE_ROW = 1  # padded tokens of a batch: a longer row is a batch of its own
