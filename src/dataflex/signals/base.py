"""The signal protocol, and what every model pass needs: eval mode, untouched random streams, kernels for all shapes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn


class Signal(Protocol):
    """Numbers about samples, computed by a model a batch at a time."""

    num_columns: int

    def prepare(self, rows_B: np.ndarray) -> Any:
        """Collate a batch on the host; runs while the batch before it is measured."""
        ...

    def measure(self, batch: Any) -> torch.Tensor:
        """Return one row of numbers per sample of a prepared batch, float64, shape (B, num_columns), on the device."""
        ...


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a pass in eval mode without gradients, and leave modes, gradients, shards and random streams as they were."""
    training_modules = [module for module in model.modules() if module.training]
    cuda_devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.random.fork_rng(devices=cuda_devices), torch.no_grad(), _attention_without_plans():
            yield
    finally:
        # Module by module: .train() on the whole would also switch on those that the user had put in eval mode.
        for module in training_modules:
            module.training = True
        # FSDP2 leaves its root gathered after a forward that no backward follows: parameters() would be other tensors
        # than those that an optimizer holds.
        for module in model.modules():
            reshard = getattr(module, "reshard", None)
            if callable(reshard):
                reshard()


@contextmanager
def _attention_without_plans() -> Iterator[None]:
    """Keep PyTorch from cuDNN's attention: it plans anew for every shape of batch, and nearly each of a pass differs.

    Measured on an H200, a 1B Llama in bf16: 60 ms at the first batch of a shape, which takes 55 ms itself.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
