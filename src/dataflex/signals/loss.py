"""Per-sample loss: the negative log-likelihood of each sample's label tokens under the current model."""

from __future__ import annotations

import inspect
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
        self._keeps_positions = "logits_to_keep" in inspect.signature(_innermost(model).forward).parameters

    def measure(self, rows_B: np.ndarray) -> torch.Tensor:
        inputs = dict(self.to_device(dict(self.collate(self.features(rows_B)))))
        labels_BxT = inputs.pop("labels")
        if (mask := inputs.get("attention_mask")) is not None and mask.dim() == 2:
            # Left padding: what stands before a row's first token predicts nothing.
            labels_BxT[:, 1:].masked_fill_(mask[:, :-1] == 0, IGNORE_INDEX)
        with_positions(inputs)
        if self._keeps_positions:
            # Logits of prompt positions are read by nobody: only positions that some row has a label at are computed.
            kept_P = (labels_BxT[:, 1:] != IGNORE_INDEX).any(0).nonzero().flatten()
            inputs["logits_to_keep"] = kept_P
        else:
            kept_P = torch.arange(labels_BxT.shape[1] - 1, device=labels_BxT.device)
        with self.autocast():
            logits_BxPxV = self.model(**inputs, use_cache=False).logits
        return loss_sums(logits_BxPxV, labels_BxT[:, kept_P + 1])


def with_positions(inputs: dict[str, Any]) -> None:
    """Count positions from the first real token where a batch is padded on the left.

    Models count from the first column when no ``position_ids`` are given, and a sample's loss would then depend on
    how far its batch mates push it to the right.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2 or "position_ids" in inputs or bool(mask[:, 0].all()):
        return
    inputs["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)


def loss_sums(logits_BxPxV: torch.Tensor, targets_BxP: torch.Tensor) -> torch.Tensor:
    """Return (loss sum, number of label tokens) of each sample, float64, shape (B, 2).

    ``logits[:, p]`` predict ``targets[:, p]``; further positions of the logits are ignored. Only positions with a label
    are upcast, ``CHUNK`` at a time.
    """
    has_label_BxP = targets_BxP != IGNORE_INDEX
    sample_L, position_L = has_label_BxP.nonzero(as_tuple=True)
    targets_L = targets_BxP[sample_L, position_L]
    sums_B = torch.zeros(len(targets_BxP), dtype=torch.float64, device=targets_BxP.device)
    for start in range(0, len(targets_L), CHUNK):
        chunk = slice(start, start + CHUNK)
        logits_LxV = logits_BxPxV[sample_L[chunk], position_L[chunk]].float()
        losses_L = nn.functional.cross_entropy(logits_LxV, targets_L[chunk], reduction="none")
        sums_B.index_add_(0, sample_L[chunk], losses_L.double())
    return torch.stack([sums_B, has_label_BxP.sum(1).double()], dim=1)


def _innermost(model: nn.Module) -> nn.Module:
    """The model under DDP, FSDP or DeepSpeed wrappers and PEFT."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    get_base = getattr(model, "get_base_model", None)
    return get_base() if get_base is not None else model


def mean_losses(values_NxC: np.ndarray) -> np.ndarray:
    """Loss per label token, float32, shape (N,); NaN where there is no label token or the loss is not finite."""
    sums_N, counts_N = values_NxC[:, 0], values_NxC[:, 1]
    losses_N = np.full(len(sums_N), np.nan)
    np.divide(sums_N, counts_N, out=losses_N, where=counts_N > 0)
    return np.where(np.isfinite(losses_N), losses_N, np.nan).astype(np.float32)
