"""The pool: the same counts and the same hash from any container, another hash for any other content."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Sequence, Value, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from dataflex.core.errors import ConfigError
from dataflex.train import pool as pool_module
from dataflex.train.pool import read_pool

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    {"input_ids": [8], "labels": [8]},
    {"input_ids": [9, 10], "labels": [-100, -100]},
    {"input_ids": [11, 12, 13, 14], "labels": [11, -100, 13, -100]},
    {"input_ids": [15, 16], "labels": [15, -100]},
]


def as_dataset(rows) -> Dataset:
    return Dataset.from_list([dict(row) for row in rows])


class MapStyle(torch.utils.data.Dataset):
    """Nothing but length and items."""

    def __init__(self, rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int):
        if not 0 <= row < len(self.rows):
            raise IndexError(row)
        return self.rows[row]


def with_indices(rows) -> Dataset:
    """The same rows behind an indices mapping."""
    doubled = as_dataset([row for row in reversed(rows) for _ in range(2)])
    chosen = doubled.select(list(range(len(doubled) - 1, -1, -2)))
    assert chosen._indices is not None
    return chosen


CONTAINERS = {
    "list": list,
    "map style": MapStyle,
    "dataset": as_dataset,
    "dataset with indices": with_indices,
    "dataset as torch": lambda rows: as_dataset(rows).with_format("torch"),
    "more columns": lambda rows: as_dataset([{"extra": "x", "attention_mask": [1], **row} for row in rows]),
    "int32": lambda rows: as_dataset(rows).cast(
        Features({"input_ids": Sequence(Value("int32")), "labels": Sequence(Value("int64"))})
    ),
    "in chunks": lambda rows: concatenate_datasets([as_dataset([row]) for row in rows]),
    "arrays": lambda rows: [{name: np.array(values, dtype=np.int32) for name, values in row.items()} for row in rows],
    "tensors": lambda rows: [{name: torch.tensor(values) for name, values in row.items()} for row in rows],
}


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_the_same_content_is_the_same_pool_in_any_container(make) -> None:
    plain, pool = read_pool(ROWS), read_pool(make(ROWS))
    assert pool.info.num_tokens_N.tolist() == [3, 1, 2, 4, 2]
    assert pool.info.num_label_tokens_N.tolist() == [2, 0, 0, 1, 0], "position 0 is never predicted"
    assert pool.info.trainable_N.tolist() == [True, False, False, True, False]
    assert pool.digest == plain.digest
    assert len(pool) == 5


def test_selected_and_shuffled_data_sets_are_read_in_their_own_order() -> None:
    data = as_dataset(ROWS)
    shuffled = data.shuffle(seed=3)
    order = shuffled._indices.column(0).to_pylist()
    assert order != sorted(order)
    assert read_pool(shuffled).digest == read_pool([ROWS[row] for row in order]).digest
    assert read_pool(data.select([3, 1])).info.num_tokens_N.tolist() == [4, 1]
    assert read_pool(data.select(range(1, 4))).digest == read_pool(ROWS[1:4]).digest
    assert read_pool(data.shuffle(seed=3).select([0, 2])).digest == read_pool([ROWS[order[0]], ROWS[order[2]]]).digest


def changed(row: int, name: str, position: int, value: int):
    rows = [{key: list(values) for key, values in r.items()} for r in ROWS]
    rows[row][name][position] = value
    return rows


@pytest.mark.parametrize(
    "rows",
    [
        changed(0, "input_ids", 1, 60),
        changed(4, "input_ids", -1, 17),
        changed(0, "labels", 0, 5),
        changed(1, "labels", 0, -100),
        [ROWS[1], ROWS[0], *ROWS[2:]],
        ROWS[:-1],
        [*ROWS, ROWS[0]],
        [{"input_ids": row["labels"], "labels": row["input_ids"]} for row in ROWS],
        # the same tokens end to end, cut elsewhere
        [{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7, 8], "labels": [7, 8]}, *ROWS[2:]],
        [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}, *ROWS[2:]],
    ],
)
def test_any_other_content_is_another_pool(rows) -> None:
    assert read_pool(rows).digest != read_pool(ROWS).digest
    assert read_pool(as_dataset(rows)).digest == read_pool(rows).digest


ragged = st.lists(st.lists(st.sampled_from([-100, 1, 2, 3]), max_size=5), min_size=1, max_size=9)


@given(ragged, st.integers(1, 4))
def test_counts_by_hand_at_any_block_size(labels, block: int) -> None:
    rows = [{"input_ids": [7] * len(row), "labels": row} for row in labels]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pool_module, "BLOCK", block)
        pool = read_pool(rows)
    assert pool.info.num_tokens_N.tolist() == [len(row) for row in labels]
    assert pool.info.num_label_tokens_N.tolist() == [sum(v != -100 for v in row[1:]) for row in labels]


def test_more_rows_than_a_block_from_both_containers() -> None:
    rows = [{"input_ids": list(range(i % 5 + 1)), "labels": [i] * (i % 5 + 1)} for i in range(2003)]
    one, other = read_pool(rows), read_pool(as_dataset(rows))
    assert one.digest == other.digest
    assert one.info.num_tokens_N.tolist() == other.info.num_tokens_N.tolist() == [i % 5 + 1 for i in range(2003)]


def test_without_labels_every_token_but_the_first_carries_a_loss() -> None:
    rows = [{"input_ids": row["input_ids"]} for row in ROWS]
    for data in (rows, as_dataset(rows)):
        assert read_pool(data).info.num_label_tokens_N.tolist() == [2, 0, 1, 3, 1]


def test_an_empty_row_among_others() -> None:
    rows = [ROWS[0], {"input_ids": [], "labels": []}, ROWS[3], {"input_ids": [], "labels": []}]
    for data in (rows, as_dataset(rows)):
        assert read_pool(data).info.num_tokens_N.tolist() == [3, 0, 4, 0]
        assert read_pool(data).info.num_label_tokens_N.tolist() == [2, 0, 1, 0]


def test_lists_of_one_fixed_length() -> None:
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5, 6], "labels": [-100, -100, 6]}]
    fixed = Features({name: Sequence(Value("int64"), length=3) for name in ("input_ids", "labels")})
    pool = read_pool(Dataset.from_list(rows, features=fixed))
    assert pool.info.num_label_tokens_N.tolist() == [2, 1]
    assert pool.digest == read_pool(rows).digest


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: [], "is empty"),
        (lambda: as_dataset(ROWS).select([]), "is empty"),
        (lambda: iter(ROWS), "is a stream"),
        (lambda: as_dataset(ROWS).to_iterable_dataset(), "is a stream"),
        (lambda: [{"text": "a"}], "no input_ids, only text"),
        (lambda: Dataset.from_dict({"text": ["a"], "label": [1]}), "no input_ids, only text, label"),
    ],
)
def test_what_cannot_be_a_pool_is_one_sentence(make, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_pool(make())
    assert "\n" not in str(caught.value)
