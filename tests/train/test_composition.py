"""Selector, mixer and order in one run: exact shares, each row once, the same after a resume from any step."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curated_runs import GEOMETRY, NUM_ROWS, SCHEDULE, WITHOUT_LABEL, Run, decisions, losses_at, make_pool

from dataflex.algorithms.base import PoolInfo, Selection, SelectorBase
from dataflex.algorithms.combine import Part
from dataflex.algorithms.mix.odm import ODM
from dataflex.algorithms.mix.random import RandomMix
from dataflex.algorithms.mix.static import StaticMix
from dataflex.algorithms.mix.temperature import Temperature
from dataflex.algorithms.order.folding import Folding
from dataflex.algorithms.order.sorting import Sorting
from dataflex.algorithms.order.zigzag import Zigzag
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.length import Length
from dataflex.algorithms.select.loss import Loss
from dataflex.algorithms.select.random import Random
from dataflex.core.draw import apportion
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.plan import Schedule
from dataflex.train.domains import domains_of
from dataflex.train.method import Method

DOMAIN_N = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2] * 4)  # 12, 8 and 20 rows
WORDS = {0: "d0", 1: "d1", 2: "d2"}


def mixed(mixer: Any, every: int = 1) -> Part:
    return Part(name="mixer", method=mixer, every=every)


def ordered(order: Any) -> tuple[Part, ...]:
    return (Part(name="order", method=order),)


METHODS: dict[str, Method] = {
    "mix": Method(mixer=mixed(StaticMix(proportions=(0.5, 0.3, 0.2)))),
    "mix tokens": Method(mixer=mixed(StaticMix(proportions="uniform", unit="tokens"))),
    "random mix, every 2": Method(mixer=mixed(RandomMix(), every=2)),
    "odm": Method(mixer=mixed(ODM())),
    "delta_loss and temperature": Method(
        name="delta_loss", selector=DeltaLoss(), mixer=mixed(Temperature(temperature=3.0))
    ),
    "loss, every 2, and odm": Method(name="loss", selector=Loss(), every=2, mixer=mixed(ODM())),
    "length and mix": Method(name="length", selector=Length(), every=2, mixer=mixed(StaticMix(proportions="uniform"))),
    "select then mix": Method(name="loss", selector=Loss(), mixer=mixed(StaticMix()), mode="select_then_mix", keep=0.5),
    "order": Method(orders=ordered(Folding(layers=3))),
    "order over the run": Method(orders=ordered(Zigzag(layers=3, over="run"))),
    "order by the loss of training": Method(orders=ordered(Sorting(by="loss", loss_source="reuse"))),
    "all": Method(
        name="delta_loss",
        selector=DeltaLoss(),
        mixer=mixed(ODM()),
        orders=ordered(Sorting(by="loss")),
        every=2,
    ),
}
METHODS["orders over the run and the segment"] = Method(
    orders=(*ordered(Zigzag(layers=3, over="run")), *ordered(Sorting(polarity="hard_first")))
)


def run_of(output_dir: Path, method: Method, **options: Any) -> Run:
    domain_N = DOMAIN_N if method.mixer is not None else None
    return Run(output_dir, method, domain_N=domain_N, **options)


@pytest.mark.parametrize("name", METHODS)
def test_a_resume_from_any_step_gives_the_same_run(name: str, tmp_path: Path) -> None:
    whole = run_of(tmp_path / "whole", METHODS[name]).begin()
    saved: dict[int, Path] = {}
    trained = whole.train(after_step=lambda step: saved.update({step: whole.save(step)}))
    expected = decisions(whole.ledger)
    for step in range(1, len(trained)):
        shutil.copytree(tmp_path / "whole", tmp_path / "again")
        again = run_of(tmp_path / "again", METHODS[name]).begin(tmp_path / "again" / f"checkpoint-{step}")
        assert again.train(step) == trained[step:]
        assert decisions(again.ledger) == expected
        assert mixtures(again) == mixtures(whole)
        if whole.training is not None and again.training is not None:
            assert again.training.state == whole.training.state
            assert again.training.state[0] == sum(map(len, trained)), "the weighers' state goes along"
        again.ledger.unlock()
        shutil.rmtree(tmp_path / "again")
    whole.ledger.unlock()


def mixtures(run: Run) -> list[Any]:
    return [line.get("mix") for _, line in sorted(run.ledger.segments().items())]


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].mixer is not None])
def test_every_segment_has_exactly_the_counts_of_its_proportions(name: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, METHODS[name]).begin()
    run.train()
    for _, line in sorted(run.ledger.segments().items()):
        rows_Q = run.ledger.rows_of(line)
        found = np.bincount(DOMAIN_N[rows_Q], minlength=3)
        assert [line["mix"]["counts"][f"d{d}"] for d in range(3)] == found.tolist()
        assert not set(rows_Q.tolist()) & set(WITHOUT_LABEL)
        if name in ("mix", "odm"):  # rows, and no domain is short of them
            proportions_D = np.array([line["mix"]["proportions"][f"d{d}"] for d in range(3)])
            assert found.tolist() == apportion(proportions_D, len(rows_Q)).tolist()
        assert abs(sum(line["mix"]["proportions"].values()) - 1) < 1e-12


def test_a_mixture_alone_trains_each_row_of_a_domain_once_before_any_comes_again(tmp_path: Path) -> None:
    run = run_of(tmp_path, METHODS["mix"]).begin()
    times = Counter(row for rows in run.train() for row in rows)
    for domain in range(3):
        rows = [row for row in np.flatnonzero(domain == DOMAIN_N) if row not in WITHOUT_LABEL]
        counts = {times[row] for row in rows}
        assert max(counts) - min(counts) <= 1


def test_mix_then_select_takes_the_best_rows_of_each_domain(tmp_path: Path) -> None:
    method = Method(
        name="length", selector=Length(reuse="always"), mixer=mixed(StaticMix(proportions=(0.5, 0.25, 0.25)))
    )
    run = run_of(tmp_path, method, schedule=Schedule(update_step=2, update_times=1), num_epochs=1).begin()
    run.train()
    rows_Q = run.ledger.rows_of(run.ledger.segments()[0])
    lengths_N = run.pool.info.num_label_tokens_N
    for domain, count in enumerate((4, 2, 2)):
        rows = np.flatnonzero(domain == DOMAIN_N)
        best = rows[np.lexsort((rows, -lengths_N[rows]))][:count]
        assert sorted(row for row in rows_Q if DOMAIN_N[row] == domain) == sorted(best.tolist())


def test_mixing_by_the_domains_own_share_of_equal_weights_leaves_a_mixture_alone(tmp_path: Path) -> None:
    """Equal omega is the mixture: which rows may come, how many of each domain."""
    alone = run_of(tmp_path / "a", Method(mixer=mixed(Temperature(temperature=2.0)))).begin()
    together = Method(name="loss", selector=Loss(focus_weight=1.0), mixer=mixed(Temperature(temperature=2.0)))
    both = run_of(tmp_path / "b", together).begin()
    alone.train(), both.train()
    assert [m["counts"] for m in mixtures(alone)] == [m["counts"] for m in mixtures(both)]


def test_a_selector_keeps_its_draws_when_an_order_or_an_interval_of_one_is_added(tmp_path: Path) -> None:
    plain = run_of(tmp_path / "a", Method(name="loss", selector=Loss())).begin()
    with_order = run_of(tmp_path / "b", Method(name="loss", selector=Loss(), orders=ordered(Sorting()))).begin()
    plain.train(), with_order.train()
    lengths_N = plain.pool.info.num_label_tokens_N
    for segment, line in plain.ledger.segments().items():
        rows_Q = plain.ledger.rows_of(line)
        arranged_Q = with_order.ledger.rows_of(with_order.ledger.segments()[segment])
        assert sorted(rows_Q) == sorted(arranged_Q)
        if line["update"] is not None:
            assert lengths_N[arranged_Q].tolist() == sorted(lengths_N[rows_Q].tolist())


def test_between_its_decisions_a_selector_measures_nothing_and_draws_from_what_it_said(tmp_path: Path) -> None:
    method = Method(name="loss", selector=Loss(focus_weight=1000.0), every=3)
    schedule = Schedule(update_step=1, update_times=6)
    run = run_of(tmp_path, method, schedule=schedule, num_epochs=1).begin()
    trained = run.train()
    assert run.measured == [0, 3]
    lines = [line for _, line in sorted(run.ledger.segments().items())]
    assert [line["decision"] for line in lines] == ["guided", "kept", "kept", "guided", "kept", "kept"]
    high_N = losses_at(0) > np.nanquantile(losses_at(0).astype(np.float64), 0.66)
    assert all(high_N[row] for rows in trained[:3] for row in rows), "weights of 1000 to 1 draw from the focus"
    assert len({tuple(rows) for rows in trained[:3]}) == 3, "fresh rows each time"


def test_a_kept_ranking_gives_rows_not_trained_since(tmp_path: Path) -> None:
    method = Method(name="length", selector=Length(), every=4)
    run = run_of(tmp_path, method, schedule=Schedule(update_step=2, update_times=4), num_epochs=1).begin()
    trained = [row for rows in run.train() for row in rows]
    assert len(set(trained)) == 32, "four decisions of eight rows, none twice"


def test_odm_is_given_the_losses_of_training_since_its_last_decision(tmp_path: Path) -> None:
    run = run_of(tmp_path, METHODS["odm"]).begin()
    trained = run.train()
    lines = [line for _, line in sorted(run.ledger.segments().items())]
    for before, line in itertools.pairwise(lines):
        if line["update"] is None:
            continue
        given = line["mix"]["signals"]["domain_loss"]
        for domain in range(3):
            seen = [
                float(losses_at(step)[row])
                for step in range(before["start"], before["stop"])
                for row in trained[step]
                if DOMAIN_N[row] == domain
            ]
            assert given[f"d{domain}"] == pytest.approx(np.mean(seen), rel=1e-12)
    told = [line for line in run.ledger.lines() if line["kind"] == "trained"]
    assert [line["segment"] for line in told] == [line["segment"] for line in lines[:-1]]
    run.curator.end(len(trained), None)
    assert run.ledger.lines()[-2]["kind"] == "trained"


def test_losses_seen_in_training_are_ranked_by_without_a_pass(tmp_path: Path) -> None:
    run = run_of(tmp_path, METHODS["order by the loss of training"]).begin()
    trained = run.train()
    assert run.measured == []
    line = run.ledger.segments()[1]
    seen_N = run.ledger.signals_of(line)["training_loss"]
    rows = sorted({row for rows in trained[:3] for row in rows})
    assert np.flatnonzero(np.isfinite(seen_N)).tolist() == rows
    last = {row: losses_at(step)[row] for step in range(3) for row in trained[step]}
    assert [seen_N[row] for row in rows] == [last[row] for row in rows]


def test_an_order_over_the_run_shows_every_row_once_and_begins_again(tmp_path: Path) -> None:
    method = Method(orders=ordered(Sorting(over="run")))
    run = run_of(tmp_path, method, schedule=Schedule(update_step=2, update_times=10), num_epochs=1).begin()
    trained = [row for rows in run.train() for row in rows]
    num_rows = NUM_ROWS - len(WITHOUT_LABEL)
    lengths = run.pool.info.num_label_tokens_N[trained]
    assert sorted(trained[:num_rows]) == [row for row in range(NUM_ROWS) if row not in WITHOUT_LABEL]
    assert lengths[:num_rows].tolist() == sorted(lengths[:num_rows].tolist())
    assert trained[num_rows:] == trained[: len(trained) - num_rows]


def test_a_domain_that_yields_its_share_is_said_and_the_rest_is_exact(tmp_path: Path) -> None:
    mixer = StaticMix(proportions=(0.0, 1.0, 0.5), exhausted="redistribute")
    run = run_of(tmp_path, Method(mixer=mixed(mixer)), schedule=Schedule(update_step=2, update_times=3), num_epochs=1)
    trained = run.begin().train()
    times = Counter(row for rows in trained for row in rows)
    assert max(times.values()) == 1
    assert any("gives its last" in said for said in run.said)
    longer = Schedule(update_step=2, update_times=5)
    run = run_of(tmp_path / "b", Method(mixer=mixed(mixer)), schedule=longer, num_epochs=1).begin()
    with pytest.raises(DataFlexError, match="domains with a share can still give"):
        run.train()


def test_the_order_of_the_pool_changes_only_which_number_a_row_has(tmp_path: Path) -> None:
    """Domains are sorted by name, so that none depends on which row comes first."""
    pool = PoolInfo(num_tokens_N=np.arange(5) + 1, num_label_tokens_N=np.arange(5) + 1)
    forth = domains_of("c", ["b", "a", "b", "c", "a"], pool)
    back = domains_of("c", ["a", "c", "b", "a", "b"], pool)
    assert forth.info.names == back.info.names == ("a", "b", "c")
    assert forth.domain_N.tolist() == [1, 0, 1, 2, 0]
    assert forth.info.num_rows_D.tolist() == back.info.num_rows_D.tolist() == [2, 2, 1]
    named = domains_of("c", ["b", "a", "b", "c", "a"], pool, ["c", "b", "a", "d"])
    assert named.info.names == ("c", "b", "a", "d")
    assert named.info.num_rows_D.tolist() == [1, 2, 2, 0]


def test_a_row_without_a_domain_is_an_error() -> None:
    pool = PoolInfo(num_tokens_N=np.ones(2, dtype=int), num_label_tokens_N=np.ones(2, dtype=int))
    with pytest.raises(ConfigError, match="row 1 has no task, so that its domain is unknown"):
        domains_of("task", ["a", None], pool)


class Bare(SelectorBase):
    """Neither weights nor a ranking."""

    def select(self, state, signals, quota, progress, rng):
        return Selection(rows_Q=np.arange(quota), decision="told"), state


def test_a_selector_without_a_ranking_cannot_be_mixed(tmp_path: Path) -> None:
    method = Method(name="bare", selector=Bare(), mixer=mixed(StaticMix()))
    run = run_of(tmp_path, method, schedule=Schedule(update_step=2)).begin()
    with pytest.raises(ConfigError, match="Bare gives neither weights nor a ranking"):
        run.train()


def test_what_cannot_be_combined_is_refused() -> None:
    with pytest.raises(ConfigError, match="replacement: true of random"):
        Method(name="random", selector=Random(replacement=True), mixer=mixed(StaticMix()))
    with pytest.raises(ConfigError, match="over: run"):
        Method(name="random", selector=Random(), orders=ordered(Sorting(over="run")))
    with pytest.raises(ConfigError, match="orders on every segment"):
        Method(orders=(Part(name="sorting", method=Sorting(), every=2),))


def test_the_quota_of_a_step_is_the_global_batch() -> None:
    assert (GEOMETRY.global_batch, SCHEDULE.update_step) == (4, 2), "the numbers above are for these"
    assert len(make_pool()) == len(DOMAIN_N)
