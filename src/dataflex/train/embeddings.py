"""Embeddings of the pool and of the target: made once, kept on disk under everything they depend on."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.core.errors import ConfigError
from dataflex.signals.adapter import without_adapter
from dataflex.signals.base import undisturbed
from dataflex.signals.cache import weights_digest
from dataflex.signals.collect import Collected, Place, collect
from dataflex.signals.embedding import HiddenStates, SentenceEncoder, load_sentence_encoder
from dataflex.signals.sweep import Collective
from dataflex.train.pool import Pool, holds_media, is_language_modelling
from dataflex.train.progress import PassProgress

SELF = "self"
NAME = "embeddings"  # of the array in its folder
DEFINITION = "unit rows, eval mode, float32, version 1"


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Where the embeddings of a data set are, and what they cost."""

    path: Path  # of a .npy file, float32, shape (N, E)
    cost: Collected
    seconds: float
    encoder: Any = None  # the model that made them, where it is not the one in training

    def read(self) -> np.ndarray:
        """The embeddings, memory-mapped and read-only; NaN for a row that has none."""
        return np.load(self.path, mmap_mode="r")


@dataclass
class EmbeddingPass:
    """Embeds the rows of data sets (collective).

    A model with an adapter is read without it, so that every run of the base model is served by the same file; a model
    that is trained whole is read as it is at the time.

    Args:
        trainer: the host's trainer; read when a pass is made.
        fetch: rows of a data set -> one feature dict each.
        directory: of the files, one folder for each set of embeddings.
        batch_tokens: padded tokens of a batch, where the user pins it.
    """

    trainer: Any
    fetch: Callable[[Any, np.ndarray], list[dict[str, Any]]]
    directory: Path
    batch_tokens: int | None
    sharded: bool
    say: Callable[[str], None]

    def __call__(self, selector: Any, sources: list[tuple[Any, Pool]], ranks: Collective) -> list[Embedded]:
        """Embed each data set.

        Args:
            selector: its ``encoder`` and ``pooling`` say how.
            sources: data sets and what is known of them.

        Raises:
            ConfigError: rows that are no plain text, weights that are sharded, or no such encoder.
        """
        for dataset, _ in sources:
            if not is_language_modelling(dataset) or holds_media(dataset):
                raise ConfigError(
                    "embeddings are made of rows of text, and these are pairs or hold media; take a method that needs "
                    "none, such as delta_loss"
                )
        if selector.encoder == SELF:
            return self._by_trained(selector, sources, ranks)
        encoder = load_sentence_encoder(selector.encoder, ranks.device)
        made_with = {"encoder": weights_digest(encoder) or "", "pooling": "its own"}
        made = []
        for dataset, pool in sources:
            texts = functools.partial(self._texts, dataset)
            signal = SentenceEncoder(model=encoder, texts=texts, device=ranks.device)
            made.append(replace(self._embed(signal, made_with, pool, ranks), encoder=encoder))
        return made

    def _by_trained(self, selector: Any, sources: list[tuple[Any, Pool]], ranks: Collective) -> list[Embedded]:
        trainer = self.trainer
        if self.sharded:
            raise ConfigError(
                "encoder: self needs the whole weights on every rank, and FSDP and DeepSpeed cut them apart; name a "
                "sentence encoder, or train with DDP"
            )
        model = trainer.accelerator.unwrap_model(trainer.model)
        with without_adapter(model) if hasattr(model, "disable_adapter") else nullcontext():
            digest = weights_digest(model, "base" if hasattr(model, "disable_adapter") else "all")
            precision = f"{getattr(model, 'dtype', None)}, autocast {trainer.accelerator.mixed_precision}"
            made_with = {"encoder": digest or "", "pooling": selector.pooling, "precision": precision}
            made = []
            for dataset, pool in sources:
                signal = HiddenStates(
                    model=model,
                    tokens=functools.partial(self._tokens, dataset),
                    pooling=selector.pooling,
                    device=ranks.device,
                    autocast=trainer.compute_loss_context_manager,
                )
                made.append(self._embed(signal, made_with, pool, ranks))
            return made

    def _tokens(self, dataset: Any, rows_B: np.ndarray) -> list[Any]:
        return [row["input_ids"] for row in self.fetch(dataset, rows_B)]

    def _texts(self, dataset: Any, rows_B: np.ndarray) -> list[str]:
        """What the rows' tokens say, without marks of the template that are special tokens."""
        tokenizer = self.trainer.processing_class
        return getattr(tokenizer, "tokenizer", tokenizer).batch_decode(
            self._tokens(dataset, rows_B), skip_special_tokens=True
        )

    def _embed(self, signal: Any, made_with: dict[str, str], pool: Pool, ranks: Collective) -> Embedded:
        began = time.perf_counter()
        key = {"signal": "embedding", "data": pool.digest, "definition": DEFINITION, **made_with}
        folder = self.directory / f"embedding-{_digest(key)}"
        lengths_N = pool.info.num_tokens_N
        rows = np.flatnonzero(lengths_N > 0)
        progress = PassProgress(
            len(rows),
            int(lengths_N[rows].sum()),
            bar=not self.trainer.args.disable_tqdm,
            shown=ranks.rank == 0,
            say=self.say,
        )
        with progress, undisturbed(signal.model):
            _, cost = collect(
                signal,
                lengths_N,
                rows,
                ranks=ranks,
                place=Place(directory=folder, key=key),
                parts={NAME: (signal.num_columns, "<f4")},
                split=lambda values_RxC: {NAME: values_RxC.astype(np.float32)},
                batch_tokens=self.batch_tokens,
                advance=progress.advance,
            )
        if ranks.rank == 0 and cost.num_rows_kept:
            self.say(f"{cost.num_rows_kept} of {len(rows)} embeddings were in {folder}: no pass was made for them")
        return Embedded(path=folder / f"{NAME}.npy", cost=cost, seconds=time.perf_counter() - began)


def _digest(key: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
