"""Row numbers travel with the samples and leave no trace on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from dataflex.train.indexed import SAMPLE_IDS, IndexedCollator, IndexedDataset, SegmentSampler

ROWS = [{"input_ids": [i, i + 1]} for i in range(6)]


@pytest.mark.parametrize("make", [list, Dataset.from_list], ids=["list", "dataset"])
def test_every_feature_knows_its_row_and_the_data_stay_as_they_are(make) -> None:
    data = make([dict(row) for row in ROWS])
    indexed = IndexedDataset(data)
    assert len(indexed) == 6
    assert indexed[4] == {"input_ids": [4, 5], SAMPLE_IDS: 4}
    fetched = indexed.__getitems__([5, 0, 5])
    assert [feature[SAMPLE_IDS] for feature in fetched] == [5, 0, 5]
    assert [feature["input_ids"] for feature in fetched] == [[5, 6], [0, 1], [5, 6]]
    assert all(SAMPLE_IDS not in data[i] for i in range(6))


def test_the_collator_gets_features_without_ids_and_the_batch_has_them() -> None:
    seen = []

    def collate(features):
        seen.extend(features)
        return {"input_ids": torch.tensor([feature["input_ids"] for feature in features])}

    features = IndexedDataset(ROWS).__getitems__([3, 1])
    batch = IndexedCollator(collate)(features)
    assert all(set(feature) == {"input_ids"} for feature in seen)
    assert batch["input_ids"].tolist() == [[3, 4], [1, 2]]
    ids = batch[SAMPLE_IDS]
    assert isinstance(ids, np.ndarray), "a tensor would be copied to the device"
    assert (ids.dtype, ids.tolist()) == (np.int64, [3, 1])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_through_a_loader_ids_name_their_samples(num_workers: int) -> None:
    sampler = SegmentSampler()
    loader = torch.utils.data.DataLoader(
        IndexedDataset(ROWS),
        batch_size=2,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=IndexedCollator(lambda features: {"first": [feature["input_ids"][0] for feature in features]}),
    )
    for rows in ([5, 2, 2, 0], [1, 1], []):
        sampler.rows = np.array(rows, dtype=np.int64)
        assert len(sampler) == len(rows)
        batches = list(loader)
        assert [i for batch in batches for i in batch["first"]] == rows
        assert [i for batch in batches for i in batch[SAMPLE_IDS].tolist()] == rows


def test_a_sampler_yields_plain_integers() -> None:
    sampler = SegmentSampler()
    assert list(sampler) == []
    sampler.rows = np.array([3, 1], dtype=np.int64)
    assert [type(row) for row in sampler] == [int, int]
    assert list(sampler) == list(sampler) == [3, 1]
