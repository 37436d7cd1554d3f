"""Decisions, their record, and a resume from every step of a run."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curated_runs import FINGERPRINT, GEOMETRY, NUM_ROWS, WITHOUT_LABEL, Run, decisions, losses_at, make_pool

from dataflex.algorithms.base import Selection, SelectorBase
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.loss import Loss
from dataflex.algorithms.select.random import Random
from dataflex.algorithms.select.static import Static
from dataflex.core.errors import ConfigError, DataFlexError, LedgerError
from dataflex.core.plan import Schedule
from dataflex.ledger.audit import audit
from dataflex.ledger.ledger import Ledger
from dataflex.train.checkpoint import STATE_FILE

METHODS = {
    "delta_loss": DeltaLoss(),
    "delta_loss from the start": DeltaLoss(baseline="run_start"),
    "loss": Loss(),
    "random": Random(),
    "static": Static(),
}


@dataclass(frozen=True, kw_only=True)
class Rows(SelectorBase):
    """Returns what it is told to."""

    make: Any = None

    def select(self, state, signals, quota, progress, rng):
        return Selection(rows_Q=self.make(quota), decision="told", ordered=True), state


def test_quotas_and_segments_are_those_of_the_plan(tmp_path: Path) -> None:
    run = Run(tmp_path, DeltaLoss()).begin()
    trained = run.train()
    assert len(trained) == 14
    assert {len(rows) for rows in trained} == {GEOMETRY.global_batch}
    lines = [line for _, line in sorted(run.ledger.segments().items())]
    assert [(line["start"], line["stop"], line["decision"]) for line in lines] == [
        (0, 3, "warm-up"),
        (3, 5, "first"),
        (5, 7, "guided"),
        (7, 10, "warm-up"),
        (10, 12, "guided"),
        (12, 14, "guided"),
    ]
    assert [line["num_rows"] for line in lines] == [12, 8, 8, 12, 8, 8]
    assert run.measured == [3, 5, 10, 12]
    assert run.curator.num_decisions == 6
    assert len(run.logged) == 6
    assert len(run.said) >= 6


def test_what_is_trained_is_what_is_recorded(tmp_path: Path) -> None:
    run = Run(tmp_path, DeltaLoss()).begin()
    trained = [row for rows in run.train() for row in rows]
    recorded = [row for _, line in sorted(run.ledger.segments().items()) for row in run.ledger.rows_of(line).tolist()]
    assert trained == recorded


def test_a_segment_is_on_the_disk_before_its_first_row_is_dealt(tmp_path: Path) -> None:
    run = Run(tmp_path, Random()).begin()
    rest = run.curator.rest_of_epoch(0)
    assert run.ledger.lines() == [], "nothing is decided before it is asked for"
    for number in range(3):
        next(rest)
        assert sorted(run.ledger.segments()) == list(range(number + 1))


def test_signals_count_what_was_trained_before_the_decision(tmp_path: Path) -> None:
    run = Run(tmp_path, DeltaLoss()).begin()
    trained = run.train()
    for line in run.ledger.segments().values():
        columns = run.ledger.signals_of(line)
        if columns:
            before = Counter(row for rows in trained[: line["start"]] for row in rows)
            assert columns["times_trained"].tolist() == [before[row] for row in range(NUM_ROWS)]
            assert columns["row"].tolist() == list(range(NUM_ROWS))
            np.testing.assert_array_equal(columns["loss"], losses_at(line["start"]))


def test_warm_up_draws_are_without_replacement_and_differ_between_cycles(tmp_path: Path) -> None:
    run = Run(tmp_path, DeltaLoss(), num_epochs=3).begin()
    run.train()
    draws = [run.ledger.rows_of(run.ledger.segments()[k]).tolist() for k in (0, 3, 6)]
    for rows in draws:
        assert len(set(rows)) == 12
        assert not set(rows) & set(WITHOUT_LABEL)
    assert len({tuple(rows) for rows in draws}) == 3
    assert len({frozenset(rows) for rows in draws}) == 3


def test_a_warm_up_longer_than_the_pool_takes_each_row_once_before_any_comes_again(tmp_path: Path) -> None:
    schedule = Schedule(warmup_step=25, update_step=2, update_times=1)  # 100 samples of 38 rows
    run = Run(tmp_path, Random(), schedule=schedule, num_epochs=1).begin()
    rows = run.train()[:25]
    flat = [row for step in rows for row in step]
    assert len(set(flat[:38])) == len(set(flat[38:76])) == 38
    assert max(Counter(flat).values()) == 3
    assert flat[:38] != flat[38:76]


def test_another_seed_is_another_draw_and_the_same_seed_the_same(tmp_path: Path) -> None:
    one, same, other = (Run(tmp_path / name, DeltaLoss(), seed=s).begin() for name, s in [("a", 7), ("b", 7), ("c", 8)])
    assert one.train() == same.train() != other.train()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["delta_loss", "loss"])
def test_a_row_whose_loss_is_not_finite_is_never_drawn_afterwards(tmp_path: Path, name: str, value: float) -> None:
    bad = list(range(0, 30, 2))

    def losses(step: int) -> np.ndarray:
        losses_N = losses_at(step)
        losses_N[bad] = value
        return losses_N

    run = Run(tmp_path, METHODS[name], losses=losses, num_epochs=4).begin()
    trained = run.train()
    assert {row for rows in trained[:3] for row in rows} & set(bad), "the first warm-up could not know"
    assert not {row for rows in trained[3:] for row in rows} & set(bad), "the later warm-ups can"
    assert run.ledger.segments()[3]["decision"] == "warm-up"


@pytest.mark.parametrize("name", METHODS)
def test_rows_without_a_label_are_drawn_by_the_hosts_order_only(tmp_path: Path, name: str) -> None:
    run = Run(tmp_path, METHODS[name], num_epochs=3).begin()
    drawn = {row for rows in run.train() for row in rows}
    assert bool(drawn & set(WITHOUT_LABEL)) == (name == "static")


def test_the_hosts_order_is_trained_as_it_is_over_two_epochs(tmp_path: Path) -> None:
    pool = make_pool(37)  # the last step of an epoch has one row
    run = Run(tmp_path, Static(), pool=pool, schedule=Schedule(update_step=3)).begin()
    trained = run.train()
    wanted = [row for epoch in range(2) for row in np.random.default_rng(epoch).permutation(37).tolist()]
    assert [row for rows in trained for row in rows] == wanted
    assert [len(rows) for rows in trained] == ([4] * 9 + [1]) * 2
    assert {line["decision"] for line in run.ledger.segments().values()} == {"host order"}


# methods of other packages


@pytest.mark.parametrize(
    "make",
    [
        lambda quota: np.arange(quota - 1),
        lambda quota: np.arange(quota + 1),
        lambda quota: np.arange(0),
        lambda quota: np.arange(quota, dtype=np.float64),
        lambda quota: np.full(quota, np.nan),
        lambda quota: np.ones(quota, dtype=bool),
        lambda quota: np.array(["1"] * quota),
        lambda quota: np.full(quota, NUM_ROWS),
        lambda quota: np.full(quota, -1),
        lambda quota: np.arange(quota).reshape(-1, 1),
    ],
)
def test_a_method_that_returns_nonsense_is_refused_before_anything_is_recorded(tmp_path: Path, make: Any) -> None:
    run = Run(tmp_path, Rows(make=make), schedule=Schedule(update_step=2)).begin()
    with pytest.raises(DataFlexError, match="method Rows returned") as caught:
        run.train()
    assert "\n" not in str(caught.value)
    assert run.ledger.lines() == []
    assert not list((run.ledger.root / "segments").iterdir())


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.uint64])
def test_row_numbers_of_any_integer_type_are_trained_and_read_back(tmp_path: Path, dtype: type) -> None:
    run = Run(
        tmp_path, Rows(make=lambda quota: np.arange(quota, dtype=dtype)), schedule=Schedule(update_step=2)
    ).begin()
    assert run.train()[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert run.ledger.rows_of(run.ledger.segments()[0]).tolist() == list(range(8))


# resuming


@pytest.mark.parametrize("ledger_of", ["the end of the run", "the checkpoint"])
@pytest.mark.parametrize("name", METHODS)
def test_resuming_from_any_step_decides_what_the_uninterrupted_run_decides(
    tmp_path: Path, name: str, ledger_of: str
) -> None:
    full = Run(tmp_path / "full", METHODS[name]).begin()

    def keep(step: int) -> None:
        full.save(step)
        shutil.copytree(full.ledger.root, tmp_path / f"ledger-{step}")

    trained = full.train(after_step=keep)
    wanted = decisions(full.ledger)
    for step in range(1, full.plan.num_steps + 1):
        output_dir = tmp_path / f"resumed-{step}"
        source = full.ledger.root if ledger_of == "the end of the run" else tmp_path / f"ledger-{step}"
        shutil.copytree(source, output_dir / "dataflex")
        resumed = Run(output_dir, METHODS[name]).begin(full.output_dir / f"checkpoint-{step}")
        assert resumed.train(step) == trained[step:], f"from step {step}"
        assert decisions(resumed.ledger) == wanted, f"from step {step}"
        full_state, state = full.curator, resumed.curator
        assert state._times_trained_N.tolist() == full_state._times_trained_N.tolist()
        assert state._scorable_N.tolist() == full_state._scorable_N.tolist()
        assert state._state.keys() == full_state._state.keys()
        for key, values in full_state._state.items():
            np.testing.assert_array_equal(state._state[key], values)


def test_a_decision_recorded_for_the_same_weights_is_not_measured_again(tmp_path: Path) -> None:
    full = Run(tmp_path, DeltaLoss()).begin()
    trained = full.train(after_step=full.save)
    num_lines = len(full.ledger.lines())
    resumed = Run(tmp_path, DeltaLoss()).begin(tmp_path / "checkpoint-5")
    resumed.checked_at = 5
    next(resumed.curator.rest_of_epoch(5))
    assert resumed.measured == []
    assert any("as recorded before the interruption" in sentence for sentence in resumed.said)
    kinds = [line["kind"] for line in resumed.ledger.lines()[num_lines:]]
    assert kinds == ["rollback", "resume"], "later segments are cancelled, this one stays"
    assert trained


def test_other_weights_than_a_recorded_decision_was_made_from_stop_the_run(tmp_path: Path) -> None:
    full = Run(tmp_path, DeltaLoss()).begin()
    full.train(after_step=full.save)

    def base_model_changed(step: int) -> np.ndarray:
        losses_N = losses_at(step)
        losses_N[::2] += 1e-3
        return losses_N

    resumed = Run(tmp_path, DeltaLoss(), losses=base_model_changed, versions={"numpy": "2"})
    resumed.begin(tmp_path / "checkpoint-5").checked_at = 5
    with pytest.raises(LedgerError, match=r"segment 2 was decided on .* row \d+ has .*numpy \(1 then, 2 now\)"):
        next(resumed.curator.rest_of_epoch(5))


@pytest.mark.parametrize("method", [DeltaLoss(), Loss(focus="high")], ids=["delta_loss", "loss"])
@pytest.mark.parametrize(("noise", "wins"), [(1e-6, True), (1e-2, False)])
def test_a_recorded_choice_is_made_again_unless_training_gave_other_losses(
    tmp_path: Path, noise: float, wins: bool, method: Any
) -> None:
    """From step 4 on the losses come out a little differently, as another order of summation makes them."""
    full = Run(tmp_path, method).begin()
    full.train(after_step=full.save)
    wanted = decisions(full.ledger)
    rng = np.random.default_rng(1)

    def noisy(step: int) -> np.ndarray:
        losses_N = losses_at(step)
        return (losses_N * (1 + noise * rng.standard_normal(len(losses_N)))).astype(np.float32)

    killed = Run(tmp_path, method, losses=noisy).begin(tmp_path / "checkpoint-4")
    next(killed.curator.rest_of_epoch(4))  # and again before it decides: what was rolled back is not forgotten
    resumed = Run(tmp_path, method, losses=noisy).begin(tmp_path / "checkpoint-4")
    resumed.train(4)
    measured = [line for line in resumed.ledger.segments().values() if line["start"] > 4 and line["scoring"]]
    # On other rows the run has other weights, whose losses may be near the old ones by chance.
    assert ["decided_by" in line["scoring"] for line in measured] == [wins] * len(measured)
    assert (decisions(resumed.ledger) == wanted) == wins
    assert any("is decided anew" in sentence for sentence in resumed.said) != wins
    anew = [line for line in resumed.ledger.segments().values() if any("decided anew" in w for w in line["warnings"])]
    assert bool(anew) != wins, "the record says so too"
    assert arrays_missed(resumed.ledger) == []
    aside = sorted(resumed.ledger.root.glob("*/*.rolled-back-*.parquet"))
    assert bool(aside) != wins, "what was recorded before stays, also where it was decided anew"
    for path in aside:
        path.unlink()
    assert len(arrays_missed(resumed.ledger)) == len(aside)


def arrays_missed(ledger: Ledger) -> list[str]:
    """What an audit says of arrays that are not there, or that nobody recorded."""
    said = [finding.sentence for finding in audit(ledger).findings]
    return [sentence for sentence in said if "are lost" in sentence or "no line records" in sentence]


def test_a_method_that_decides_otherwise_now_is_found_out(tmp_path: Path) -> None:
    full = Run(tmp_path, Random()).begin()
    full.train(after_step=full.save)
    changed = Run(tmp_path, Rows(make=lambda quota: np.arange(quota))).begin(tmp_path / "checkpoint-5")
    with pytest.raises(LedgerError, match="segment 2 was recorded with other rows"):
        next(changed.curator.rest_of_epoch(5))


def test_another_run_is_refused_with_the_key_that_differs(tmp_path: Path) -> None:
    run = Run(tmp_path, Random()).begin()
    run.train(after_step=run.save)
    before = run.ledger.path.read_bytes()
    other = Run(tmp_path, Random())
    with pytest.raises(ConfigError, match=r"learning_rate \(0\.0001 then, 0\.0002 now\)") as caught:
        other.begin(tmp_path / "checkpoint-5", fingerprint={**FINGERPRINT, "learning_rate": 2e-4})
    assert "data" not in str(caught.value).split("then")[0]
    assert run.ledger.path.read_bytes() == before, "a refused run writes nothing"


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_damaged_state_file_is_a_sentence(tmp_path: Path, kept: int) -> None:
    run = Run(tmp_path, DeltaLoss()).begin()
    run.train(after_step=run.save)
    path = tmp_path / "checkpoint-5" / STATE_FILE
    path.write_bytes(path.read_bytes()[:kept])
    before = run.ledger.path.read_bytes()
    with pytest.raises(ConfigError, match="is damaged"):
        Run(tmp_path, DeltaLoss()).begin(tmp_path / "checkpoint-5")
    assert run.ledger.path.read_bytes() == before


@pytest.mark.parametrize("lost", ["metadata", "fingerprint", "step", "seconds", "times_trained_N", "scorable_N"])
def test_a_state_file_without_one_of_its_parts_is_damaged(tmp_path: Path, lost: str) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    run = Run(tmp_path, DeltaLoss()).begin()
    run.train(after_step=run.save)
    path = tmp_path / "checkpoint-5" / STATE_FILE
    with safe_open(path, framework="numpy") as file:
        meta = json.loads(file.metadata()["dataflex"])
    assert lost in (*meta, "metadata", "times_trained_N", "scorable_N")
    arrays = {name: values for name, values in load_file(path).items() if name != lost}
    meta = {key: value for key, value in meta.items() if key != lost}
    save_file(arrays, path, metadata=None if lost == "metadata" else {"dataflex": json.dumps(meta)})
    with pytest.raises(ConfigError):
        Run(tmp_path, DeltaLoss()).begin(tmp_path / "checkpoint-5")


def test_a_checkpoint_of_somebody_else_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ConfigError, match=f"holds no {STATE_FILE}"):
        Run(tmp_path, Random()).begin(tmp_path / "checkpoint-3")
    assert not (tmp_path / "dataflex").exists()


@pytest.mark.parametrize("step", [4, 5])
def test_a_checkpoint_whose_ledger_is_lost(tmp_path: Path, step: int) -> None:
    """Step 4 lies in the middle of a segment, step 5 at a boundary."""
    run = Run(tmp_path, Random()).begin()
    run.train(after_step=run.save)
    shutil.rmtree(run.ledger.root)
    with pytest.raises(DataFlexError, match="ledger"):
        Run(tmp_path, Random()).begin(tmp_path / f"checkpoint-{step}").train(step)


def test_starting_again_without_a_checkpoint_rolls_the_old_lines_back(tmp_path: Path) -> None:
    first = Run(tmp_path, Random()).begin()
    trained = first.train()
    again = Run(tmp_path, Random()).begin()
    assert list(again.ledger.segments()) == [0], "decided from the very weights that the run begins with"
    assert again.train() == trained
    kinds = [line["kind"] for line in again.ledger.lines()]
    assert kinds == ["segment"] * 6 + ["rollback", "resume"] + ["segment"] * 5


def test_starting_again_keeps_what_the_run_has_found_out(tmp_path: Path) -> None:
    first = Run(tmp_path, Random()).begin(base_weights="b" * 64)
    first.ledger.update_run({"score_batch_tokens": 777})
    again = Run(tmp_path, Random()).begin(base_weights=None)  # it cannot be told now
    assert again.ledger.run()["score_batch_tokens"] == 777
    assert again.ledger.run()["base_weights"] == "b" * 64
    with pytest.raises(ConfigError, match=r"the frozen weights .* \(hash bbbbbbbbbbbb then, cccccccccccc now\)"):
        Run(tmp_path, Random()).begin(base_weights="c" * 64)


def test_the_time_that_a_run_took_goes_on_after_a_resume(tmp_path: Path) -> None:
    full = Run(tmp_path, DeltaLoss()).begin()
    full.curator._seconds = {"choosing": 100.0, "running": 300.0}
    full.train(after_step=full.save)
    resumed = Run(tmp_path, DeltaLoss()).begin(tmp_path / "checkpoint-5")
    resumed.checked_at = 5
    resumed.train(5)
    shares = [line["share_of_run"] for line in resumed.ledger.segments().values() if line["start"] > 5]
    assert shares == pytest.approx([1 / 3] * len(shares), abs=0.02)


def test_a_method_that_keeps_no_loss_is_decided_from_the_recorded_one(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Lowest(SelectorBase):
        needs = frozenset({"loss"})

        def select(self, state, signals, quota, progress, rng):
            return Selection(rows_Q=np.argsort(signals["loss"], kind="stable")[:quota], decision="lowest"), state

    full = Run(tmp_path, Lowest()).begin()
    full.train(after_step=full.save)
    assert "loss" in full.ledger.signals_of(full.ledger.segments()[2])
    resumed = Run(tmp_path, Lowest()).begin(tmp_path / "checkpoint-5")
    resumed.checked_at = 5
    next(resumed.curator.rest_of_epoch(5))
    assert resumed.measured == []


def test_overwriting_moves_the_old_record_aside(tmp_path: Path) -> None:
    Run(tmp_path, Random()).begin().train()
    Run(tmp_path, Random()).begin(overwrite=True, fingerprint={"other": 1})
    assert (tmp_path / "dataflex.old-1" / "ledger.jsonl").exists()
    assert not (tmp_path / "dataflex" / "ledger.jsonl").exists()


def test_another_run_in_the_directory_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Run(tmp_path, Random()).begin().train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(LedgerError, match="holds another run: other"):
        Run(tmp_path, Random()).begin(fingerprint={**FINGERPRINT, "other": 1})
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
