"""Per-sample loss: the negative log-likelihood of each sample's label tokens under the current model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from dataflex.signals.head import IGNORE_INDEX, LabelHead, chunks, negative_log_likelihood

# Agreement of the fast path with the model's own logits, relative: fp32, and half precision, where the fast path
# upcasts before scaling and the model after.
TOLERANCE_FP32, TOLERANCE_HALF = 1e-4, 2e-2
TEXT_KEYS = {"input_ids", "attention_mask", "labels"}
# Columns that a collator turns into labels, and what it may add to a batch without changing what the model computes of
# rows that are padded on the right.
MASK_KEYS = {"completion_mask", "assistant_masks"}


class LossSignal:
    """Sum of the label tokens' negative log-likelihoods (fp32) and their number, for each sample.

    ``loss_sum_i = -sum_t log p(label_it | tokens before t)``, over the labels that are not ``IGNORE_INDEX``.

    Two ways lead there. The *plain* one asks the host's collator for a batch and the model for its logits. The *fast*
    one pads plain text on the right, so that no mask is needed (a causal model never looks there), and sends only
    label positions through the head. ``engaged`` compares both on a few rows and takes the fast one if they agree.

    Args:
        model: called as ``model(**inputs)``; wrapped where the model is sharded.
        features: rows -> one feature dict per sample, as the host's data set yields them.
        collate: the host's collator.
        to_device: moves a batch to the model's device.
        autocast: the host's own autocast context.
        row_labels: labels of rows that have none before the collator.
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
        row_labels: Callable[[list[dict[str, Any]]], Sequence[Any]] | None = None,
    ) -> None:
        self.model = model
        self._row_labels = row_labels
        self._features = features
        self._collate = collate
        self._to_device = to_device
        self._autocast = autocast
        self._head: LabelHead | None = None
        self.verdict: str | None = None  # why the plain path is taken; "": both agree; None: not compared yet

    @property
    def is_fast(self) -> bool:
        """True while the fast path is taken."""
        return self._head is not None

    @contextmanager
    def engaged(self, sample_rows: np.ndarray) -> Iterator[str | None]:
        """Take the fast path for the duration if it agrees with the plain one on ``sample_rows`` (a few).

        Yields:
            Why the plain path is taken, or None.
        """
        self.check(sample_rows)
        if self.verdict:
            yield self.verdict
            return
        with self._through(LabelHead(self.model)):
            yield None

    def check(self, sample_rows: np.ndarray) -> str:
        """Compare both paths, the first time; later passes go by that ``verdict``."""
        if self.verdict is None:
            self.verdict = self._check(LabelHead(self.model), sample_rows)
        return self.verdict

    @contextmanager
    def _through(self, head: LabelHead) -> Iterator[None]:
        with head.engaged():
            self._head = head
            try:
                yield
            finally:
                self._head = None

    def _check(self, head: LabelHead, sample_rows: np.ndarray) -> str:
        """Compare both paths; return why the fast one cannot be taken, "" when it can."""
        if len(sample_rows) == 0:
            return "there is no row to compare on"
        features = self._features(sample_rows)
        batch = self._collate([dict(feature) for feature in features])
        if not is_text(features, batch, labels_follow=self._row_labels is not None):
            return "rows are more than tokens and labels"
        if not head.usable:
            return "the model names no output embeddings"
        plain_Bx2 = self.measure(self.prepare(sample_rows))
        try:
            with self._through(head):
                fast_Bx2 = self.measure(self.prepare(sample_rows))
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            return f"the fast path fails: {' '.join(str(error).split())[:200]}"
        tolerance = self.tolerance
        if torch.allclose(fast_Bx2, plain_Bx2, rtol=tolerance, atol=tolerance, equal_nan=True):
            return ""
        apart = float(((fast_Bx2 - plain_Bx2).abs() / plain_Bx2.abs().clamp(min=1e-9)).max())
        return f"the fast path differs from the model's own logits by {apart:.2g}"

    @property
    def tolerance(self) -> float:
        """How far apart two measurements of the same weights may be, relative."""
        parameters = list(self.model.parameters())
        with self._autocast():
            autocasts = torch.is_autocast_enabled(parameters[0].device.type)
        half = autocasts or any(p.dtype in (torch.bfloat16, torch.float16) for p in parameters)
        return TOLERANCE_HALF if half else TOLERANCE_FP32

    def prepare(self, rows_B: np.ndarray) -> dict[str, Any] | list[dict[str, Any]]:
        features = self._features(rows_B)
        if self.is_fast and all(np.all(f.get("attention_mask", 1)) and not _others(f) for f in features):
            return pad_right([f["input_ids"] for f in features], self._labels(features))
        batch = dict(self._collate([dict(feature) for feature in features]))
        if len(features) > 1 and len(batch["input_ids"]) != len(features):
            # Padding-free: the collator lays the rows end to end, and how far each reaches is no longer told.
            return [dict(self._collate([feature])) for feature in features]
        return batch

    def _labels(self, features: list[dict[str, Any]]) -> Sequence[Any]:
        if self._row_labels is not None and "labels" not in features[0]:
            return self._row_labels(features)
        return [feature["labels"] for feature in features]

    def measure(self, batch: dict[str, Any] | list[dict[str, Any]]) -> torch.Tensor:
        if isinstance(batch, list):
            return torch.cat([self.measure(one) for one in batch])
        inputs = dict(self._to_device(batch))
        labels_BxT = inputs.pop("labels")
        if self._head is not None and set(inputs) <= TEXT_KEYS:
            fast = self._head.losses(lambda: self._forward(inputs), labels_BxT)
            if fast is None:
                raise ValueError("the hidden states did not reach the head as one tensor of samples x positions")
            return fast
        if (mask := inputs.get("attention_mask")) is not None and mask.dim() == 2:
            # Left padding: what stands before a row's first token predicts nothing.
            labels_BxT[:, 1:].masked_fill_(mask[:, :-1] == 0, IGNORE_INDEX)
        with_positions(inputs)
        return loss_sums(self._forward(inputs).logits[:, :-1], labels_BxT[:, 1:])

    def _forward(self, inputs: dict[str, Any]) -> Any:
        with self._autocast():
            return self.model(**inputs, use_cache=False)


def rows_to_check(lengths_N: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Two rather short rows, on which both ways to the loss are compared; one of them needs padding."""
    order = rows[np.argsort(lengths_N[rows], kind="stable")]
    return order[[len(order) // 16, len(order) // 4]] if len(order) else order


def is_text(features: list[dict[str, Any]], batch: dict[str, Any], *, labels_follow: bool = False) -> bool:
    """True when rows are nothing but tokens and labels, and the host's collator adds nothing to them.

    Args:
        labels_follow: labels that rows do not have can be had from the collator.
    """
    others_are_empty = not any(_others(feature) for feature in features)
    has_labels = labels_follow or all("labels" in feature for feature in features)
    return others_are_empty and has_labels and set(batch) <= TEXT_KEYS | {"position_ids"}


def _others(feature: dict[str, Any]) -> bool:
    """True when a row has more than tokens and labels, such as an image."""
    return any(
        value is not None and len(np.atleast_1d(value))
        for key, value in feature.items()
        if key not in TEXT_KEYS | MASK_KEYS
    )


def pad_right(ids: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Pad rows on the right to the longest, without a mask.

    A causal model's numbers at real positions do not depend on what follows, and padding carries no label.
    """
    lengths_B = np.array([len(row) for row in ids])
    real_BxT = np.arange(lengths_B.max(initial=1)) < lengths_B[:, None]
    ids_BxT = np.zeros(real_BxT.shape, dtype=np.int64)
    labels_BxT = np.full(real_BxT.shape, IGNORE_INDEX, dtype=np.int64)
    ids_BxT[real_BxT] = np.concatenate([np.asarray(row) for row in ids])
    labels_BxT[real_BxT] = np.concatenate([np.asarray(row) for row in labels])
    return {"input_ids": torch.from_numpy(ids_BxT), "labels": torch.from_numpy(labels_BxT)}


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

    ``logits[:, p]`` predict ``targets[:, p]``.
    """
    losses_BxP = token_losses(logits_BxPxV, targets_BxP)
    num_labels_B = (targets_BxP != IGNORE_INDEX).sum(1)
    return torch.stack([losses_BxP.double().sum(1), num_labels_B.double()], dim=1)


def token_losses(logits_BxPxV: torch.Tensor, targets_BxP: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each label, float32, shape (B, P); 0 where there is none.

    ``logits[:, p]`` predict ``targets[:, p]``; only positions with a label are copied and upcast, a chunk at a time.
    """
    sample_L, position_L = (targets_BxP != IGNORE_INDEX).nonzero(as_tuple=True)
    targets_L = targets_BxP[sample_L, position_L]
    losses_BxP = torch.zeros(targets_BxP.shape, dtype=torch.float32, device=targets_BxP.device)
    for part in chunks(len(targets_L), logits_BxPxV.shape[-1]):
        logits_LxV = logits_BxPxV[sample_L[part], position_L[part]]
        losses_BxP[sample_L[part], position_L[part]] = negative_log_likelihood(logits_LxV, targets_L[part])
    return losses_BxP


def mean_losses(values_NxC: np.ndarray) -> np.ndarray:
    """Loss per label token, float32, shape (N,); NaN where there is no label token or the loss is not finite."""
    sums_N, counts_N = values_NxC[:, 0], values_NxC[:, 1]
    losses_N = np.full(len(sums_N), np.nan)
    np.divide(sums_N, counts_N, out=losses_N, where=counts_N > 0)
    return np.where(np.isfinite(losses_N), losses_N, np.nan).astype(np.float32)
