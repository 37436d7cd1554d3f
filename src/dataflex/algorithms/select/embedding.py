"""What all selectors by embeddings share: how a row's vector is made and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dataflex.algorithms.base import MeasuredOnce
from dataflex.algorithms.checks import require_one_of
from dataflex.core.errors import ConfigError

POOLINGS = ("position", "mean", "last")


@dataclass(frozen=True, kw_only=True)
class EmbeddingSelector(MeasuredOnce):
    """Parameters of the embeddings that a selector is given.

    Args:
        encoder: ``self``, the model that is trained, without its adapter; or a sentence encoder's folder or name.
        pooling: of ``self``: ``position``, later tokens weigh more; ``mean``; or the ``last`` token.
        cache_dir: where embeddings are kept for other runs; None: beside the run's record.

    Raises:
        ConfigError: a parameter out of range.
    """

    encoder: str = "self"
    pooling: Literal["position", "mean", "last"] = "position"
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if not self.encoder:
            raise ConfigError("encoder is ''; name a sentence encoder, or self for the model that is trained")
        require_one_of("pooling", self.pooling, POOLINGS)
        if self.encoder != "self" and self.pooling != "position":
            raise ConfigError(
                f"pooling is {self.pooling!r} beside encoder {self.encoder!r}, which pools as it was trained to; leave "
                "it out"
            )
