"""The host's rows as a pass reads them: its collator, its device, its precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from accelerate.utils import send_to_device

from dataflex.core.errors import ConfigError
from dataflex.signals.gradient.signal import Source
from dataflex.signals.sweep import Collective
from dataflex.train.pool import row_labels
from dataflex.train.ranks import Ranks
from dataflex.train.stage_loss import scores_own_loss


class HostRows:
    """How rows reach the model of a Trainer.

    Args:
        trainer: the host's; read only when a pass is made, since the model is wrapped in ``train()``.
    """

    def __init__(self, trainer: Any, ranks: Ranks) -> None:
        self.trainer, self.ranks = trainer, ranks

    @property
    def sharded(self) -> bool:
        """True when a rank may hold only a part of the weights, so that forwards are collective."""
        return self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled

    def collective(self, *, sharded: bool) -> Collective:
        return Collective(
            device=self.ranks.device,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            gather=self.ranks.gather,
            raise_together=self.ranks.raise_together,
            sharded=sharded,
        )

    def source(self, dataset: Any) -> Source:
        """Rows of a data set as the host batches them, for the bare model."""
        trainer = self.trainer
        collate = trainer._get_collator_with_removed_columns(trainer.data_collator)
        kept = trainer._signature_columns if trainer.args.remove_unused_columns else None
        return Source(
            model=trainer.accelerator.unwrap_model(trainer.model),
            features=lambda rows_B: _columns(fetch(dataset, rows_B), kept),
            collate=collate,
            to_device=lambda batch: dict(send_to_device(batch, trainer.accelerator.device)),
            autocast=trainer.compute_loss_context_manager,
            row_labels=lambda features: row_labels(features, collate),
        )

    def refuse_own_loss(self, why: str) -> None:
        if scores_own_loss(self.trainer):
            raise ConfigError(
                f"{type(self.trainer).__name__} has a loss of its own, and {why}; take a method that needs none"
            )


def fetch(dataset: Any, rows_B: np.ndarray) -> list[dict[str, Any]]:
    """Features of some rows, in one call where the data set has one."""
    rows = rows_B.tolist()
    fetch_many = getattr(dataset, "__getitems__", None)
    return fetch_many(rows) if fetch_many is not None else [dict(dataset[row]) for row in rows]


def _columns(features: list[dict[str, Any]], kept: list[str] | None) -> list[dict[str, Any]]:
    """Features without the columns that the host takes off before its collator."""
    if kept is None:
        return features
    return [{name: value for name, value in feature.items() if name in kept} for feature in features]
