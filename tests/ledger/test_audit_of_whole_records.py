"""A record in order gives no damage: of every method, crashed, resumed, started again, stopped early."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audited_runs import (
    begin_run,
    damages,
    everything_found,
    finished,
    forge,
    interrupted,
    line_of,
    make_run,
    save,
)
from planting import segments, signals

from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.length import Length
from dataflex.algorithms.select.loss import Loss
from dataflex.algorithms.select.random import Random
from dataflex.algorithms.select.replay import Replay
from dataflex.algorithms.select.static import Static


def notes(run: Path) -> list[str]:
    found = everything_found(run)
    assert not [finding for finding in found if finding.severity == "damage"]
    return [str(finding) for finding in found]


@pytest.mark.parametrize(
    "selector",
    [
        DeltaLoss(),
        DeltaLoss(baseline="run_start"),
        DeltaLoss(window_size=0.9, normalize="initial", when_empty="uniform", progress="t/T"),
        DeltaLoss(replacement=True, base_weight=0),
        Loss(),
        Loss(focus="low", temperature=0.5, replacement=True),
        Random(),
        Random(replacement=True),
        Length(),
        Length(take="band"),
    ],
    ids=repr,
)
def test_a_whole_record_of_any_method_gives_no_finding(tmp_path: Path, selector: Any) -> None:
    finished(tmp_path, selector)
    assert notes(tmp_path) == []


def test_the_host_order_is_verified_but_not_derived(records: Path) -> None:
    assert len(notes(records / "host")) == 1
    assert "host's own order" in notes(records / "host")[0]


@pytest.mark.parametrize("draw", ["top", "weighted"])
def test_a_choice_by_a_file_is_derived_while_the_file_is_there(tmp_path: Path, draw) -> None:
    scores = tmp_path / "scores.npy"
    np.save(scores, np.random.default_rng(0).random(40))
    finished(tmp_path / "run", Static(path=str(scores), draw=draw))
    assert notes(tmp_path / "run") == []
    np.save(scores, np.random.default_rng(1).random(40))
    assert any("scores.npy may have changed since" in finding.sentence for finding in damages(tmp_path / "run"))
    scores.unlink()
    assert any("is not there any more" in said for said in notes(tmp_path / "run"))


def test_a_replay_is_derived_while_the_former_run_is_there(records: Path, tmp_path: Path) -> None:
    shutil.copytree(records / "whole", tmp_path / "former")
    finished(tmp_path / "run", Replay(path=str(tmp_path / "former")))
    assert notes(tmp_path / "run") == []
    shutil.rmtree(tmp_path / "former")
    assert any("is not there any more" in said for said in notes(tmp_path / "run"))


def test_a_crashed_run_is_said_to_have_no_end(records: Path) -> None:
    said = notes(records / "crashed")
    assert len(said) == 1
    assert "no line 'end' after step 10 of 14" in said[0]


@pytest.mark.parametrize("saved_at", [1, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("selector", [DeltaLoss(), Random(), Static()], ids=repr)
def test_a_resumed_run_gives_no_finding(tmp_path: Path, selector: Any, saved_at: int) -> None:
    _, checkpoint = interrupted(tmp_path, selector, at=8, saved_at=saved_at)
    again = make_run(tmp_path, selector, begin=False)
    begin_run(again, checkpoint)
    again.train(saved_at)
    again.curator.end(again.plan.num_steps, None)
    found = notes(tmp_path)
    assert found == [] or selector == Static()


def test_a_run_that_starts_again_without_a_checkpoint_gives_no_finding(tmp_path: Path) -> None:
    interrupted(tmp_path, DeltaLoss(), at=8, saved_at=8)
    finished(tmp_path, DeltaLoss())
    assert notes(tmp_path) == []


def test_a_run_that_is_killed_again_and_again_gives_no_finding(tmp_path: Path) -> None:
    _, checkpoint = interrupted(tmp_path, DeltaLoss(), at=11, saved_at=4)
    for _ in range(2):
        again = make_run(tmp_path, DeltaLoss(), begin=False)
        begin_run(again, checkpoint)
        rest = again.curator.rest_of_epoch(4)
        next(rest), next(rest)
    assert len(notes(tmp_path)) == 1


def test_early_stopping_is_said(tmp_path: Path) -> None:
    run, _ = interrupted(tmp_path, DeltaLoss(), at=6, saved_at=6)
    run.curator.end(6, None)
    assert notes(tmp_path) == ["note: ledger.jsonl: training ended at step 6 of 14"]
    # And it may go on later from its checkpoint, without a rollback.
    again = make_run(tmp_path, DeltaLoss(), begin=False)
    begin_run(again, save_path(run, 6))
    again.train(6)
    again.curator.end(14, None)
    assert notes(tmp_path) == []


def save_path(run: Any, step: int) -> Path:
    return (
        run.output_dir / f"checkpoint-{step}" if (run.output_dir / f"checkpoint-{step}").exists() else save(run, step)
    )


@pytest.mark.parametrize("tail", [b'{"kind": "segm', b'{"kind": "end", "step": 14}'])
def test_an_unfinished_last_line_is_no_damage(records: Path, tmp_path: Path, tail: bytes) -> None:
    shutil.copytree(records / "crashed", tmp_path / "run")
    with open(tmp_path / "run/dataflex/ledger.jsonl", "ab") as file:
        file.write(tail)
    assert any("its last line is unfinished" in said for said in notes(tmp_path / "run"))


@pytest.mark.parametrize("left", [segments(4), signals(4), "segments/.000004.parquet.tmp"])
def test_what_a_kill_between_arrays_and_line_leaves_is_no_damage(records: Path, tmp_path: Path, left: str) -> None:
    shutil.copytree(records / "crashed", tmp_path / "run")
    shutil.copy(records / "whole/dataflex" / segments(4), tmp_path / "run/dataflex" / left)
    assert any(left in said for said in notes(tmp_path / "run"))


def test_a_run_killed_before_its_first_decision_is_in_order(tmp_path: Path) -> None:
    make_run(tmp_path, DeltaLoss())
    assert len(notes(tmp_path)) == 1


def test_other_versions_in_mid_run_are_said(records: Path, tmp_path: Path) -> None:
    shutil.copytree(records / "whole", tmp_path / "run")
    forge(tmp_path / "run", lambda lines: line_of(lines, 4).update(versions={"numpy": "2"}))
    assert any("other versions were installed: numpy 2" in said for said in notes(tmp_path / "run"))
