"""A scoring budget: what it promises, what it knows, and that nothing of it is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from curated_runs import Run, decisions, falling, make_pool
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sklearn")

from dataflex.algorithms.base import PoolInfo, Selection, SelectorBase
from dataflex.algorithms.combine import Part
from dataflex.algorithms.mix.static import StaticMix
from dataflex.algorithms.order.sorting import Sorting
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.loss import Loss
from dataflex.algorithms.select.random import Random
from dataflex.core.errors import ConfigError, DataFlexError, LedgerError
from dataflex.core.plan import Schedule
from dataflex.signals.estimate import spearman
from dataflex.train.budget_record import FEWEST_ROWS
from dataflex.train.method import Method
from dataflex.train.pool import Pool
from dataflex.train.score_budget import read_share, with_budget

POOL = make_pool(1500)
SCHEDULE = Schedule(warmup_step=20, update_step=20, update_times=8)
LOSSES = falling(POOL)


class KilledError(Exception):
    """The end of a process."""


def _killed_at(step: int) -> Any:
    def after(now: int) -> None:
        if now == step:
            raise KilledError

    return after


def method(selector: Any = None, share: float | None = 0.3) -> Method:
    selector = selector or DeltaLoss()
    return with_budget(
        Method(name="delta_loss" if isinstance(selector, DeltaLoss) else "loss", selector=selector), share
    )


def run(
    folder: Path, share: float | None = 0.3, selector: Any = None, method_: Method | None = None, **options: Any
) -> Run:
    options = {"losses": LOSSES, "schedule": SCHEDULE, "pool": POOL, "num_epochs": 1, **options}
    return Run(folder, method_ or method(selector, share), **options)


def lines_of(made: Run) -> list[dict[str, Any]]:
    return [line for _, line in sorted(made.ledger.segments().items())]


def spent_and_trained(made: Run) -> tuple[float, float]:
    """FLOPs of scoring and of training, counted from the rows themselves."""
    tokens_N = made.pool.info.num_tokens_N
    scored = sum(float(tokens_N[rows].sum()) for rows in made.asked)
    trained = sum(float(tokens_N[made.ledger.rows_of(line)].sum()) for line in lines_of(made))
    return scored, 3 * trained


# the promise


@given(
    share=st.sampled_from([0.05, 0.1, 0.3, 1.0, 2.5, 6.0]),
    warmup=st.sampled_from([0, 10, 25]),
    updates=st.integers(1, 6),
    epochs=st.sampled_from([1, 2, 2.5]),
    selector=st.sampled_from([DeltaLoss(), DeltaLoss(window_size=0.5, replacement=True), Loss(), Loss(focus="low")]),
    cached=st.booleans(),
)
@settings(max_examples=10, deadline=None)
def test_a_budget_is_never_exceeded(tmp_path_factory, share, warmup, updates, epochs, selector, cached):
    pool = make_pool(400)
    made = run(
        tmp_path_factory.mktemp("run"),
        share,
        selector,
        schedule=Schedule(warmup_step=warmup, update_step=15, update_times=updates),
        num_epochs=epochs,
        pool=pool,
        losses=falling(pool),
        cached_N=falling(pool)(0) if cached else None,
    ).begin()
    made.train()
    scored, trained = spent_and_trained(made)
    assert scored <= share * trained


@pytest.mark.parametrize("share", [0.1, 1.0, 6.0])
def test_short_rows_do_not_break_the_promise(tmp_path: Path, share) -> None:
    """A method that likes short rows trains far less than the pool's mean lets expect."""
    tokens_N = np.where(np.arange(400) % 5 == 0, 5, 200)
    pool = Pool(info=PoolInfo(num_tokens_N=tokens_N, num_label_tokens_N=tokens_N), digest="d")
    losses_N = np.where(tokens_N == 5, 1.0, 9.0)
    made = run(
        tmp_path,
        share,
        Loss(focus="low", focus_weight=1e4, quantiles=(0.2, 0.6)),
        schedule=Schedule(update_step=15, update_times=5),
        pool=pool,
        losses=lambda step: (losses_N + 0.01 * np.arange(400) / 400).astype(np.float32),
    ).begin()
    made.train()
    scored, trained = spent_and_trained(made)
    assert trained < 0.3 * 3 * 300 * tokens_N.mean()
    assert 0 < scored <= share * trained


def test_what_is_on_record_is_what_was_spent(tmp_path: Path) -> None:
    made = run(tmp_path).begin()
    made.train()
    scored, trained = spent_and_trained(made)
    last = [line["scoring"]["budget"] for line in lines_of(made) if line["scoring"]][-1]
    assert last["spent_flops"] == pytest.approx(2 * 1000 * scored)
    assert 0.2 * trained < scored <= 0.3 * trained
    assert "scored" in made.ledger.signals_of(lines_of(made)[-1])


def test_two_cycles_share_their_budget(tmp_path: Path) -> None:
    """What a cycle leaves over goes to the next, never the other way."""
    made = run(tmp_path, num_epochs=2).begin()
    made.train()
    first = [line for line in lines_of(made) if line["cycle"] == 0]
    stop = max(line["start"] for line in first)
    asked = [rows for step, rows in zip(made.measured, made.asked, strict=True) if step <= stop]
    tokens_N = made.pool.info.num_tokens_N
    scored = sum(float(tokens_N[rows].sum()) for rows in asked)
    trained = sum(float(tokens_N[made.ledger.rows_of(line)].sum()) for line in first)
    assert scored <= 0.3 * 3 * trained


def test_a_budget_for_everything_is_the_exact_method(tmp_path: Path) -> None:
    exact = Run(
        tmp_path / "exact",
        Method(name="delta_loss", selector=DeltaLoss(baseline="run_start")),
        losses=LOSSES,
        schedule=SCHEDULE,
        pool=POOL,
        num_epochs=1,
    ).begin()
    rows = exact.train()
    everything = run(tmp_path / "budget", 100.0).begin()
    assert everything.train() == rows
    for one, other in zip(lines_of(exact), lines_of(everything), strict=True):
        assert one["decision"] == other["decision"]
        if other["scoring"]:
            columns_N = everything.ledger.signals_of(other)
            np.testing.assert_array_equal(columns_N["scored"], POOL.info.trainable_N)
            np.testing.assert_array_equal(columns_N["loss"], exact.ledger.signals_of(one)["loss"])


# the estimates


@pytest.mark.parametrize(("cached", "least"), [(False, 0.75), (True, 0.9)])
def test_estimates_rank_as_measured_losses_do(tmp_path: Path, cached, least) -> None:
    made = run(tmp_path, cached_N=LOSSES(0) if cached else None).begin()
    made.train()
    for line in lines_of(made)[3:]:
        columns_N, record = made.ledger.signals_of(line), line["scoring"]["budget"]
        true_N = LOSSES(0) - LOSSES(line["start"])
        known_N = POOL.info.trainable_N
        measured = spearman(true_N[known_N], columns_N["delta"][known_N])
        assert measured > least
        assert abs(record["rank_correlation"] - measured) < 0.15
        np.testing.assert_allclose(columns_N["loss"][columns_N["scored"]], LOSSES(line["start"])[columns_N["scored"]])
        improved = float((true_N[known_N] >= 0).mean())
        assert abs(record["improved_share"] - improved) < 0.15
        assert line["notes"]["num_improved"] == round(record["improved_share"] * line["notes"]["num_scored"])
        assert 0 < record["window_overlap"] <= 1
        assert 0 < record["window_hit"] <= 1


def test_expected_hits_are_those_against_exact_losses(tmp_path: Path) -> None:
    made = run(tmp_path, 0.6).begin()
    made.train()
    told, found = [], []
    for line in lines_of(made)[3:]:
        columns_N = made.ledger.signals_of(line)
        delta_N = np.where(POOL.info.trainable_N, LOSSES(0) - LOSSES(line["start"]), -np.inf)
        rank_N = np.argsort(np.argsort(-delta_N, kind="stable"))
        window = line["window"]
        exact_N = (rank_N >= window["start"]) & (rank_N < window["end"])
        found.append(exact_N[made.ledger.rows_of(line)].mean())
        told.append(line["scoring"]["budget"]["window_hit"])
        assert columns_N["in_window"].sum() == window["end"] - window["start"]
    assert abs(np.mean(told) - np.mean(found)) < 0.12


def test_loss_is_estimated_as_well(tmp_path: Path) -> None:
    made = run(tmp_path, selector=Loss(focus="high")).begin()
    made.train()
    for line in lines_of(made)[2:]:
        columns_N = made.ledger.signals_of(line)
        known_N = POOL.info.trainable_N
        assert spearman(LOSSES(line["start"])[known_N], columns_N["loss"][known_N].astype(float)) > 0.5


def test_noise_is_not_followed(tmp_path: Path) -> None:
    """Falls that nothing tells are drawn from uniformly, and the log says why."""
    noise = np.random.default_rng(3).normal(size=len(POOL))
    made = run(
        tmp_path, losses=lambda step: np.where(POOL.info.trainable_N, 3 - step / 100 * noise, np.nan).astype(np.float32)
    )
    made.begin().train()
    guided = [line for line in lines_of(made) if line["scoring"] and line["start"] > 0]
    assert guided
    assert all(line["decision"] == "uniform" for line in guided)
    assert any("rank rows that were left out with" in said and "uniform" in said for said in made.said)


@pytest.mark.parametrize("share", [0.0, 0.003])
def test_too_small_a_budget_rests_on_what_training_shows(tmp_path: Path, share) -> None:
    made = run(tmp_path, share).begin()
    made.train()
    assert made.asked == []
    estimators = [line["scoring"]["budget"]["estimator"] for line in lines_of(made) if line["scoring"]]
    assert estimators[0] == "none yet"
    assert set(estimators[3:]) == {"free levels"}
    last = made.ledger.signals_of(lines_of(made)[-1])
    known_N = POOL.info.trainable_N
    assert spearman((LOSSES(0) - LOSSES(180))[known_N], last["delta"][known_N]) > 0.6


def test_a_panel_is_worth_the_name_or_waited_for(tmp_path: Path) -> None:
    made = run(tmp_path, 0.02).begin()
    made.train()
    assert len(made.asked) > 1
    assert all(len(rows) >= FEWEST_ROWS for rows in made.asked)
    assert len(made.asked) < sum(line["scoring"] is not None for line in lines_of(made))


def test_initial_losses_are_measured_where_the_budget_affords_it(tmp_path: Path) -> None:
    made = run(tmp_path, 2.0).begin()
    made.train()
    assert len(made.asked[0]) == POOL.info.trainable_N.sum()
    assert lines_of(made)[0]["scoring"]["budget"]["why"] == "initial pass"


def test_cached_initial_losses_cost_nothing(tmp_path: Path) -> None:
    made = run(tmp_path, cached_N=LOSSES(0)).begin()
    made.train()
    first = lines_of(made)[0]["scoring"]
    assert first["source"] == "cache"
    assert first["budget"]["why"] == "cached initial losses"
    assert made.measured[0] > 0


def test_rows_without_a_finite_loss_are_not_drawn(tmp_path: Path) -> None:
    def losses(step: int) -> np.ndarray:
        return np.where(np.arange(len(POOL)) == 30, np.inf, LOSSES(step)).astype(np.float32)

    made = run(tmp_path, cached_N=np.where(np.arange(len(POOL)) == 30, np.nan, LOSSES(0)), losses=losses).begin()
    made.train()
    for line in lines_of(made)[2:]:
        assert 30 not in made.ledger.rows_of(line)


# nothing lost


@pytest.mark.parametrize(
    ("selector", "cached", "step"),
    [
        (DeltaLoss(), False, 15),
        (DeltaLoss(), False, 20),
        (DeltaLoss(), False, 100),
        (DeltaLoss(), True, 55),
        (Loss(), False, 40),
        (Loss(), True, 20),
    ],
)
def test_a_resumed_run_decides_the_same(tmp_path: Path, selector, cached, step) -> None:
    options = {"selector": selector, "cached_N": LOSSES(0) if cached else None}
    whole = run(tmp_path / "whole", **options).begin()
    trained = whole.train()
    first = run(tmp_path / "cut", **options).begin()
    saved: list[Path] = []

    def after(now: int) -> None:
        if now == step:
            saved.append(first.save(now))
        if now == step + 6:  # beyond a decision, whose line is on record
            raise KilledError

    with pytest.raises(KilledError):
        first.train(after_step=after)
    first.ledger.unlock()
    again = run(tmp_path / "cut", **options).begin(saved[0])
    assert again.train(step) == trained[step:]
    assert decisions(again.ledger) == decisions(whole.ledger)
    for one, other in zip(lines_of(whole), lines_of(again), strict=True):
        budgets = [dict((line["scoring"] or {}).get("budget", {})) for line in (one, other)]
        for budget in budgets:
            budget.pop("estimating_seconds", None)
        assert budgets[0] == budgets[1]


def test_a_line_on_record_is_taken_over_with_all_it_says(tmp_path: Path) -> None:
    """Killed after a decision: the panel is not measured again, and later ones are equal."""
    whole = run(tmp_path / "whole").begin()
    trained = whole.train()
    first = run(tmp_path / "cut").begin()

    saved: list[Path] = []

    def after(now: int) -> None:
        if now == 60:
            saved.append(first.save(now))
        if now == 61:
            raise KilledError

    with pytest.raises(KilledError):
        first.train(after_step=after)
    first.ledger.unlock()
    again = run(tmp_path / "cut").begin(saved[0])
    assert again.train(60) == trained[60:]
    assert 60 not in again.measured


def test_a_kill_in_a_panel_changes_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole").begin()
    trained = whole.train()
    first = run(tmp_path / "cut").begin()
    saved: list[Path] = []
    measure = first.curator._measure

    def killed_at_60(name: str, progress: Any, rows: Any) -> Any:
        if progress.step == 60:
            raise KilledError
        return measure(name, progress, rows)

    first.curator._measure = killed_at_60
    with pytest.raises(KilledError):
        first.train(after_step=lambda now: saved.append(first.save(now)) if now == 60 else None)
    first.ledger.unlock()
    again = run(tmp_path / "cut").begin(saved[0])
    assert again.train(60) == trained[60:]
    assert decisions(again.ledger) == decisions(whole.ledger)


# settings


@pytest.mark.parametrize(("value", "share"), [("full", None), (None, None), (0.1, 0.1), (2, 2.0), (0, 0.0)])
def test_shares(value, share):
    assert read_share(value) == share


@pytest.mark.parametrize("value", [-0.1, True, "0.1", "half", float("nan"), 101, [0.1]])
def test_what_is_no_share(value):
    with pytest.raises(ConfigError, match="it must be full, or the share"):
        read_share(value)


def test_a_budget_without_losses_to_limit_is_refused():
    with pytest.raises(ConfigError, match="measures no losses of the pool"):
        with_budget(Method(name="random", selector=Random()), 0.1)


def test_a_budget_takes_the_losses_of_the_start():
    assert method(DeltaLoss(), 0.1).selector == DeltaLoss(baseline="run_start")
    assert method(DeltaLoss(), None).selector == DeltaLoss()
    assert replace(method(Loss(), 0.1), score_budget=None) == Method(name="loss", selector=Loss())


@dataclass(frozen=True, kw_only=True)
class Half(SelectorBase):
    """Draws the highest losses of every second row, and asks for those alone."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})
    limits_passes: ClassVar[bool] = True

    def candidates(self, state, signals, quota, progress, rng):
        return np.arange(0, len(state["trainable_N"]), 2), state

    def select(self, state, signals, quota, progress, rng):
        losses_N = np.where(np.isfinite(signals["loss"]), signals["loss"], -np.inf)
        return Selection(rows_Q=np.argsort(-losses_N, kind="stable")[:quota], decision="guided"), state


def test_a_method_that_limits_its_passes_is_not_asked_for_other_rows(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", selector=Half()).begin()
    trained = whole.train()
    assert whole.asked
    assert all((rows % 2 == 0).all() for rows in whole.asked)
    assert all(row % 2 == 0 for rows in trained[SCHEDULE.warmup_step :] for row in rows)
    line = lines_of(whole)[-1]
    columns_N = whole.ledger.signals_of(line)
    assert np.isfinite(columns_N["loss"][columns_N["scored"]]).all()
    assert np.isnan(columns_N["loss"][1::2]).all()
    scored, flops = spent_and_trained(whole)
    assert scored <= 0.3 * flops


def test_a_line_of_step_0_is_kept_though_a_cache_has_come_since(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole").begin()
    trained = whole.train()
    first = run(tmp_path / "cut").begin()
    with pytest.raises(KilledError):
        first.train(after_step=_killed_at(3))
    first.ledger.unlock()
    again = run(tmp_path / "cut", cached_N=LOSSES(0)).begin()
    assert again.train() == trained
    assert decisions(again.ledger) == decisions(whole.ledger)


# combinations, and what a reading found


def test_a_mixer_that_repeats_short_rows_does_not_break_the_promise(tmp_path: Path) -> None:
    domain_N = np.arange(400) % 8 // 7  # an eighth of the rows, which are short, make half of each segment
    tokens_N = np.where(domain_N == 1, 4, 150)
    pool = Pool(info=PoolInfo(num_tokens_N=tokens_N, num_label_tokens_N=tokens_N), digest="d")
    mixed = replace(method(share=1.5), mixer=Part(name="static", method=StaticMix(proportions=(0.05, 0.95))))
    schedule = Schedule(warmup_step=15, update_step=15, update_times=4)
    made = run(tmp_path, method_=mixed, pool=pool, losses=falling(pool), schedule=schedule, domain_N=domain_N).begin()
    made.train()
    scored, trained = spent_and_trained(made)
    assert 0 < scored <= 1.5 * trained


def test_a_budget_of_twenty_rows_scores_rows_twice(tmp_path: Path) -> None:
    pool = Pool(info=PoolInfo(num_tokens_N=np.full(400, 10), num_label_tokens_N=np.full(400, 10)), digest="d")
    schedule = Schedule(update_step=20, update_times=5)  # 400 rows trained; a forward is a third of that
    made = run(tmp_path, 20 / 1200, pool=pool, losses=falling(pool), schedule=schedule).begin()
    made.train()
    assert [len(rows) for rows in made.asked] == [10, 10]
    assert set(made.asked[1]) == set(made.asked[0])


def test_an_order_by_losses_that_nobody_knows_is_random_and_says_so(tmp_path: Path) -> None:
    ordered = Method(orders=(Part(name="sorting", method=Sorting(by="loss", over="run")),))
    pool = make_pool(60)
    schedule = Schedule(update_step=5, update_times=3)
    made = run(tmp_path, method_=with_budget(ordered, 0.0), pool=pool, losses=falling(pool), schedule=schedule).begin()
    made.train()
    assert any("samples stand in a random order" in said for said in made.said)
    first = made.ledger.rows_of(lines_of(made)[0]).tolist()
    assert first != sorted(first)


def test_a_kill_after_the_initial_pass_and_before_its_line_changes_nothing(tmp_path: Path) -> None:
    """The pass is in the cache by then, and was paid for."""
    whole = run(tmp_path / "whole", 2.0).begin()
    trained = whole.train()
    first = run(tmp_path / "cut", 2.0).begin()

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise KilledError

    first.ledger.append = killed
    with pytest.raises(KilledError):
        first.train()
    first.ledger.unlock()
    again = run(tmp_path / "cut", 2.0, cached_N=LOSSES(0)).begin()
    assert again.train() == trained
    told = [line["scoring"]["budget"]["spent_flops"] for line in lines_of(again) if line["scoring"]]
    assert told == [line["scoring"]["budget"]["spent_flops"] for line in lines_of(whole) if line["scoring"]]


def test_a_run_that_began_with_the_cache_needs_it_to_begin_again(tmp_path: Path) -> None:
    first = run(tmp_path, cached_N=LOSSES(0)).begin()
    with pytest.raises(KilledError):
        first.train(after_step=_killed_at(3))
    first.ledger.unlock()
    with pytest.raises(LedgerError, match="which are not there any more"):
        run(tmp_path).begin().train()


def test_a_pool_without_labels_is_one_sentence(tmp_path: Path) -> None:
    nothing = Pool(info=PoolInfo(num_tokens_N=np.full(9, 5), num_label_tokens_N=np.zeros(9, int)), digest="d")
    with pytest.raises(DataFlexError, match="no row can be trained"):
        run(tmp_path, pool=nothing, losses=falling(nothing))
