"""Whether the captured gradients are those of the model: two rows against plain autograd, before a pass."""

from __future__ import annotations

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


def verify(source: Source, weights: Weights, sample_rows: np.ndarray) -> tuple[str, set[str]]:
    """Compare a few rows' gradients, alone and in one batch, with autograd's own.

    Needs as much memory as one step of training needs for its gradients.

    Returns:
        Why rows have to be measured one at a time, "" if in batches; and the weights that are used more than once.

    Raises:
        DataFlexError: not even the gradients of one row are those of autograd.
    """
    if len(sample_rows) == 0:
        return "there is no row to compare on", set()
    tolerance = _tolerance(source)
    repeated = {weight.name for weight in weights.included}  # until it is known which are
    shared = {weight.name for weight in weights.included if len(weight.modules) > 1}
    verdict = ""
    for number, row in enumerate(sample_rows.tolist()):
        reference = _autograd(source, weights, row)
        alone = _Compare(reference, row)
        signal = GradientSignal(source, weights, alone)
        signal.capture.repeated = repeated
        with signal.engaged(sample_rows):
            signal.measure(signal.prepare(np.array([row])))
        uses = signal.capture.num_uses
        if alone.distance > tolerance:
            raise DataFlexError(
                f"the gradient of {alone.worst} cannot be taken a sample at a time: what its module sees gives another "
                f"one than autograd, by {alone.distance:.2g} of its norm; leave it out of the trained modules, or "
                "take a method that needs no gradients"
            )
        if number == 0:
            repeated = shared | {name for name, times in uses.items() if times > 1}
        if verdict or len(sample_rows) == 1:
            continue
        together = _Compare(reference, row)
        signal = GradientSignal(source, weights, together)
        signal.capture.repeated = repeated
        try:
            with signal.engaged(sample_rows):
                signal.measure(signal.prepare(sample_rows))
        except UnknownRowsError as unknown:
            verdict = f"a module sees positions of rows that cannot be told apart ({unknown})"
            continue
        if together.distance > tolerance:
            verdict = f"in a batch the gradient of {together.worst} differs by {together.distance:.2g} of its norm"
    return verdict, repeated


class _Compare:
    """An engine that measures how far one row's gradients are from a reference, and keeps nothing else."""

    num_columns = 1

    def __init__(self, reference: dict[str, torch.Tensor], row: int) -> None:
        self._reference, self._row = reference, row
        self._squares: dict[str, float] = {}
        self._norm = sum(float(gradient.double().square().sum()) for gradient in reference.values()) ** 0.5

    @property
    def distance(self) -> float:
        """In units of the reference's norm; infinite where it is not a number."""
        apart = sum(self._squares.values()) ** 0.5 / max(self._norm, 1e-30)
        return apart if np.isfinite(apart) else float("inf")

    @property
    def worst(self) -> str:
        return max(self._squares, key=lambda name: np.nan_to_num(self._squares[name], nan=np.inf))

    def begin(self, rows_R: np.ndarray, device: torch.device) -> None:
        self._rows_R = rows_R
        self._zeros_R = torch.zeros(len(rows_R), 1, dtype=torch.float64, device=device)

    def take(self, captured: Captured) -> None:
        for at in np.flatnonzero(self._rows_R == self._row).tolist():
            apart = captured.gradients(slice(at, at + 1))[0] - self._reference[captured.weight.name]
            self._squares[captured.weight.name] = float(apart.double().square().sum())

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
