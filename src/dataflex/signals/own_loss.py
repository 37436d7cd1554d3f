"""Per-sample loss of any trainer: its own loss of each row in a batch by itself, or of many rows where it agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

ONE_ROW = 1  # padded tokens of a batch: a longer row is a batch of its own
TOLERANCE = 1e-4


class OwnLossSignal:
    """The trainer's own loss of each row alone, and 1, for each sample.

    ``loss_i = compute_loss(collate([row_i]))``: a pair's DPO loss, a row's KTO loss, a pair's reward loss, whatever a
    trainer of your own computes. Alone, because a trainer tells the mean of a batch only, and because some losses
    (KTO's estimate of the KL divergence) depend on the rest of the batch. Where the losses of a whole batch can be had
    (``batch_losses``), they are compared with those of single rows on a few, and taken if they agree. Otherwise every
    batch must be one row (``ONE_ROW``), so that all ranks run as many forwards.

    Args:
        model: handed to ``compute_loss``.
        features: rows -> one feature dict per sample, as the host's data set yields them.
        collate: the host's collator.
        to_device: moves a batch to the model's device.
        compute_loss: the host's ``compute_loss(model, inputs)``, the mean loss of a batch.
        batch_losses: ``(model, inputs) -> losses of shape (B,)``, or None.
        autocast: the host's own autocast context.
        untouched: a context that restores what the host counts while it computes losses.
    """

    num_columns = 2  # loss, 1
    tolerance = TOLERANCE

    def __init__(
        self,
        *,
        model: nn.Module,
        features: Callable[[np.ndarray], list[dict[str, Any]]],
        collate: Callable[[list[dict[str, Any]]], Any],
        to_device: Callable[[Any], dict[str, Any]],
        compute_loss: Callable[[nn.Module, dict[str, Any]], torch.Tensor],
        batch_losses: Callable[[nn.Module, dict[str, Any]], torch.Tensor] | None,
        autocast: Callable[[], AbstractContextManager],
        untouched: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.model = model
        self._features, self._collate, self._to_device = features, collate, to_device
        self._compute_loss, self._batch_losses = compute_loss, batch_losses
        self._autocast, self._untouched = autocast, untouched
        self.verdict: str | None = None  # why rows are measured alone; "": batches agree; None: not compared yet

    def check(self, sample_rows: np.ndarray) -> str:
        """Compare a batch of ``sample_rows`` with each of them alone, the first time."""
        if self.verdict is None:
            self.verdict = self._check(sample_rows)
        return self.verdict

    @contextmanager
    def engaged(self, sample_rows: np.ndarray) -> Iterator[str | None]:
        """Yields why rows are measured alone, or None."""
        yield self.check(sample_rows) or None

    def _check(self, sample_rows: np.ndarray) -> str:
        if self._batch_losses is None:
            return "the trainer tells no loss of each row of a batch"
        if len(sample_rows) == 0:
            return "there is no row to compare on"
        alone_B = self._alone([self._collate([feature]) for feature in self._features(sample_rows)])
        try:
            together_B = self._together(self._collate(self._features(sample_rows)))
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            return f"a batch cannot be measured: {' '.join(str(error).split())[:200]}"
        if together_B.shape == alone_B.shape and torch.allclose(together_B, alone_B, rtol=TOLERANCE, atol=TOLERANCE):
            return ""
        return f"losses of a batch {together_B.tolist()} are not those of its rows alone {alone_B.tolist()}"

    def prepare(self, rows_B: np.ndarray) -> Any:
        features = self._features(rows_B)
        return [self._collate([feature]) for feature in features] if self.verdict else self._collate(features)

    def measure(self, batch: Any) -> torch.Tensor:
        losses_B = self._alone(batch) if self.verdict else self._together(batch)
        return torch.stack([losses_B, torch.ones_like(losses_B)], dim=1)

    def _alone(self, batches: list[Any]) -> torch.Tensor:
        losses = []
        with self._untouched(), self._autocast():
            for batch in batches:
                losses.append(self._compute_loss(self.model, self._to_device(batch)).detach().double().reshape(()))
        return torch.stack(losses)

    def _together(self, batch: Any) -> torch.Tensor:
        assert self._batch_losses is not None
        with self._untouched(), self._autocast():
            return self._batch_losses(self.model, self._to_device(batch)).detach().double()
