"""The losses of the training's own forward: kept by row, and weighted where a weigher says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  its common name
from transformers import PreTrainedModel

from dataflex.core.errors import DataFlexError
from dataflex.signals.embedding import last_hidden_states, pooled
from dataflex.signals.loss import IGNORE_INDEX, token_losses
from dataflex.train.ranks import Ranks
from dataflex.train.reference import Excess, Reference
from dataflex.train.seen import Entries
from dataflex.train.weighing import Weighing

NO_LOGITS = (
    "the loss of each row is read from the training's forward, and this model gives no logits of every position (a "
    "fused loss?); turn off what fuses the loss (enable_liger_kernel, use_liger_kernel)"
)


@dataclass
class _MicroBatch:
    """One forward and what is known of its rows."""

    rows_B: np.ndarray  # pool rows
    step: int  # optimizer step
    inputs: Mapping[str, Any]
    is_taken: bool = False  # its losses were seen
    reference_BxT: torch.Tensor | None = None  # a reference's losses of the label that follows each position
    hidden_BxTxH: torch.Tensor | None = None  # last hidden states of the first forward

    def see_states(self, hidden_BxTxH: torch.Tensor) -> None:
        if self.hidden_BxTxH is None:
            self.hidden_BxTxH = hidden_BxTxH.detach()


class TrainedLoss:
    """Takes in every micro-batch that is trained; ``Training`` for the curator.

    The model's loss function is ours while a micro-batch is trained: the same cross-entropy of the same positions with
    the same denominator, by token, times coefficients, so that it is computed once. With coefficients of 1 the
    gradient is the host's to the bit. Where a trainer adds up the log-probabilities of its own fused head (TRL >= 1.16)
    those are multiplied instead. Without a weigher, and where the host has another loss, losses are read beside it from
    the logits.

    A row whose logits overflow weighs 0 and leaves the others' gradients as they are, where a weigher asks for losses;
    values that are not finite further inside the model spoil the gradient, as they do without a weigher.

    Args:
        num_tokens_N: tokens of each pool row, by which a flattened batch (padding-free) is cut into its rows.
        weighing: coefficients; None: all 1.
        excess: what compares the losses with a reference model's, for mixers that learn from it.
        beside: read the losses beside the host's own even where they could be computed once, so that the host's number
            stays what it is to the last bit.
        keep: keep the rows' losses until they are drained; else only listeners are told.
        reference: whose loss of the same tokens weighers ask for.
        read_anchors: unit vectors of the rows that weighers by embeddings compare with, under the present weights.
    """

    def __init__(
        self,
        *,
        ranks: Ranks,
        num_tokens_N: np.ndarray,
        weighing: Weighing | None = None,
        excess: Excess | None = None,
        beside: bool = False,
        keep: bool = True,
        reference: Reference | None = None,
        read_anchors: Callable[[], np.ndarray] | None = None,
    ) -> None:
        self._reference, self._read_anchors = reference, read_anchors
        self._ranks, self._num_tokens_N, self._weighing = ranks, num_tokens_N, weighing
        self._excess, self._beside, self.keeps = excess, beside, keep
        self._batch: _MicroBatch | None = None
        self._kept: list[tuple[np.ndarray, torch.Tensor, int]] = []  # rows, (loss sum, tokens) of each, step
        self._listeners: list[Callable[[np.ndarray, torch.Tensor], None]] = []
        # One object, so that a compiled model is not compiled again; it counts and sends, which no compiler can trace.
        self._replacement: Any = torch.compiler.disable(self._loss_function)

    @property
    def reference_weights(self) -> int:
        """Weights of the frozen models that read every trained token besides; 0 without one."""
        references = (self._reference, self._excess and self._excess.reference)
        return sum(reference.num_weights for reference in references if reference)

    def listen(self, listener: Callable[[np.ndarray, torch.Tensor], None]) -> None:
        """Have ``listener`` told the rows of each micro-batch and their (loss sum, tokens), float64, shape (B, 2)."""
        self._listeners.append(listener)

    # around one micro-batch

    @contextmanager
    def watching(self, model: nn.Module, inputs: Mapping[str, Any], rows_B: np.ndarray, step: int) -> Iterator[None]:
        """Take in, and weigh, the first forward of ``model`` in this block.

        Args:
            inputs: the batch as the host hands it to the model.
            rows_B: its pool rows.
            step: optimizer step.

        Raises:
            DataFlexError: the forward shows no loss of single rows.
        """
        batch = self._batch = _MicroBatch(rows_B=rows_B, step=step, inputs=inputs)
        if self._excess is not None:
            self._excess.begin(inputs)
        if self._reference is not None:
            batch.reference_BxT = self._reference.losses(inputs)
        states = nullcontext()
        if self._weighing is not None and self._weighing.needs_embeddings:
            assert self._read_anchors is not None
            self._weighing.refresh(step, self._read_anchors)
            states = last_hidden_states(model, batch.see_states)
        inner = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
        replaced = inner is not None and not self._beside and _is_causal(inner)
        handle = model.register_forward_hook(self._after_forward)
        own = vars(inner).get("_loss_function") if inner is not None else None
        if replaced:
            assert inner is not None
            inner._loss_function = self._replacement
        try:
            with states:
                yield
        finally:
            handle.remove()
            if replaced:
                assert inner is not None
                if own is None:
                    del inner._loss_function
                else:
                    inner._loss_function = own
            self._batch = None
        if not batch.is_taken:
            raise DataFlexError(NO_LOGITS)

    def _loss_function(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor | None,
        vocab_size: int | None = None,
        num_items_in_batch: Any = None,
        ignore_index: int = IGNORE_INDEX,
        shift_labels: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """As transformers' loss of causal language models, by token and weighted."""
        logits = logits.float()
        logits_TxV = logits.view(-1, vocab_size or logits.shape[-1])
        if shift_labels is None:
            assert labels is not None
            shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:].contiguous()
        targets_BxT = shift_labels.to(logits.device)
        flat_targets = targets_BxT.view(-1)

        def losses_of(logits_TxV: torch.Tensor) -> torch.Tensor:
            losses_T = F.cross_entropy(logits_TxV, flat_targets, ignore_index=ignore_index, reduction="none")
            return losses_T.view(targets_BxT.shape)

        losses_BxT = losses_of(logits_TxV)
        weights_BxT = self._take(losses_BxT.detach(), targets_BxT != ignore_index)
        if weights_BxT is not None:
            broken_BxT = (weights_BxT == 0) & ~torch.isfinite(losses_BxT)
            if self._weighing is not None and self._weighing.met_unscored and bool(broken_BxT.any()):
                # A row that overflowed weighs 0, and 0 x NaN is NaN in its gradient too: its logits are taken out.
                losses_BxT = losses_of(logits_TxV.masked_fill(broken_BxT.view(-1, 1), 0))
            losses_BxT = losses_BxT * weights_BxT
        total = losses_BxT.sum()
        if num_items_in_batch is None:
            return total / (flat_targets != ignore_index).sum()
        return total / (
            num_items_in_batch.to(total.device) if torch.is_tensor(num_items_in_batch) else num_items_in_batch
        )

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Losses that did not pass through the loss function: of a fused head, or of another loss of the host's."""
        batch = self._batch
        if batch is None or batch.is_taken:
            return None
        log_probs = getattr(output, "log_probs", None)
        if log_probs is not None:
            weights_BxT = self._take(-log_probs.detach(), output.label_mask)
            if weights_BxT is not None:
                broken_BxT = (weights_BxT == 0) & ~torch.isfinite(log_probs)
                output.log_probs = log_probs.masked_fill(broken_BxT, 0) * weights_BxT
            return output
        logits_BxTxV: Any = getattr(output, "logits", None)
        labels_BxT: Any = batch.inputs.get("labels")
        both = isinstance(logits_BxTxV, torch.Tensor) and isinstance(labels_BxT, torch.Tensor)
        if not both or logits_BxTxV.shape[:-1] != labels_BxT.shape:
            raise DataFlexError(NO_LOGITS)
        if self._weighing is not None:
            raise DataFlexError(
                "the loss of this trainer is not the model's own, so that the weights of rows cannot reach it; train "
                "with the plain loss, or remove the weigher"
            )
        with torch.no_grad():
            targets_BxT = F.pad(labels_BxT, (0, 1), value=IGNORE_INDEX)[:, 1:].to(logits_BxTxV.device)
            self._take(token_losses(logits_BxTxV.detach(), targets_BxT), targets_BxT != IGNORE_INDEX)
        return None

    def _take(self, losses_BxT: torch.Tensor, has_label_BxT: torch.Tensor) -> torch.Tensor | None:
        """Keep the losses of one forward, 0 where there is no label; return the coefficients, None where all are 1."""
        batch = self._batch
        if batch is None:
            raise DataFlexError("a loss was computed outside of a micro-batch; this trainer cannot be served")
        if batch.is_taken:  # a second forward in the same step, for metrics
            return None
        batch.is_taken = True
        owner_BxT = self._owners(losses_BxT.shape, losses_BxT.device)
        sums_Bx2 = torch.zeros(len(batch.rows_B), 2, dtype=torch.float64, device=losses_BxT.device)
        both_Tx2 = torch.stack([losses_BxT.flatten().double(), has_label_BxT.flatten().double()], dim=1)
        sums_Bx2.index_add_(0, owner_BxT.flatten(), both_Tx2)
        if self.keeps:
            self._kept.append((batch.rows_B, sums_Bx2, batch.step))
        for listener in self._listeners:
            listener(batch.rows_B, sums_Bx2)
        if self._excess is not None:
            self._excess.add(losses_BxT, has_label_BxT, owner_BxT, batch.rows_B)
        if self._weighing is None:
            return None
        losses_BxT = losses_BxT.masked_fill(~has_label_BxT, torch.nan) if self._weighing.needs_tokens else losses_BxT
        reference_BxT = batch.reference_BxT
        if reference_BxT is not None:
            reference_BxT = reference_BxT[:, : losses_BxT.shape[1]]
        embeddings_BxE = self._embeddings(batch) if self._weighing.needs_embeddings else None
        return self._weighing.coefficients(
            batch.rows_B, batch.step, sums_Bx2, losses_BxT, owner_BxT, reference_BxT, embeddings_BxE
        )

    def _embeddings(self, batch: _MicroBatch) -> torch.Tensor:
        """A unit vector of each row of the micro-batch, from its own forward's hidden states."""
        hidden_BxTxH = batch.hidden_BxTxH
        if hidden_BxTxH is None:
            raise DataFlexError(
                "the forward showed no last hidden states, which the weigher compares; take a weigher by losses"
            )
        if len(hidden_BxTxH) == len(batch.rows_B):
            mask_BxT: Any = batch.inputs.get("attention_mask")
            shape = hidden_BxTxH.shape[:2]
            kept_BxT = torch.ones(shape, dtype=torch.bool) if mask_BxT is None or mask_BxT.dim() != 2 else mask_BxT != 0
            return pooled(hidden_BxTxH, kept_BxT.to(hidden_BxTxH.device))
        # A flattened batch: its rows lie end to end.
        lengths = self._num_tokens_N[batch.rows_B].tolist()
        rows = nn.utils.rnn.pad_sequence(list(hidden_BxTxH[0].split(lengths)), batch_first=True)
        longest = torch.arange(rows.shape[1], device=rows.device)
        return pooled(rows, longest < torch.tensor(lengths, device=rows.device)[:, None])

    def _owners(self, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """Which of the batch's rows each position belongs to, int64, shape (B, T)."""
        assert self._batch is not None
        rows_B = self._batch.rows_B
        if shape[0] == len(rows_B):
            return torch.arange(len(rows_B), device=device)[:, None].expand(shape)
        lengths_B = self._num_tokens_N[rows_B]
        if shape[0] != 1 or not 0 <= int(lengths_B.sum()) - shape[1] <= 1:  # a fused head has one position less
            raise DataFlexError(
                f"a batch of {len(rows_B)} rows with {int(lengths_B.sum())} tokens reached the model as {shape[0]} x "
                f"{shape[1]} positions, which cannot be told apart by row; turn off what joins or cuts them"
            )
        owners = np.repeat(np.arange(len(rows_B)), lengths_B)
        # Position p predicts the token after it; at a row's end that is the next row's first, which has no label.
        return torch.from_numpy(np.append(owners[1:], owners[-1:])[: shape[1]]).to(device)[None]

    # for the curator

    def drain(self) -> Entries:
        """Rows trained since the last call, of all ranks, by step and row (collective)."""
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *(rows_B for rows_B, _, _ in self._kept)])
        steps = np.repeat([step for _, _, step in self._kept], [len(rows_B) for rows_B, _, _ in self._kept])
        sums = torch.cat([s for _, s, _ in self._kept]).cpu().numpy() if self._kept else np.zeros((0, 2))
        self._kept = []
        mine = np.column_stack([rows, steps, sums]) if len(rows) else np.zeros((0, 4))
        whole = self._ranks.gather_rows(torch.from_numpy(mine)).numpy()
        rows, steps = whole[:, 0].astype(np.int64), whole[:, 1].astype(np.int64)
        order = np.lexsort((rows, steps))
        return Entries(
            rows=rows[order],
            loss_sums=whole[order, 2],
            tokens=whole[order, 3].astype(np.int64),
            steps=steps[order],
        )

    def take_step(self) -> dict[str, np.ndarray]:
        return self._excess.take_step() if self._excess is not None else {}

    def weight_statistics(self) -> dict[str, Any]:
        return self._weighing.take_statistics() if self._weighing is not None else {}

    def state_arrays(self) -> dict[str, np.ndarray]:
        return self._weighing.state_arrays() if self._weighing is not None else {}

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        if self._weighing is not None:
            self._weighing.load_arrays(arrays)
        self._kept = []
        if self._excess is not None:
            self._excess.clear()


def _is_causal(model: PreTrainedModel) -> bool:
    """True where the model's loss function is that of causal language models."""
    function: Any = model.loss_function
    return getattr(function, "__name__", "") == "ForCausalLMLoss"
