"""The LM head on label positions only: logits of prompts, which nobody reads, are never computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

IGNORE_INDEX = -100
# Elements of the fp32 logits held at a time (64 MiB): the extra memory depends on neither sequence nor vocabulary.
CHUNK_ELEMENTS = 1 << 24


class LabelHead:
    """Computes each sample's loss inside the model's forward, where hidden states reach the LM head.

    A hook before the head takes the hidden states of the positions that predict a label, sends them through the head a
    chunk at a time and adds up their negative log-likelihoods; the head itself then sees one position only. The head
    is called as a module and inside the forward, so that tied, resized, adapted and sharded heads work as ever. What
    models do to logits after the head is applied as their config says (``logit_transform``); whether that is all
    they do is for the caller to check against the model's own logits.
    """

    def __init__(self, model: nn.Module) -> None:
        base = innermost(model)
        find = getattr(base, "get_output_embeddings", None)
        self._head: nn.Module | None = find() if find is not None else None
        self._transform = logit_transform(base)
        self._vocabulary = int(getattr(text_config(base), "vocab_size", 0) or 50_000)  # for the size of chunks only
        self._labels_BxT: torch.Tensor | None = None
        self._sums_B: torch.Tensor | None = None

    @property
    def usable(self) -> bool:
        return self._head is not None

    @contextmanager
    def engaged(self) -> Iterator[None]:
        """Keep the hook on the head for the duration."""
        assert self._head is not None
        handle = self._head.register_forward_pre_hook(self._before_head)
        try:
            yield
        finally:
            handle.remove()

    def losses(self, forward: Callable[[], Any], labels_BxT: torch.Tensor) -> torch.Tensor | None:
        """Run the model and return (loss sum, number of label tokens), float64, shape (B, 2).

        None when the model did not send its hidden states through the head as expected.
        """
        self._labels_BxT, self._sums_B = labels_BxT, None
        try:
            forward()
            if self._sums_B is None:
                return None
            counts_B = (labels_BxT[:, 1:] != IGNORE_INDEX).sum(1).double()
            return torch.stack([self._sums_B, counts_B], dim=1)
        finally:
            self._labels_BxT = self._sums_B = None

    def _before_head(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        labels_BxT, self._labels_BxT = self._labels_BxT, None  # the calls below come here again
        if labels_BxT is None or not args:
            return None
        hidden_BxTxH = args[0]
        if hidden_BxTxH.shape[:2] != labels_BxT.shape:
            return None
        targets_BxP = labels_BxT[:, 1:]
        sample_L, position_L = (targets_BxP != IGNORE_INDEX).nonzero(as_tuple=True)
        targets_L = targets_BxP[sample_L, position_L]
        sums_B = torch.zeros(len(labels_BxT), dtype=torch.float64, device=labels_BxT.device)
        for part in chunks(len(targets_L), self._vocabulary):
            logits_LxV = self._transform(head(hidden_BxTxH[sample_L[part], position_L[part]]))
            losses_L = negative_log_likelihood(logits_LxV, targets_L[part])
            sums_B.index_add_(0, sample_L[part], losses_L.double())
        self._sums_B = sums_B
        return (hidden_BxTxH[:, :1], *args[1:])


def negative_log_likelihood(logits_LxV: torch.Tensor, targets_L: torch.Tensor) -> torch.Tensor:
    """``log sum exp(logits) - logits[target]`` in fp32, shape (L,); the logits are overwritten, not copied twice."""
    logits_LxV = logits_LxV.float()
    chosen_L = logits_LxV.gather(1, targets_L[:, None])[:, 0]
    largest_L = logits_LxV.max(dim=1, keepdim=True).values
    # An infinite logit must give a loss that is not finite, as the model's own does.
    total_L = logits_LxV.sub_(largest_L).exp_().sum(dim=1)
    # The difference first: both terms may be large and nearly equal.
    return total_L.log() + (largest_L[:, 0] - chosen_L)


def logit_transform(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a model does to its logits after the head, as far as its config tells: scaling, soft-capping."""
    config = text_config(model)
    divisor = getattr(config, "logits_scaling", None)  # Granite
    factor = getattr(config, "logit_scale", None)  # Cohere
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2

    def transform(logits: torch.Tensor) -> torch.Tensor:
        if isinstance(divisor, (int, float)):
            logits = logits / divisor
        if isinstance(factor, (int, float)):
            logits = logits * factor
        if isinstance(cap, (int, float)) and cap > 0:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return transform


def text_config(model: nn.Module) -> Any:
    """The config of the language model, also where it is part of a larger one; None without a config."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def chunks(num_positions: int, vocabulary: int) -> Iterator[slice]:
    """Cut label positions so that one part's fp32 logits have at most ``CHUNK_ELEMENTS`` elements."""
    size = max(16, CHUNK_ELEMENTS // vocabulary)
    for start in range(0, num_positions, size):
        yield slice(start, start + size)


def innermost(model: nn.Module) -> nn.Module:
    """The model under DDP, FSDP or DeepSpeed wrappers and PEFT."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module  # type: ignore[assignment]
    get_base = getattr(model, "get_base_model", None)
    return get_base() if get_base is not None else model
