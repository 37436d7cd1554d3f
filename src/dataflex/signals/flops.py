"""Floating-point operations of forwards and of training, by row: what a scoring budget is counted in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from dataflex.signals.head import innermost, text_config


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Costs of a model.

    ``forward_i = 2 P T_i + 2 L H T_i**2`` for T tokens, P weights of matrix products that a token meets, L layers and
    hidden size H (both products of causal attention). Every position counts as sent through the LM head; a scoring pass
    sends label positions alone and so costs less than is counted. Padding is not counted, neither here nor there.

    ``train_i = f * forward_i``, f = 2 + the share of P that is trained: forward, gradients of activations, gradients of
    weights. Recomputation by gradient checkpointing is no part of it.
    """

    weights: int  # P
    attention: int  # L * H
    trained_share: float
    forwards_per_row: float = 1.0  # of a scoring pass: 2 with a frozen reference beside the model
    extra_of_training: float = 0.0  # forwards of a training step besides: 1 with such a reference

    def forward(self, num_tokens_N: np.ndarray) -> np.ndarray:
        """Of scoring each row, float64, shape (N,)."""
        return self.forwards_per_row * self._forward(num_tokens_N)

    def training(self, num_tokens_N: np.ndarray) -> np.ndarray:
        """Of training each row once, float64, shape (N,)."""
        return (2.0 + self.trained_share + self.extra_of_training) * self._forward(num_tokens_N)

    def _forward(self, num_tokens_N: np.ndarray) -> np.ndarray:
        tokens_N = np.asarray(num_tokens_N, dtype=np.float64)
        return 2.0 * self.weights * tokens_N + 2.0 * self.attention * tokens_N**2


def flops_of(model: nn.Module, *, has_reference: bool = False) -> Flops:
    """Costs of a model, whole or sharded by its wrapper later; embeddings that are looked up cost nothing.

    Args:
        has_reference: every loss takes a forward of a frozen reference besides.
    """
    base: Any = innermost(model)
    config = text_config(base)
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
    active = getattr(config, "num_experts_per_tok", 0) / experts if experts else 1.0
    weights = trained = 0.0
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or id(parameter) in looked_up:
            continue
        size = _size(parameter) * (active if ".experts." in name else 1.0)
        weights += size
        trained += size if parameter.requires_grad else 0.0
    if head is not None and id(head.weight) in looked_up:  # tied: it multiplies as well
        size = _size(head.weight)
        weights += size
        trained += size if head.weight.requires_grad else 0.0
    return Flops(
        weights=round(weights),
        attention=int(getattr(config, "num_hidden_layers", 0) or 0) * int(getattr(config, "hidden_size", 0) or 0),
        trained_share=trained / max(weights, 1.0),
        forwards_per_row=2.0 if has_reference else 1.0,
        extra_of_training=1.0 if has_reference else 0.0,
    )


def _size(parameter: Any) -> int:
    """Numbers in a parameter; of one that bitsandbytes packed, those that it stands for."""
    state = getattr(parameter, "quant_state", None)
    shape = getattr(state, "shape", None)
    shape = getattr(parameter, "ds_shape", shape) if hasattr(parameter, "ds_id") else shape
    return int(np.prod(shape)) if shape is not None else parameter.numel()
