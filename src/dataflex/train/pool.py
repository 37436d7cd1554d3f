"""The pool: lengths, label counts and a content hash of the tokenised training set, read in one pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex.algorithms.base import PoolInfo
from dataflex.core.errors import ConfigError
from dataflex.signals.blocks import Block

IGNORE_INDEX = -100
MEDIA = ("images", "videos", "audios")
BLOCK = 1000  # rows read at a time


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The tokenised training set, without the set itself."""

    info: PoolInfo
    digest: str  # sha256 of every row's tokens and labels, in order

    def __len__(self) -> int:
        return len(self.info)


def read_pool(dataset: Any, collate: Callable[[list[dict[str, Any]]], Any] | None = None) -> Pool:
    """Read a map-style data set.

    Rows of ``input_ids`` and ``labels`` are counted as they are. Without ``labels`` they are those that the host's
    collator gives each row (a completion mask, padding tokens that carry none); without a collator every token carries
    one. Rows of any other form, such as pairs, count the tokens of all their ``*input_ids`` columns, and each can be
    scored.

    Args:
        collate: the host's collator.

    Raises:
        ConfigError: an empty or streaming data set, or one without tokens.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ConfigError("the training set is a stream; choosing samples needs random access: set streaming: false")
    if len(dataset) == 0:
        raise ConfigError("the training set is empty; check the data set and max_samples")
    digest = hashlib.sha256()
    num_tokens, num_label_tokens = [], []
    if not is_language_modelling(dataset):
        return _read_other(dataset)
    for tokens, labels in _blocks(dataset, collate):
        for column in (tokens, labels):
            digest.update(column.flat.astype(np.int64).tobytes())
            digest.update(column.lengths.astype(np.int64).tobytes())
        num_tokens.append(tokens.lengths)
        num_label_tokens.append(labels.counted())
    info = PoolInfo(num_tokens_N=np.concatenate(num_tokens), num_label_tokens_N=np.concatenate(num_label_tokens))
    return Pool(info=info, digest=digest.hexdigest())


def token_blocks(dataset: Any, collate: Callable[[list[dict[str, Any]]], Any] | None = None) -> Iterator[Block]:
    """The rows of a data set of texts in order, some at a time.

    Args:
        collate: the host's collator, as for ``read_pool``.
    """
    for tokens, labels in _blocks(dataset, collate):
        yield Block(
            tokens_T=tokens.flat.astype(np.int64), lengths_B=tokens.lengths.astype(np.int64),
            counted_T=labels.predicted(),
        )  # fmt: skip


def is_language_modelling(dataset: Any) -> bool:
    """True for rows of ``input_ids`` with a label for each token, or none yet; False for pairs and classes."""
    names = _names(dataset)
    if "input_ids" not in names or any(name.lower().startswith("kl_") for name in names):
        return False
    return not any(name in names and not _is_list(dataset, name) for name in ("label", "labels", "label_ids"))


def _read_other(dataset: Any) -> Pool:
    """The pool of rows that are no plain text, such as pairs of answers."""
    names = sorted(name for name in _names(dataset) if name.endswith("_ids") and _is_list(dataset, name))
    if not names:
        raise ConfigError(f"the training set has no input_ids, only {', '.join(_names(dataset))}; tokenise it first")
    digest, lengths = hashlib.sha256(), []
    for row in (dataset[i] for i in range(len(dataset))):
        digest.update(json.dumps(row, sort_keys=True, default=_plain).encode())
        lengths.append(sum(len(row[name]) for name in names))
    lengths_N = np.array(lengths, dtype=np.int64)
    # What a row's own loss counts is its trainer's affair: each can be scored.
    return Pool(info=PoolInfo(num_tokens_N=lengths_N, num_label_tokens_N=lengths_N), digest=digest.hexdigest())


def rows_also_in(dataset: Any, other: Any) -> np.ndarray:
    """Rows of ``dataset`` whose tokens are exactly those of a row of ``other``, ascending, int64."""
    known = {tokens.tobytes() for block, _ in _blocks(other, None) for _, tokens in block.lists(block.lengths)}
    lengths = {length // np.dtype(np.int64).itemsize for length in map(len, known)}
    found: list[int] = []
    first = 0
    for block, _ in _blocks(dataset, None):
        found += [first + row for row, tokens in block.lists(lengths) if tokens.tobytes() in known]
        first += len(block.lengths)
    return np.array(found, dtype=np.int64)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def _is_list(dataset: Any, name: str) -> bool:
    """True when a column holds one list a row."""
    if hasattr(dataset, "features"):  # a datasets.Dataset: no row is formatted for it
        return type(dataset.features[name]).__name__ not in ("Value", "ClassLabel")
    return np.ndim(dataset[0][name]) > 0


def _names(dataset: Any) -> list[str]:
    return getattr(dataset, "column_names", None) or list(dataset[0])


def row_labels(features: list[dict[str, Any]], collate: Callable[[list[dict[str, Any]]], Any]) -> list[np.ndarray]:
    """Labels of each row as the host's collator makes them of it alone, one for each of its tokens.

    Raises:
        ConfigError: a collator that gives none, or another number of them.
    """
    return [_labels_of(feature, collate) for feature in features]


def _labels_of(feature: dict[str, Any], collate: Callable[[list[dict[str, Any]]], Any]) -> np.ndarray:
    batch = collate([dict(feature)])
    num_tokens = len(feature["input_ids"])
    if "labels" not in batch:
        raise ConfigError("the data collator makes no labels, and the rows have none; pass another data_collator")
    labels_T, mask_T = np.asarray(batch["labels"][0]), batch.get("attention_mask")
    if mask_T is not None and np.ndim(mask_T) == 2:
        labels_T = labels_T[np.asarray(mask_T[0]) != 0]
    if len(labels_T) < num_tokens or (labels_T[num_tokens:] != IGNORE_INDEX).any():  # padded to a multiple
        raise ConfigError(f"the data collator makes {len(labels_T)} labels of a row of {num_tokens} tokens")
    return labels_T[:num_tokens]


def holds_media(dataset: Any) -> bool:
    """True when any row has an image, a video or a sound: more than its tokens tell."""
    names = [name for name in MEDIA if name in (getattr(dataset, "column_names", None) or list(dataset[0]))]
    if not names:
        return False
    if hasattr(dataset, "with_format"):
        tables = dataset.with_format("arrow", columns=names).iter(batch_size=BLOCK)
        columns = (table[name] for table in tables for name in names)
        return any(_is_filled(column) for column in columns)
    return any(row.get(name) for row in (dataset[i] for i in range(len(dataset))) for name in names)


def _is_filled(column: pa.ChunkedArray) -> bool:
    """True when a value is neither null nor an empty list."""
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return column.null_count < len(column)
    return any(len(chunk.flatten()) > 0 for chunk in column.chunks)


@dataclass(frozen=True)
class _Ragged:
    """Lists of different lengths, end to end."""

    flat: np.ndarray
    lengths: np.ndarray

    def predicted(self) -> np.ndarray:
        """Labels that are predicted: not ignored, and not at position 0 of a list, which nothing predicts; bool."""
        starts = np.cumsum(self.lengths) - self.lengths
        predicted = self.flat != IGNORE_INDEX
        predicted[starts[self.lengths > 0]] = False
        return predicted

    def counted(self) -> np.ndarray:
        """Number of labels of each list that are predicted."""
        starts = np.cumsum(self.lengths) - self.lengths
        before = np.concatenate([[0], np.cumsum(self.predicted())])
        return before[starts + self.lengths] - before[starts]

    def lists(self, lengths: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
        """The lists of these lengths with their numbers, int64."""
        flat, stops = self.flat.astype(np.int64), np.cumsum(self.lengths)
        for i in np.flatnonzero(np.isin(self.lengths, list(lengths))).tolist():
            yield i, flat[stops[i] - self.lengths[i] : stops[i]]


def _blocks(dataset: Any, collate: Callable[[list[dict[str, Any]]], Any] | None) -> Iterator[tuple[_Ragged, _Ragged]]:
    names = _names(dataset)
    if "labels" not in names and collate is not None:
        for start in range(0, len(dataset), BLOCK):
            rows = [dict(dataset[i]) for i in range(start, min(start + BLOCK, len(dataset)))]
            yield _from_lists([r["input_ids"] for r in rows]), _from_lists(row_labels(rows, collate))
        return
    labels_name = "labels" if "labels" in names else "input_ids"
    if hasattr(dataset, "with_format"):  # a datasets.Dataset: arrow blocks, no Python objects
        arrow = dataset.with_format("arrow", columns=sorted({"input_ids", labels_name}))
        for table in arrow.iter(batch_size=BLOCK):
            yield _from_arrow(table["input_ids"]), _from_arrow(table[labels_name])
        return
    for start in range(0, len(dataset), BLOCK):
        rows = [dataset[i] for i in range(start, min(start + BLOCK, len(dataset)))]
        yield _from_lists([r["input_ids"] for r in rows]), _from_lists([r[labels_name] for r in rows])


def _from_arrow(column: pa.ChunkedArray) -> _Ragged:
    lists = column.combine_chunks()
    return _Ragged(lists.flatten().to_numpy(zero_copy_only=False), lists.value_lengths().to_numpy(zero_copy_only=False))


def _from_lists(lists: list[Any]) -> _Ragged:
    arrays = [np.asarray(values) for values in lists]
    return _Ragged(np.concatenate(arrays), np.array([len(a) for a in arrays], dtype=np.int64))
