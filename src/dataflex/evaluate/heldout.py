"""Losses of held-out answers: what the model gives each token of an answer after its question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dataflex.signals.base import undisturbed
from dataflex.signals.head import IGNORE_INDEX
from dataflex.signals.loss import loss_sums, pad_right
from dataflex.signals.sweep import Collective, sweep

BATCH_TOKENS = 4096  # a fixed budget: the same model gives the same numbers each time, to the last bit


@dataclass(frozen=True, kw_only=True)
class AnswerLosses:
    """What a model gives each answer; one entry a row."""

    loss_sums_N: np.ndarray  # negative log-likelihood of the answer, nats, float64
    tokens_N: np.ndarray  # of the answer
    is_greedy_N: np.ndarray  # greedy decoding writes exactly the answer, bool

    @property
    def loss(self) -> float:
        """Mean over all label tokens."""
        return float(self.loss_sums_N.sum() / self.tokens_N.sum())


class AnswerSignal:
    """(sum of negative log-likelihoods, number of label tokens, 1 if greedy decoding writes the answer) of each row.

    Greedy decoding writes exactly the answer's tokens if and only if each of them is the most likely one after the
    question and the tokens before it: one forward tells, nothing is generated.
    """

    num_columns = 3

    def __init__(self, model: torch.nn.Module, rows: Sequence[Any]) -> None:
        self._model, self._rows = model, rows
        self._device = next(model.parameters()).device

    def prepare(self, rows_B: np.ndarray) -> dict[str, torch.Tensor]:
        features = [self._rows[int(row)] for row in rows_B]
        return pad_right([f["input_ids"] for f in features], [f["labels"] for f in features])

    def measure(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        labels_BxP = batch["labels"].to(self._device)[:, 1:]
        logits_BxPxV = self._model(input_ids=batch["input_ids"].to(self._device), use_cache=False).logits[:, :-1]
        has_label_BxP = labels_BxP != IGNORE_INDEX
        right_BxP = (logits_BxPxV.argmax(-1) == labels_BxP) | ~has_label_BxP
        exact_B = right_BxP.all(1) & has_label_BxP.any(1)
        return torch.cat([loss_sums(logits_BxPxV, labels_BxP), exact_B.double()[:, None]], dim=1)


def answer_losses(
    model: torch.nn.Module, rows: Sequence[Any], *, advance: Callable[[int], object] | None = None
) -> AnswerLosses:
    """Losses of tokenised rows.

    Args:
        rows: each with ``input_ids`` and ``labels``, which are ``IGNORE_INDEX`` outside of the answer.
        advance: told the number of tokens of each batch.
    """
    lengths_N = np.array([len(row["input_ids"]) for row in rows])
    signal = AnswerSignal(model, rows)
    with undisturbed(model):
        ranks = Collective(device=next(model.parameters()).device)
        told = {"advance": advance} if advance is not None else {}
        result = sweep(signal, lengths_N, np.arange(len(rows)), ranks=ranks, batch_tokens=BATCH_TOKENS, **told)
    sums_N, tokens_N, greedy_N = result.values_NxC.T
    return AnswerLosses(loss_sums_N=sums_N, tokens_N=tokens_N.astype(np.int64), is_greedy_N=greedy_N > 0)
