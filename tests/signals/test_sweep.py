"""The sharded pass: every rank as many forwards, every row its own number, whatever the number of ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_model, make_rows, signal_of

from dataflex.core.errors import DataFlexError
from dataflex.signals.batches import batches_by_length
from dataflex.signals.sweep import CANDIDATES, Collective, Sweep, sweep

CPU = torch.device("cpu")


class Fingerprints:
    """Row i measures (i, i squared); notes which batches it was given."""

    num_columns = 2

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def prepare(self, rows_B: np.ndarray) -> np.ndarray:
        return rows_B

    def measure(self, rows_B: np.ndarray) -> torch.Tensor:
        self.batches.append(rows_B.tolist())
        rows = torch.from_numpy(np.asarray(rows_B)).double()
        return torch.stack([rows, rows**2], dim=1)


class GatheringRanks:
    """Ranks as threads; ``gather`` waits for all and concatenates what they gave, as torch.distributed does."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.given: list[torch.Tensor | None] = [None] * world_size

    def gather(self, rank: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def gather(tensor: torch.Tensor) -> torch.Tensor:
            self.given[rank] = tensor
            self.barrier.wait()
            shapes = {tuple(t.shape) for t in self.given}
            assert len(shapes) == 1, f"ranks gave tensors of shapes {shapes}"
            result = torch.cat(self.given)
            self.barrier.wait()  # nobody puts the next one down while another still reads
            return result

        return gather


def on_ranks(world_size: int, make_signal, lengths_N, rows, batch_tokens) -> tuple[list[Sweep], list]:
    """One sweep per rank, at the same time; returns the results and the signals."""
    ranks, results, failures = GatheringRanks(world_size), [None] * world_size, []
    signals = [make_signal() for _ in range(world_size)]

    def work(rank: int) -> None:
        try:
            with torch.no_grad():
                results[rank] = sweep(
                    signals[rank],
                    lengths_N,
                    rows,
                    ranks=Collective(device=CPU, rank=rank, world_size=world_size, gather=ranks.gather(rank)),
                    batch_tokens=batch_tokens,
                )
        except BaseException as error:
            failures.append(error)
            ranks.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return results, signals


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_tokens", [1, 50, 10**6])
@pytest.mark.parametrize("num_rows", [1, 2, 37])
def test_every_rank_gets_every_row_with_as_many_forwards(world_size: int, batch_tokens: int, num_rows: int) -> None:
    lengths_N = np.random.default_rng(0).integers(1, 30, num_rows)
    results, signals = on_ranks(world_size, Fingerprints, lengths_N, np.arange(num_rows), batch_tokens)
    wanted = np.stack([np.arange(num_rows), np.arange(num_rows) ** 2], axis=1).astype(float)
    for result in results:
        np.testing.assert_array_equal(result.values_NxC, wanted)
        assert result.num_rows == num_rows
        assert result.num_tokens == lengths_N.sum()
        assert result.seconds >= 0
    assert len({len(signal.batches) for signal in signals}) == 1, "a sharded model waits for all ranks"
    forwards = sum(len(signal.batches) for signal in signals)
    assert forwards < len(batches_by_length(lengths_N, np.arange(num_rows), batch_tokens)) + world_size


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_losses_of_a_model_are_the_same_bits_on_any_number_of_ranks(world_size: int) -> None:
    model, rows = make_model("llama"), make_rows()[:13]
    lengths_N = np.array([len(row["input_ids"]) for row in rows])
    (alone,), _ = on_ranks(1, lambda: signal_of(model, rows), lengths_N, np.arange(13), 70)
    together, _ = on_ranks(world_size, lambda: signal_of(model, rows), lengths_N, np.arange(13), 70)
    for result in together:
        np.testing.assert_array_equal(result.values_NxC, alone.values_NxC)


@pytest.mark.parametrize("world_size", [1, 3])
def test_only_the_rows_asked_for_are_measured(world_size: int) -> None:
    lengths_N, rows = np.arange(1, 21), np.array([17, 3, 4, 0, 11])
    results, signals = on_ranks(world_size, Fingerprints, lengths_N, rows, 12)
    for result in results:
        assert np.flatnonzero(~np.isnan(result.values_NxC[:, 0])).tolist() == sorted(rows.tolist())
        assert result.values_NxC[rows, 0].tolist() == rows.tolist()
        assert result.num_rows == 5
        assert result.num_tokens == lengths_N[rows].sum()
    assert {row for signal in signals for batch in signal.batches for row in batch} == set(rows.tolist())


@pytest.mark.parametrize("world_size", [1, 2])
def test_no_rows_is_no_forward(world_size: int) -> None:
    results, signals = on_ranks(world_size, Fingerprints, np.array([4, 5]), np.flatnonzero([0, 0]), 512)
    for result, signal in zip(results, signals, strict=True):
        assert np.isnan(result.values_NxC).all()
        assert result.values_NxC.shape == (2, 2)
        assert (result.num_rows, result.num_tokens, signal.batches) == (0, 0, [])


def test_the_progress_adds_up_to_the_tokens() -> None:
    done: list[int] = []
    sweep(
        Fingerprints(),
        np.full(23, 5),
        np.arange(23),
        ranks=Collective(device=CPU),
        batch_tokens=20,
        advance=done.append,
    )
    assert sum(done) == 23 * 5
    assert len(done) == 6


def test_a_number_that_is_not_finite_stays_with_its_row() -> None:
    class Bad(Fingerprints):
        def measure(self, rows_B: np.ndarray) -> torch.Tensor:
            values = super().measure(rows_B)
            values[values[:, 0] == 4] = float("inf")
            return values

    (result, *_), _ = on_ranks(3, Bad, np.full(7, 3), np.arange(7), 6)
    assert np.isinf(result.values_NxC[:, 0]).tolist() == [False] * 4 + [True, False, False]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60), st.integers(1, 400))
def test_batches_hold_each_row_once_within_the_budget_longest_first(lengths, batch_tokens) -> None:
    lengths_N = np.array(lengths)
    batches = batches_by_length(lengths_N, np.arange(len(lengths)), batch_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * lengths_N[b].max() <= batch_tokens or lengths_N[b].max() == 0 for b in batches)
    longest = [int(lengths_N[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.randoms())
def test_batches_depend_on_which_rows_not_on_their_order(lengths, random) -> None:
    shuffled = list(range(len(lengths)))
    random.shuffle(shuffled)
    one, other = (batches_by_length(np.array(lengths), np.array(r), 20) for r in (range(len(lengths)), shuffled))
    assert [b.tolist() for b in one] == [b.tolist() for b in other]


def cheapest(lengths: list[int], batch_tokens: int, overhead: int) -> float:
    """Padded tokens and forwards of the best cut of descending lengths, by trying all of them."""
    best = [0.0]
    for stop in range(1, len(lengths) + 1):
        fitting = (
            (start, lengths[start] * (stop - start))
            for start in range(stop)
            if stop - start == 1 or lengths[start] * (stop - start) <= batch_tokens
        )
        best.append(min(best[start] + tokens + overhead for start, tokens in fitting))
    return best[-1]


@given(st.lists(st.integers(1, 90), min_size=1, max_size=30, unique=True), st.integers(1, 60))
def test_no_other_cut_is_cheaper(lengths: list[int], overhead: int) -> None:
    lengths_N, budget = np.array(lengths), 10**6
    batches = batches_by_length(lengths_N, np.arange(len(lengths)), budget, overhead)
    cost = sum(len(batch) * int(lengths_N[batch].max()) + overhead for batch in batches)
    assert cost == cheapest(sorted(lengths, reverse=True), budget, overhead)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(60, 500))
def test_within_a_budget_the_cut_is_near_the_cheapest(lengths: list[int], budget: int) -> None:
    """Ranges are cut before batches are: at most one forward more for each range."""
    lengths_N, overhead = np.array(lengths), 16
    batches = batches_by_length(lengths_N, np.arange(len(lengths)), budget, overhead)
    cost = sum(len(batch) * int(lengths_N[batch].max()) + overhead for batch in batches)
    assert cost <= cheapest(sorted(lengths, reverse=True), budget, overhead) * 1.35 + overhead


class NeedsMemory(Fingerprints):
    """Runs out of memory above so many padded tokens, as a device does."""

    def __init__(self, lengths_N: np.ndarray, capacity: int) -> None:
        super().__init__()
        self.lengths_N, self.capacity = lengths_N, capacity

    def measure(self, rows_B: np.ndarray) -> torch.Tensor:
        if len(rows_B) * self.lengths_N[rows_B].max() > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().measure(rows_B)


@pytest.mark.parametrize("world_size", [1, 2])
def test_after_memory_ran_out_the_pass_goes_on_with_smaller_batches_and_says_so(world_size: int) -> None:
    lengths_N = np.random.default_rng(1).integers(5, 30, 61)
    results, _ = on_ranks(world_size, lambda: NeedsMemory(lengths_N, 100), lengths_N, np.arange(61), 400)
    for result in results:
        assert result.values_NxC[:, 0].tolist() == list(range(61))
        assert result.batch_tokens <= 200
    assert sum(result.num_out_of_memory for result in results) > 0
    assert len({result.batch_tokens for result in results}) == 1, "the ranks agree on what to go on with"


def test_what_did_not_fit_on_one_rank_is_counted_on_all() -> None:
    lengths_N = np.full(64, 10)
    signals = iter([NeedsMemory(lengths_N, 10**6), NeedsMemory(lengths_N, 100)])
    results, _ = on_ranks(2, lambda: next(signals), lengths_N, np.arange(64), 160)
    assert [result.num_out_of_memory for result in results] == [1, 1]


def test_a_size_that_calibration_tried_in_vain_does_not_shrink_the_one_that_fits() -> None:
    lengths_N = np.full(4000, 10)
    result = sweep(NeedsMemory(lengths_N, 2048), lengths_N, np.arange(4000), ranks=Collective(device=CPU))
    assert result.batch_tokens in CANDIDATES["cpu"]
    assert result.batch_tokens <= 2048


def test_a_size_that_did_not_fit_is_not_tried_again() -> None:
    lengths_N = np.full(64, 10)
    result = sweep(
        NeedsMemory(lengths_N, 100), lengths_N, np.arange(64), ranks=Collective(device=CPU), batch_tokens=160
    )
    assert result.num_out_of_memory == 1


def test_a_row_that_does_not_fit_alone_is_one_sentence() -> None:
    lengths_N = np.array([10, 200])
    with pytest.raises(DataFlexError, match="a scoring batch of 200 tokens does not fit into memory; lower cutoff_len"):
        sweep(NeedsMemory(lengths_N, 100), lengths_N, np.arange(2), ranks=Collective(device=CPU), batch_tokens=400)


def test_sharded_ranks_do_not_split_on_their_own() -> None:
    """One rank would run more forwards than the others, who wait for it."""
    lengths_N = np.full(64, 10)
    ranks = Collective(device=CPU, sharded=True)
    with pytest.raises(DataFlexError, match="set score_batch_tokens below 160"):
        sweep(NeedsMemory(lengths_N, 100), lengths_N, np.arange(64), ranks=ranks, batch_tokens=160)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_calibration_measures_every_row_and_all_ranks_choose_the_same(world_size: int) -> None:
    lengths_N = np.random.default_rng(2).integers(5, 120, 331)
    results, signals = on_ranks(world_size, Fingerprints, lengths_N, np.arange(331), None)
    for result in results:
        assert result.values_NxC[:, 0].tolist() == list(range(331))
    assert len({result.batch_tokens for result in results}) == 1
    assert results[0].batch_tokens in CANDIDATES["cpu"]
    assert len({len(signal.batches) for signal in signals}) == 1, "as many forwards on every rank"


def test_calibration_of_a_pool_smaller_than_a_batch() -> None:
    for num_rows in (1, 2, 3):
        lengths_N = np.full(num_rows, 40)
        result = sweep(Fingerprints(), lengths_N, np.arange(num_rows), ranks=Collective(device=CPU))
        assert result.values_NxC[:, 0].tolist() == list(range(num_rows))


def test_the_next_batch_is_prepared_while_one_is_measured() -> None:
    events: list[str] = []
    measuring = threading.Event()

    class Slow(Fingerprints):
        def prepare(self, rows_B):
            if events:
                assert measuring.wait(60), "the second batch is prepared although the first is not done"
            events.append("prepared")
            return rows_B

        def measure(self, rows_B):
            measuring.set()
            while events.count("prepared") < 2:
                pass
            return super().measure(rows_B)

    sweep(Slow(), np.full(4, 10), np.arange(4), ranks=Collective(device=CPU), batch_tokens=20)
    assert events == ["prepared", "prepared"]
