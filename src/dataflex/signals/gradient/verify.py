"""Whether the captured gradients are those of the model: two rows against plain autograd, before a pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dataflex.core.errors import DataFlexError
from dataflex.signals.base import undisturbed
from dataflex.signals.gradient.backward import logits_loss, loss_scale
from dataflex.signals.gradient.capture import Captured, Rows, UnknownRowsError
from dataflex.signals.gradient.signal import GradientSignal, Source, mean_weights
from dataflex.signals.gradient.weights import Weights
from dataflex.signals.head import IGNORE_INDEX
from dataflex.signals.loss import with_positions

# Distance of a row's gradient, in units of its norm: fp32, and half precision, whose sums differ with their order.
TOLERANCE_FP32, TOLERANCE_HALF = 1e-3, 0.1


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How rows of a model may be measured; holds for all rows of the same kind, as long as the model is built alike."""

    why_single: str = ""  # why one at a time; "" in batches
    repeated: frozenset[str] = frozenset()  # weights that a forward uses more than once


def verify(source: Source, weights: Weights, sample_rows: np.ndarray) -> Verdict:
    """Compare two rows' gradients, one of them alone and both in one batch, with autograd's own.

    Needs as much memory as two rows' gradients.

    Raises:
        DataFlexError: not even the gradients of one row are those of autograd.
    """
    if len(sample_rows) == 0:
        return Verdict(why_single="there is no row to compare on")
    tolerance = _tolerance(source)
    references = {row: _autograd(source, weights, row) for row in sample_rows.tolist()}
    alone = _Compare(references)
    signal = GradientSignal(source, weights, alone)
    signal.capture.repeated = {weight.name for weight in weights.included}  # until it is known which are
    with signal.engaged(sample_rows):
        signal.measure(signal.prepare(sample_rows[:1]))
    if alone.distance > tolerance:
        raise DataFlexError(
            f"the gradient of {alone.worst} cannot be taken a sample at a time: what its module sees gives another "
            f"one than autograd, by {alone.distance:.2g} of its norm; leave it out of the trained modules, or "
            "take a method that needs no gradients"
        )
    shared = {weight.name for weight in weights.included if len(weight.modules) > 1}
    repeated = frozenset(shared | {name for name, times in signal.capture.num_uses.items() if times > 1})
    together = _Compare(references)
    signal = GradientSignal(source, weights, together, like=signal)
    signal.capture.repeated = set(repeated)
    why = ""
    try:
        with signal.engaged(sample_rows):
            signal.measure(signal.prepare(sample_rows))
    except UnknownRowsError as unknown:
        why = f"a module sees positions of rows that cannot be told apart ({unknown})"
    else:
        if together.distance > tolerance:
            why = f"in a batch the gradient of {together.worst} differs by {together.distance:.2g} of its norm"
    return Verdict(why_single=why, repeated=repeated)


class _Compare:
    """An engine that measures how far rows' gradients are from references, and keeps nothing else."""

    num_columns = 1

    def __init__(self, references: dict[int, dict[str, torch.Tensor]]) -> None:
        self._references = references
        self._squares: dict[tuple[int, str], float] = {}

    @property
    def distance(self) -> float:
        """Of the worst row, in units of its reference's norm; infinite where it is not a number."""
        worst = 0.0
        for row in {row for row, _ in self._squares}:
            norm = sum(float(gradient.double().square().sum()) for gradient in self._references[row].values()) ** 0.5
            apart = sum(square for (of, _), square in self._squares.items() if of == row) ** 0.5
            worst = max(worst, apart / max(norm, 1e-30)) if np.isfinite(apart) else float("inf")
        return worst

    @property
    def worst(self) -> str:
        return max(self._squares, key=lambda key: np.nan_to_num(self._squares[key], nan=np.inf))[1]

    def begin(self, rows_R: np.ndarray, device: torch.device) -> None:
        self._rows_R = rows_R
        self._zeros_R = torch.zeros(len(rows_R), 1, dtype=torch.float64, device=device)

    def take(self, captured: Captured) -> None:
        name = captured.weight.name
        for at, row in enumerate(self._rows_R.tolist()):
            apart = captured.gradients(slice(at, at + 1))[0] - self._references[row][name]
            self._squares[row, name] = float(apart.double().square().sum())

    def finish(self) -> torch.Tensor:
        return self._zeros_R


def _autograd(source: Source, weights: Weights, row: int) -> dict[str, torch.Tensor]:
    """The gradient of one row's mean loss, from the host's own batch of that row and the model's own logits."""
    inputs: dict[str, Any] = dict(source.to_device(dict(source.collate(source.features(np.array([row]))))))
    labels_1xT = inputs.pop("labels").clone()
    if (mask := inputs.get("attention_mask")) is not None and mask.dim() == 2:
        labels_1xT[:, 1:].masked_fill_(mask[:, :-1] == 0, IGNORE_INDEX)
    weights_1xT, _ = mean_weights(labels_1xT, Rows(shape=(*labels_1xT.shape,)))
    with_positions(inputs)
    scale = loss_scale(source.model, source.autocast)
    with undisturbed(source.model), torch.enable_grad():
        with source.autocast():
            logits = source.model(**inputs, use_cache=False).logits
        loss = logits_loss(logits, labels_1xT, weights_1xT * scale)
        parameters = [weight.parameter for weight in weights.included]
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        weight.name: torch.zeros_like(weight.parameter) if gradient is None else gradient.float() / scale
        for weight, gradient in zip(weights.included, found, strict=True)
    }


def _tolerance(source: Source) -> float:
    parameters = list(source.model.parameters())
    with source.autocast():
        half = torch.is_autocast_enabled(parameters[0].device.type)
    half = half or any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in parameters)
    return TOLERANCE_HALF if half else TOLERANCE_FP32
