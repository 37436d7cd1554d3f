"""Per-sample loss: the negative log-likelihood of each sample's label tokens under the current model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn

IGNORE_INDEX = -100
# Label positions whose logits are upcast to fp32 at a time: bounds the extra memory to CHUNK x vocabulary.
CHUNK = 1024


class LossSignal:
    """Sum of the label tokens' negative log-likelihoods (fp32) and their number, for each sample.

    ``loss_sum_i = -sum_t log p(label_it | tokens before t)``, over the labels that are not ``IGNORE_INDEX``. The
    host's own collator and autocast are used, so that the model sees what it is trained on; padding and batch mates
    change nothing beyond the order of summation.

    Args:
        model: called as ``model(**inputs).logits``; wrapped where the model is sharded.
        features: rows -> one feature dict per sample, as the host's data set yields them.
        collate: the host's collator.
        to_device: moves a batch to the model's device.
        autocast: the host's own autocast context.
    """

    num_columns = 2  # loss sum, number of label tokens

    def __init__(
        self,
        *,
        model: nn.Module,
        features: Callable[[np.ndarray], list[dict[str, Any]]],
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        to_device: Callable[[dict[str, Any]], dict[str, Any]],
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.model = model
        self.features = features
        self.collate = collate
        self.to_device = to_device
        self.autocast = autocast

    def measure(self, rows_B: np.ndarray) -> torch.Tensor:
        inputs = dict(self.to_device(dict(self.collate(self.features(rows_B)))))
        labels_BxT = inputs.pop("labels")
        with_positions(inputs)
        with self.autocast():
            logits_BxTxV = self.model(**inputs, use_cache=False).logits
        return loss_sums(logits_BxTxV, labels_BxT)


def with_positions(inputs: dict[str, Any]) -> None:
    """Count positions from the first real token where a batch is padded on the left.

    Models count from the first column when no ``position_ids`` are given, and a sample's loss would then depend on
    how far its batch mates push it to the right.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2 or "position_ids" in inputs or bool(mask[:, 0].all()):
        return
    inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)


def loss_sums(logits_BxTxV: torch.Tensor, labels_BxT: torch.Tensor) -> torch.Tensor:
    """Return (loss sum, number of label tokens) of each sample, float64, shape (B, 2).

    Position t predicts label t + 1. Only positions with a label are upcast, ``CHUNK`` at a time.
    """
    targets_BxT = labels_BxT[:, 1:]
    has_label_BxT = targets_BxT != IGNORE_INDEX
    sample_P, position_P = has_label_BxT.nonzero(as_tuple=True)
    targets_P = targets_BxT[sample_P, position_P]
    sums_B = torch.zeros(len(labels_BxT), dtype=torch.float64, device=labels_BxT.device)
    for start in range(0, len(targets_P), CHUNK):
        chunk = slice(start, start + CHUNK)
        logits_PxV = logits_BxTxV[sample_P[chunk], position_P[chunk]].float()
        losses_P = nn.functional.cross_entropy(logits_PxV, targets_P[chunk], reduction="none")
        sums_B.index_add_(0, sample_P[chunk], losses_P.double())
    return torch.stack([sums_B, has_label_BxT.sum(1).double()], dim=1)


def mean_losses(values_NxC: np.ndarray) -> np.ndarray:
    """Loss per label token, float32, shape (N,); NaN where there is no label token or the loss is not finite."""
    sums_N, counts_N = values_NxC[:, 0], values_NxC[:, 1]
    losses_N = np.full(len(sums_N), np.nan)
    np.divide(sums_N, counts_N, out=losses_N, where=counts_N > 0)
    return np.where(np.isfinite(losses_N), losses_N, np.nan).astype(np.float32)
