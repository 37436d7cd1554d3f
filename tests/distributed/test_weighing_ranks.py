"""Weighers, a mixer and an order on two gloo ranks: what one rank does, within the order of summation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_two_ranks import cut_after, start, weights

from dataflex.ledger.ledger import Ledger

pytestmark = pytest.mark.long


def test_weights_of_one_are_the_hosts_own_training_to_the_bit(tmp_path: Path) -> None:
    stock, ours = start(tmp_path / "stock", 2, "stock"), start(tmp_path / "ours", 2, "ones")
    expected, found = weights(stock), weights(ours)
    assert all((expected[name] == found[name]).all() for name in expected)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("weighing")
    return start(folder / "one", 1, "mix and weigh"), start(folder / "two", 2, "mix and weigh")


def told(run: Path) -> list[dict]:
    return [line for line in Ledger(run).lines() if line["kind"] == "trained"]


def test_one_and_two_ranks_weigh_and_choose_alike(runs) -> None:
    one, two = runs
    for segment, line in Ledger(one).segments().items():
        other = Ledger(two).segments()[segment]
        assert Ledger(one).rows_of(line).tolist() == Ledger(two).rows_of(other).tolist()
        assert line["mix"]["counts"] == other["mix"]["counts"]
        assert line["mix"]["proportions"] == pytest.approx(other["mix"]["proportions"], rel=1e-5)
    assert len(told(one)) == len(told(two)) == len(Ledger(one).segments())
    for left, right in zip(told(one), told(two), strict=True):
        assert left["domain_tokens"] == right["domain_tokens"]
        assert left["domain_losses"] == pytest.approx(right["domain_losses"], rel=1e-5)
        assert left["weights"] == pytest.approx(right["weights"], rel=1e-5)
    assert told(one)[-1]["weights"]["min"] < told(one)[-1]["weights"]["max"]
    left, right = weights(one), weights(two)
    assert all(np.allclose(left[name], right[name], rtol=1e-4, atol=1e-5) for name in left)


@pytest.mark.parametrize("step", [3, 4])  # at a decision, and inside a segment
def test_two_ranks_resume_to_the_bit(runs, tmp_path: Path, step: int) -> None:
    _, two = runs
    run = start(cut_after(two, step, tmp_path / "cut"), 2, "mix and weigh")
    full, resumed = weights(two), weights(run)
    assert all((full[name] == resumed[name]).all() for name in full)
    # What was told twice, before and after the resume, is told alike.
    last = [{line["segment"]: (line["domain_losses"], line["weights"]) for line in told(r)} for r in (two, run)]
    assert last[0] == last[1]
