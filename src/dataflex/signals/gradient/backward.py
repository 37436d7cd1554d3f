"""One backward over a batch: the sum of its rows' mean losses, with the trained model left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn

from dataflex.signals.base import undisturbed
from dataflex.signals.head import IGNORE_INDEX, chunks, innermost, logit_transform, text_config

# What a loss is multiplied by under fp16, whose smallest number is 6e-8; output gradients are divided by it again.
FP16_SCALE = 1024.0


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """``undisturbed``, with gradients of activations but of no parameter: ``.grad`` and its hooks see nothing.

    Everything is in eval mode. Layers whose gradient checkpointing is switched on keep it: Transformers asks for
    training mode there, which such a layer has only while that is asked, and not in its own computation (dropout).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles: list[Any] = []
    checkpointed: list[tuple[Any, Callable[..., Any]]] = []
    with undisturbed(model):
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            base = innermost(model)
            find = getattr(base, "get_input_embeddings", None)
            if find is not None and (embedding := find()) is not None:
                handles.append(embedding.register_forward_hook(lambda module, args, output: output.requires_grad_()))
            for layer in model.modules():
                if getattr(layer, "gradient_checkpointing", False) and _is_checkpointed(layer):
                    checkpointing: Any = layer._gradient_checkpointing_func
                    checkpointed.append((layer, checkpointing))
                    layer.training = True
                    layer._gradient_checkpointing_func = partial(_in_eval_mode, layer, checkpointing)  # type: ignore[assignment]
            with torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()
            for layer, checkpointing in checkpointed:
                layer._gradient_checkpointing_func = checkpointing
                layer.training = False  # as ``undisturbed`` set it; it restores what was before
            for parameter in trained:
                parameter.requires_grad_(True)


def _is_checkpointed(layer: nn.Module) -> bool:
    """True for Transformers' checkpointed layers, which ask for training mode and then hand over what they compute."""
    return any(cls.__name__ == "GradientCheckpointingLayer" for cls in type(layer).__mro__)


def _in_eval_mode(layer: nn.Module, checkpointing: Callable[..., Any], compute: Callable[..., Any], *args: Any) -> Any:
    """What ``checkpointing`` makes of the layer's computation, first and again, in eval mode."""

    def computed(layer: nn.Module, *given: Any) -> Any:
        layer.training = False
        try:
            return compute(*given)
        finally:
            layer.training = True

    return checkpointing(MethodType(computed, layer), *args)  # bound: LLaMA-Factory's asks whose method it is


def loss_scale(model: nn.Module, autocast: Callable[[], AbstractContextManager]) -> float:
    """What to multiply losses by, so that output gradients do not vanish in half precision."""
    kind = next(model.parameters()).device.type
    with autocast():
        fp16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return FP16_SCALE if fp16 or any(p.dtype == torch.float16 for p in model.parameters()) else 1.0


class MeanLossHead:
    """The loss of label positions, ``sum_p w_p nll_p``, computed where hidden states reach the LM head.

    The gradient of the hidden states is computed there as well, a chunk of positions at a time, so that neither logits
    nor their gradients are ever held for more than one chunk; the head then sees one position only.
    """

    def __init__(self, model: nn.Module) -> None:
        base = innermost(model)
        self._head: nn.Module = base.get_output_embeddings()  # type: ignore[operator]
        self._transform = logit_transform(base)
        self._vocabulary = int(getattr(text_config(base), "vocab_size", 0) or 50_000)  # for the size of chunks only
        self._request: tuple[torch.Tensor, torch.Tensor] | None = None
        self._loss: torch.Tensor | None = None

    @contextmanager
    def engaged(self) -> Iterator[None]:
        """Keep the hook on the head for the duration."""
        handle = self._head.register_forward_pre_hook(self._before_head)
        try:
            yield
        finally:
            handle.remove()

    def loss(
        self, forward: Callable[[], Any], labels_BxT: torch.Tensor, weights_BxT: torch.Tensor
    ) -> torch.Tensor | None:
        """Run the model and return the weighted loss, a scalar; None when no hidden states came to the head."""
        self._request, self._loss = (labels_BxT, weights_BxT), None
        try:
            forward()
            return self._loss
        finally:
            self._request = self._loss = None

    def _before_head(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        request, self._request = self._request, None  # the calls below come here again
        if request is None or not args or args[0].shape[:2] != request[0].shape:
            return None
        self._loss = _HeadLoss.apply(args[0], *request, lambda hidden: self._transform(head(hidden)), self._vocabulary)
        return (args[0][:, :1], *args[1:])


class _HeadLoss(torch.autograd.Function):
    """Weighted negative log-likelihood of the labels, with the hidden states' gradient made in the forward."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden_BxTxH: torch.Tensor,
        labels_BxT: torch.Tensor,
        weights_BxT: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        vocabulary: int,
    ) -> torch.Tensor:
        gradient_BxTxH = torch.zeros_like(hidden_BxTxH)
        targets_BxP, weights_BxP = labels_BxT[:, 1:], weights_BxT[:, 1:]
        sample_L, position_L = (targets_BxP != IGNORE_INDEX).nonzero(as_tuple=True)
        targets_L, weights_L = targets_BxP[sample_L, position_L], weights_BxP[sample_L, position_L]
        total = weights_L.new_zeros(())
        for part in chunks(len(targets_L), vocabulary):
            sample, position = sample_L[part], position_L[part]
            with torch.enable_grad():
                hidden = hidden_BxTxH[sample, position].detach().requires_grad_()
                losses = nn.functional.cross_entropy(head(hidden).float(), targets_L[part], reduction="none")
                loss = (losses * weights_L[part]).sum()
            with torch.autocast(hidden.device.type, enabled=False):
                (gradient_BxTxH[sample, position],) = torch.autograd.grad(loss, hidden)
            total += loss.detach()
        ctx.save_for_backward(gradient_BxTxH)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        return ctx.saved_tensors[0] * gradient, None, None, None, None


def logits_loss(logits_BxTxV: torch.Tensor, labels_BxT: torch.Tensor, weights_BxT: torch.Tensor) -> torch.Tensor:
    """The same from the model's own logits at all positions."""
    chosen_BxP = labels_BxT[:, 1:] != IGNORE_INDEX
    logits_LxV = logits_BxTxV[:, :-1][chosen_BxP].float()
    losses_L = nn.functional.cross_entropy(logits_LxV, labels_BxT[:, 1:][chosen_BxP], reduction="none")
    return (losses_L * weights_BxT[:, 1:][chosen_BxP]).sum()
