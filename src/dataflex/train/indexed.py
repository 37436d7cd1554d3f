"""Sample ids travel inside the batches, so that what was trained is known and not guessed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

SAMPLE_IDS = "sample_ids"


class IndexedDataset(Dataset):
    """The host's data set with the row number in every feature."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**self._dataset[row], SAMPLE_IDS: row}

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        fetch = getattr(self._dataset, "__getitems__", None)
        features = fetch(list(rows)) if fetch is not None else [self._dataset[row] for row in rows]
        return [{**feature, SAMPLE_IDS: row} for feature, row in zip(features, rows, strict=True)]


class IndexedCollator:
    """The host's collator on features without the row numbers, which join the batch afterwards.

    They stay a numpy array: no copy to the device, nothing to wait for.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Any]) -> None:
        self._collate = collate

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        ids = np.array([feature.pop(SAMPLE_IDS) for feature in features], dtype=np.int64)
        batch = self._collate(features)
        batch[SAMPLE_IDS] = ids
        return batch


class SegmentSampler(Sampler[int]):
    """Yields the rows that were put into it, in their order."""

    def __init__(self) -> None:
        self.rows = np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self):
        return iter(self.rows.tolist())
