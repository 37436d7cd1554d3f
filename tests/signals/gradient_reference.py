"""Gradients of one row at a time by plain autograd, and an engine that keeps what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from tiny_models import Row, collate
from torch import nn

from dataflex.signals.gradient.capture import Captured
from dataflex.signals.gradient.signal import GradientSignal, Source
from dataflex.signals.gradient.weights import Weights
from dataflex.signals.sweep import Collective, sweep


class Keep:
    """Every row's gradient, by weight."""

    num_columns = 1

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, torch.Tensor]] = {}

    def begin(self, rows_R: np.ndarray, device: torch.device) -> None:
        self._rows_R = rows_R
        for row in rows_R.tolist():
            self.rows[row] = {}

    def take(self, captured: Captured) -> None:
        for row, gradient in zip(self._rows_R.tolist(), captured.gradients(), strict=True):
            assert captured.weight.name not in self.rows[row]
            self.rows[row][captured.weight.name] = gradient.clone()

    def finish(self) -> torch.Tensor:
        return torch.ones(len(self._rows_R), 1, dtype=torch.float64)


def source_of(model: nn.Module, rows: Sequence[Row], collator: Any = collate, autocast: Any = nullcontext) -> Source:
    return Source(
        model=model,
        features=lambda rows_B: [rows[row] for row in rows_B],
        collate=collator,
        to_device=lambda batch: batch,
        autocast=autocast,
    )


def lengths(rows: Sequence[Row]) -> np.ndarray:
    return np.array([len(row["input_ids"]) for row in rows])


def captured_gradients(
    model: nn.Module,
    rows: Sequence[Row],
    weights: Weights,
    *,
    batch_tokens: int = 512,
    repeated: Sequence[str] = (),
    **options: Any,
) -> dict[int, dict[str, torch.Tensor]]:
    """By the code under test, all rows in batches."""
    keep = Keep()
    signal = GradientSignal(source_of(model, rows, **options), weights, keep)
    signal.capture.repeated |= set(repeated)
    every = np.arange(len(rows))
    with signal.engaged(np.argsort(lengths(rows))[-3:-1]):
        sweep(signal, lengths(rows), every, ranks=Collective(device=torch.device("cpu")), batch_tokens=batch_tokens)
    return keep.rows


def looped_gradients(model: nn.Module, rows: Sequence[Row], weights: Weights) -> dict[int, dict[str, torch.Tensor]]:
    """The gradient of each row's own mean loss, in a batch of its own, without padding; of rows with a loss."""
    found = {}
    parameters = [weight.parameter for weight in weights.included]
    for number, row in enumerate(rows):
        if all(label == -100 for label in row["labels"][1:]):
            continue
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits.float(), torch.tensor(row["labels"][1:]), ignore_index=-100)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        found[number] = {
            weight.name: torch.zeros_like(weight.parameter) if gradient is None else gradient.float()
            for weight, gradient in zip(weights.included, gradients, strict=True)
        }
    return found


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Of one row's gradients, in units of the row's norm."""
    assert ours.keys() == theirs.keys()
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in theirs)
    norm = sum(float(gradient.double().square().sum()) for gradient in theirs.values())
    return (apart / norm) ** 0.5
