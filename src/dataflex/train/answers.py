"""Answers after their prompts and without them: the same tokens twice, for their two losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dataflex.core.errors import ConfigError, shown
from dataflex.signals.head import IGNORE_INDEX, text_config


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The rows of a data set as (what comes before, answer) for a scorer.

    The answer is everything from the first label token on; its labels are the row's own. What comes before is the
    prompt, or one token that begins a text and the ``header``.

    Args:
        fetch: rows of the data set -> one feature dict each.
        row_labels: features -> labels of each, where rows have none before the collator.
        header: text between the begin and an answer without its prompt, such as a template's mark of an answer.
        own: tokenizer that the rows were made with.
        scorer: tokenizer of another model that scores them; None: the rows' own tokens are scored.
        most: tokens that the scorer takes; longer rows lose the end of their answer in both readings.
    """

    dataset: Any
    fetch: Callable[[Any, np.ndarray], list[dict[str, Any]]]
    row_labels: Callable[[list[dict[str, Any]]], Sequence[Any]]
    header: str
    own: Any
    scorer: Any = None
    most: int | None = None
    scorer_name: str = ""

    def scored_by(self, path: str, trained: nn.Module, trainer: Any) -> tuple[nn.Module, Answers]:
        """Another model, such as a small one, and the answers as it reads them."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = trainer.accelerator.device
        try:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(trained, "dtype", None))
            scorer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"model {shown(path)} cannot be loaded to score answers ({reason}); name a model's folder, or self"
            ) from error
        most = getattr(text_config(model), "max_position_embeddings", None)
        answers = replace(self, scorer=scorer, most=most, scorer_name=path)
        return model.to(device).eval().requires_grad_(False), answers

    def told(self, *, prompted: bool) -> str:
        """What a cache's key says of them."""
        retokenised = ", tokens of the scorer" if self.scorer is not None else ""
        alone = "" if prompted else f", without prompt, header {self.header!r}"
        return f", answers{alone}{retokenised}, begin {self._begin()}, version 1"

    def source_fields(self, *, prompted: bool) -> dict[str, Any]:
        """Fields of a ``Source`` that yield one of the two readings."""

        def features(rows_B: np.ndarray) -> list[dict[str, Any]]:
            raw = self.fetch(self.dataset, rows_B)
            labels = self._labels(raw)
            pairs = zip(raw, labels, strict=True)
            return [self._feature(row["input_ids"], labels_T, prompted=prompted) for row, labels_T in pairs]

        return {"features": features, "collate": pad_right, "row_labels": None}

    def _labels(self, raw: list[dict[str, Any]]) -> list[np.ndarray]:
        if all("labels" in row for row in raw):
            return [np.asarray(row["labels"]) for row in raw]
        return [np.asarray(labels) for labels in self.row_labels(raw)]

    def _feature(self, input_ids: Any, labels_T: np.ndarray, *, prompted: bool) -> dict[str, Any]:
        ids_T = np.asarray(input_ids, dtype=np.int64)
        labelled = np.flatnonzero(labels_T != IGNORE_INDEX)
        first = int(labelled[0]) if len(labelled) else len(ids_T)
        prompt, answer, labels = ids_T[:first], ids_T[first:], labels_T[first:]
        if self.scorer is not None:
            prompt, answer = (self._again(part) for part in (prompt, answer))
            labels = answer
        begin = [self._begin(), *self._header_ids()]
        # As much of the answer as fits behind the longer of both beginnings, so that both readings are of the same.
        if self.most is not None:
            room = max(0, self.most - max(len(begin), 1 + len(prompt)))
            answer, labels = answer[:room], labels[:room]
        # A scorer of its own begins a text as it was trained to; the rows' own tokens have their beginning.
        before = ([self._begin()] if self.scorer is not None or first == 0 else []) + prompt.tolist()
        before = before if prompted else begin
        return {
            "input_ids": [*before, *answer.tolist()],
            "labels": [*[IGNORE_INDEX] * len(before), *labels.tolist()],
        }

    def _again(self, ids: np.ndarray) -> np.ndarray:
        """Tokens of the scorer for the text that these stand for."""
        text = self.own.decode(ids.tolist(), skip_special_tokens=True)
        return np.asarray(self.scorer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    def _begin(self) -> int:
        """The token before a text: any model has one that ends texts, at least."""
        tokenizer = self.scorer or self.own
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            found = getattr(tokenizer, name, None)
            if found is not None:
                return int(found)
        raise ConfigError(
            f"the tokenizer {type(tokenizer).__name__} has no token to begin a text with (bos, eos, pad), which an "
            "answer without its prompt needs; set one"
        )

    def _header_ids(self) -> list[int]:
        return (
            list((self.scorer or self.own)(self.header, add_special_tokens=False)["input_ids"]) if self.header else []
        )


def tokenizer_of(trainer: Any) -> Any:
    """The tokenizer that a Trainer was given, also inside a processor."""
    processing = getattr(trainer, "processing_class", None)
    return getattr(processing, "tokenizer", processing)


def pad_right(features: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of rows of ``input_ids`` and ``labels``."""
    longest = max(len(feature["input_ids"]) for feature in features)
    batch = {
        "input_ids": torch.zeros(len(features), longest, dtype=torch.int64),
        "labels": torch.full((len(features), longest), IGNORE_INDEX, dtype=torch.int64),
        "attention_mask": torch.zeros(len(features), longest, dtype=torch.int64),
    }
    for number, feature in enumerate(features):
        length = len(feature["input_ids"])
        batch["input_ids"][number, :length] = torch.as_tensor(feature["input_ids"])
        batch["labels"][number, :length] = torch.as_tensor(feature["labels"])
        batch["attention_mask"][number, :length] = 1
    return batch
