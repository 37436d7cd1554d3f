"""Unit vectors of the target's rows under the weights as they are, for weighers that compare with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dataflex.core.errors import ConfigError
from dataflex.signals.base import undisturbed
from dataflex.signals.embedding import HiddenStates
from dataflex.signals.sweep import Collective, sweep
from dataflex.train.ranks import Ranks
from dataflex.train.target import Target

ANCHOR_TOKENS = 4096  # padded tokens of a batch


def anchor_reader(
    trainer: Any, target: Target | None, ranks: Ranks, fetch: Callable[[Any, np.ndarray], list[dict[str, Any]]]
) -> Callable[[], np.ndarray]:
    """A function that reads them, float32, shape (M, H), the same on all ranks (collective).

    Raises:
        ConfigError: there is no target, or a rank holds only a part of the weights.
    """
    if target is None:
        raise ConfigError(
            "the weigher compares rows with those of a target, and none is named; set target to one or more data sets "
            "of rows like those the model shall answer"
        )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            "the weigher reads hidden states of the whole model on every rank, and FSDP and DeepSpeed cut it apart; "
            "train with DDP, or take a weigher by losses"
        )
    lengths_M = target.pool.info.num_tokens_N

    def read() -> np.ndarray:
        model = trainer.accelerator.unwrap_model(trainer.model)
        signal = HiddenStates(
            model=model,
            tokens=lambda rows_B: [row["input_ids"] for row in fetch(target.dataset, rows_B)],
            pooling="position",
            device=ranks.device,
            autocast=trainer.compute_loss_context_manager,
        )
        collective = Collective(
            device=ranks.device,
            rank=ranks.rank,
            world_size=ranks.world_size,
            gather=ranks.gather,
            raise_together=ranks.raise_together,
        )
        # One batch size for all: one that is found by its speed would change the order of summation.
        with undisturbed(model):
            found = sweep(signal, lengths_M, np.arange(len(lengths_M)), ranks=collective, batch_tokens=ANCHOR_TOKENS)
        return found.values_NxC.astype(np.float32)

    return read
