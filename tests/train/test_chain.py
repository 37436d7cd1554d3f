"""The chain and accelerate agree on who trains what; where they do not, the chain says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler, prepare_data_loader
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.order import Geometry, deal
from dataflex.core.seeds import loader_seed
from dataflex.train.chain import SegmentChain, draw_like_a_stock_loader, host_order
from dataflex.train.indexed import SAMPLE_IDS, IndexedCollator, IndexedDataset, SegmentSampler

DATA = [{"value": row} for row in range(200)]


def prepared(geometry: Geometry, rank: int, num_workers: int = 0, *, drop_last: bool = False) -> Any:
    """The loader of one rank as ``Accelerator.prepare`` makes it."""
    loader = DataLoader(
        IndexedDataset(DATA),
        batch_size=geometry.micro_batch,
        sampler=SequentialSampler(DATA),
        num_workers=num_workers,
        drop_last=drop_last,
        collate_fn=IndexedCollator(lambda features: {"value": [feature["value"] for feature in features]}),
    )
    return prepare_data_loader(
        loader,
        device=torch.device("cpu"),
        num_processes=geometry.world_size,
        process_index=rank,
        put_on_device=False,
        rng_types=None,
        even_batches=True,
    )


def make_chain(loader: Any, geometry: Geometry, rank: int, deals: Any, **changes: Any) -> SegmentChain:
    options = {"num_micro_batches": 99, "before_epoch": lambda: None, **changes}
    return SegmentChain(loader, deals=deals, geometry=geometry, rank=rank, **options)


def a_deal(rows: np.ndarray, segment: int = 0) -> SimpleNamespace:
    return SimpleNamespace(rows=rows, seed=loader_seed(0, segment))


GEOMETRIES = [
    Geometry(world_size=world_size, accumulation=accumulation, micro_batch=micro_batch)
    for world_size in (1, 2, 3)
    for accumulation, micro_batch in ((1, 1), (2, 3), (3, 2))
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_accelerates_sharded_sampler_deals_as_deal_says(geometry: Geometry) -> None:
    rows_Q = np.random.default_rng(0).permutation(200)[: geometry.global_batch * 4]
    dealt = deal(rows_Q, geometry)
    for rank in range(geometry.world_size):
        sampler = SegmentSampler()
        sampler.rows = rows_Q
        batches: Any = BatchSampler(sampler, geometry.micro_batch, drop_last=False)
        if geometry.world_size > 1:
            batches = BatchSamplerShard(
                batches, num_processes=geometry.world_size, process_index=rank, even_batches=True
            )
        wanted = dealt[:, :, rank].reshape(-1, geometry.micro_batch)
        assert list(batches) == wanted.tolist()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_chain_hands_out_whole_segments_over_the_prepared_loader(geometry: Geometry, drop_last: bool) -> None:
    rng = np.random.default_rng(1)
    segments = [rng.integers(0, 200, geometry.global_batch * num_steps) for num_steps in (3, 1, 2)]
    wanted = np.concatenate([deal(rows, geometry) for rows in segments])
    for rank in range(geometry.world_size):
        chain = make_chain(
            prepared(geometry, rank, drop_last=drop_last),
            geometry,
            rank,
            lambda: iter([a_deal(rows, k) for k, rows in enumerate(segments)]),
        )
        for _ in range(2):  # every epoch anew
            batches = list(chain)
            mine = wanted[:, :, rank].reshape(-1, geometry.micro_batch).tolist()
            assert [batch[SAMPLE_IDS].tolist() for batch in batches] == mine
            assert [batch["value"] for batch in batches] == mine


def test_with_workers_as_well() -> None:
    geometry = Geometry(world_size=2, accumulation=1, micro_batch=2)
    segments = [np.arange(8), np.arange(20, 16, -1)]
    chain = make_chain(prepared(geometry, 1, num_workers=2), geometry, 1, lambda: map(a_deal, segments))
    assert [batch["value"] for batch in chain] == [[2, 3], [6, 7], [18, 17]]


def test_the_length_is_what_the_trainer_is_told() -> None:
    geometry = Geometry(world_size=1, accumulation=1, micro_batch=1)
    assert len(make_chain(prepared(geometry, 0), geometry, 0, lambda: iter([]), num_micro_batches=17)) == 17


def test_nothing_of_the_inner_loader_shines_through() -> None:
    geometry = Geometry(world_size=1, accumulation=1, micro_batch=1)
    chain = make_chain(prepared(geometry, 0), geometry, 0, lambda: iter([]))
    for name in ("dataset", "batch_sampler", "sampler", "batch_size", "set_epoch", "collate_fn"):
        assert not hasattr(chain, name)


def test_the_next_segment_is_asked_for_after_the_last_batch_was_trained() -> None:
    geometry = Geometry(world_size=1, accumulation=1, micro_batch=2)
    events: list[str] = []

    def deals():
        for number in range(2):
            events.append(f"decide {number}")
            yield a_deal(np.arange(4), number)

    chain = make_chain(prepared(geometry, 0), geometry, 0, deals, before_epoch=lambda: events.append("epoch"))
    for batch in chain:
        events.append(f"train {batch['value']}")
    assert events == [
        "epoch",
        "decide 0",
        "train [0, 1]",
        "train [2, 3]",
        "decide 1",
        "train [0, 1]",
        "train [2, 3]",
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_global_random_stream_is_not_touched(num_workers: int) -> None:
    geometry = Geometry(world_size=1, accumulation=1, micro_batch=2)
    chain = make_chain(prepared(geometry, 0, num_workers), geometry, 0, lambda: map(a_deal, [np.arange(4)] * 3))
    before = torch.get_rng_state()
    assert len(list(chain)) == 6
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stock_loader_draws_what_is_drawn_in_its_stead() -> None:
    torch.manual_seed(5)
    list(DataLoader([1, 2, 3]))
    wanted = torch.rand(3)
    torch.manual_seed(5)
    draw_like_a_stock_loader()
    assert torch.equal(torch.rand(3), wanted)


class Misdealing:
    """A loader that hands out ``change(batches)`` of what it should."""

    def __init__(self, change: Any) -> None:
        self._change = change

    def set_sampler(self, sampler: Any) -> None:
        self._sampler = sampler

    def __iter__(self):
        rows = list(self._sampler)
        batches = [np.array(rows[start : start + 2]) for start in range(0, len(rows), 2)]
        return iter([{SAMPLE_IDS: ids} for ids in self._change(batches)])


def chain_over(change: Any) -> SegmentChain:
    geometry = Geometry(world_size=1, accumulation=1, micro_batch=2)
    return make_chain(Misdealing(change), geometry, 0, lambda: iter([a_deal(np.arange(8))]))


def test_a_loader_that_deals_right_is_left_in_peace() -> None:
    assert len(list(chain_over(lambda batches: batches))) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda batches: batches[::-1],
        lambda batches: [ids[::-1] for ids in batches],
        lambda batches: [*batches[:-1], batches[0]],
        lambda batches: [ids[:1] for ids in batches],
        lambda batches: [np.append(ids, 9) for ids in batches],
    ],
)
def test_other_samples_than_the_ledger_says_are_never_trained(change: Any) -> None:
    with pytest.raises(DataFlexError, match="rank 0 was handed samples"):
        list(chain_over(change))


@pytest.mark.parametrize("change", [lambda batches: batches[:-1], lambda batches: [*batches, np.array([8, 9])]])
def test_a_batch_too_few_or_too_many_is_no_quiet_end(change: Any) -> None:
    with pytest.raises((DataFlexError, ValueError)):
        list(chain_over(change))


# the host's own order


def dealt_by_accelerate(sampler: Any, geometry: Geometry, *, drop_last: bool) -> list[list[list[int]]]:
    """Micro-batches of every rank."""
    per_rank = []
    for rank in range(geometry.world_size):
        batches: Any = BatchSampler(sampler, geometry.micro_batch, drop_last=drop_last)
        if geometry.world_size > 1:
            batches = BatchSamplerShard(
                batches, num_processes=geometry.world_size, process_index=rank, even_batches=True
            )
        per_rank.append([list(batch) for batch in batches])
    return per_rank


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_the_hosts_order_is_what_accelerate_deals(world_size: int, micro_batch: int, drop_last: bool) -> None:
    geometry = Geometry(world_size=world_size, accumulation=1, micro_batch=micro_batch)
    for num_rows in range(1, 34):
        sampler = SequentialSampler(range(num_rows))
        rows = host_order(sampler, 0, geometry, drop_last=drop_last)
        dealt = dealt_by_accelerate(sampler, geometry, drop_last=drop_last)
        rounds = [batch for round_ in zip(*dealt, strict=True) for batch in round_]
        assert rows.tolist() == [row for batch in rounds for row in batch], f"{num_rows} rows"
        for rank in range(world_size):
            chain = make_chain(
                prepared(geometry, rank, drop_last=drop_last), geometry, rank, lambda rows=rows: iter([a_deal(rows)])
            )
            assert [batch["value"] for batch in chain] == dealt[rank], f"{num_rows} rows, rank {rank}"


def test_a_shuffled_host_has_another_order_each_epoch_and_the_same_again() -> None:
    geometry = Geometry(world_size=2, accumulation=1, micro_batch=2)

    def sampler() -> SeedableRandomSampler:
        return SeedableRandomSampler(data_source=range(11), generator=torch.Generator(), data_seed=3)

    orders = [host_order(sampler(), epoch, geometry, drop_last=False).tolist() for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert all(len(order) == 12 and order[11] == order[0] and sorted(order[:11]) == list(range(11)) for order in orders)
    again = sampler()
    assert [host_order(again, epoch, geometry, drop_last=False).tolist() for epoch in (2, 0)] == [orders[2], orders[0]]
    stock = sampler()
    stock.set_epoch(1)
    assert orders[1][:11] == list(stock)


def test_a_sampler_that_draws_from_the_global_stream_is_refused() -> None:
    geometry = Geometry(world_size=1, accumulation=1, micro_batch=1)
    with pytest.raises(ConfigError, match="RandomSampler cannot be followed"):
        host_order(RandomSampler(range(5)), 0, geometry, drop_last=False)
