"""The gradient signal: an engine's numbers of each row, measured a batch at a time like the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from dataflex.signals.base import undisturbed
from dataflex.signals.gradient.backward import MeanLossHead, differentiable, logits_loss, loss_scale
from dataflex.signals.gradient.capture import Capture, Captured, Rows, packed_rows
from dataflex.signals.gradient.engines import Engine
from dataflex.signals.gradient.weights import Weights
from dataflex.signals.head import IGNORE_INDEX, innermost
from dataflex.signals.loss import TEXT_KEYS, LossSignal, with_positions


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows and how a model is called on them; see ``LossSignal`` for the fields."""

    model: nn.Module  # bare: neither DDP's nor a sharding wrapper
    features: Callable[[np.ndarray], list[dict[str, Any]]]
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    to_device: Callable[[dict[str, Any]], dict[str, Any]]
    autocast: Callable[[], AbstractContextManager]
    row_labels: Callable[[list[dict[str, Any]]], Sequence[Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A collated batch and the rows in it."""

    rows_R: np.ndarray
    inputs: dict[str, Any]
    packed: bool = False  # one sequence that holds the rows end to end


class GradientSignal:
    """An engine's numbers for each row of a source; NaN for a row without label tokens or with a loss not finite.

    The row's loss is the mean negative log-likelihood of its label tokens; no auxiliary loss of a router is added.
    One backward of the sum over a batch's rows gives every row's activations and output gradients, since rows do not
    interact. Rows are batched as the loss signal batches them, by the same two ways.
    """

    def __init__(self, source: Source, weights: Weights, engine: Engine, *, like: GradientSignal | None = None) -> None:
        self.model, self.num_columns = source.model, engine.num_columns
        self._source, self._weights, self._engine = source, weights, engine
        # Of another signal of the same source, so that its two ways to make a batch are compared once.
        self._loss = like._loss if like is not None else _loss_signal(source)
        self.capture = Capture(weights)
        self._scale = loss_scale(source.model, source.autocast)
        self._head: MeanLossHead | None = None

    @contextmanager
    def engaged(self, sample_rows: np.ndarray) -> Iterator[None]:
        """Hooks in place, parameters without gradients, everything as before afterwards.

        Args:
            sample_rows: a few, on which the loss signal compares its two ways to make a batch.
        """
        with undisturbed(self.model):
            fast = not self._loss.check(sample_rows)
        find = getattr(innermost(self.model), "get_output_embeddings", None)
        head = find() if find is not None else None
        captured = {module for weight in self._weights.included for module in weight.modules}
        with ExitStack() as stack:
            stack.enter_context(differentiable(self.model))
            stack.enter_context(self.capture.engaged())
            if fast:
                stack.enter_context(self._loss.engaged(sample_rows))
            # A head that is trained itself has to see all positions.
            if fast and head not in captured:
                self._head = MeanLossHead(self.model)
                stack.enter_context(self._head.engaged())
            try:
                yield
            finally:
                self._head = None

    def prepare(self, rows_B: np.ndarray) -> list[Batch]:
        batch = self._loss.prepare(rows_B)
        if isinstance(batch, dict):
            return [Batch(rows_R=rows_B, inputs=batch)]
        # Padding-free: one sequence, of which the positions tell where each row begins, if they do.
        whole = dict(self._source.collate([dict(feature) for feature in self._source.features(rows_B)]))
        positions = whole.get("position_ids")
        if positions is not None and len(positions) == 1 and int((positions == 0).sum()) == len(rows_B):
            return [Batch(rows_R=rows_B, inputs=whole, packed=True)]
        return [Batch(rows_R=rows_B[[i]], inputs=one) for i, one in enumerate(batch)]

    def measure(self, batch: list[Batch]) -> torch.Tensor:
        return torch.cat([self._measure(one) for one in batch])

    def _measure(self, batch: Batch) -> torch.Tensor:
        inputs = dict(self._source.to_device(dict(batch.inputs)))
        labels_BxT = inputs.pop("labels").clone()
        rows = packed_rows(inputs["position_ids"]) if batch.packed else Rows(shape=(*labels_BxT.shape,))
        if batch.packed:
            labels_BxT[inputs["position_ids"] == 0] = IGNORE_INDEX  # predicted from the row before
        if (mask := inputs.get("attention_mask")) is not None and mask.dim() == 2:
            labels_BxT[:, 1:].masked_fill_(mask[:, :-1] == 0, IGNORE_INDEX)
        weights_BxT, counts_R = mean_weights(labels_BxT, rows)
        self._engine.begin(batch.rows_R, labels_BxT.device)
        with self.capture.batch(rows, lambda captured: self._engine.take(self._unscaled(captured))):
            loss = self._total_loss(inputs, labels_BxT, weights_BxT * self._scale)
            loss.backward()
            for captured in self.capture.rest():
                self._engine.take(self._unscaled(captured))
        with torch.no_grad():
            values_RxC = self._engine.finish()
            wrong_R = (counts_R == 0) | ~torch.isfinite(values_RxC).any(dim=1)
            return values_RxC.masked_fill(wrong_R[:, None], torch.nan)

    def _unscaled(self, captured: Captured) -> Captured:
        if self._scale == 1.0:
            return captured
        gradients = captured.output_gradients_RxLxO.float() / self._scale
        return Captured(weight=captured.weight, inputs_RxLxI=captured.inputs_RxLxI, output_gradients_RxLxO=gradients)

    def _total_loss(self, inputs: dict[str, Any], labels_BxT: torch.Tensor, weights_BxT: torch.Tensor) -> torch.Tensor:
        def forward() -> Any:
            with self._source.autocast():
                return self.model(**inputs, use_cache=False)

        if self._head is not None and set(inputs) <= TEXT_KEYS:
            loss = self._head.loss(forward, labels_BxT, weights_BxT)
            if loss is None:
                raise ValueError("the hidden states did not reach the head as one tensor of samples x positions")
            return loss
        with_positions(inputs)
        return logits_loss(forward().logits, labels_BxT, weights_BxT)


def _loss_signal(source: Source) -> LossSignal:
    return LossSignal(
        model=source.model,
        features=source.features,
        collate=source.collate,
        to_device=source.to_device,
        autocast=source.autocast,
        row_labels=source.row_labels,
    )


def mean_weights(labels_BxT: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight of each label in its row's mean, float32, shape (B, T); number of label tokens of each row, shape (R,)."""
    is_label_BxT = labels_BxT != IGNORE_INDEX
    is_label_BxT[:, 0] = False  # nothing predicts it
    counts_R = rows.split(is_label_BxT[..., None].float()).sum((1, 2))
    weights_R = 1 / counts_R.clamp(min=1)
    if rows.packed_RxL is None:
        return is_label_BxT * weights_R[:, None], counts_R
    weights_T = weights_R.new_zeros(rows.shape[1] + 1)
    weights_T[rows.packed_RxL] = weights_R[:, None].expand(rows.packed_RxL.shape).contiguous()
    return is_label_BxT * weights_T[None, :-1], counts_R
