"""``dataflex-cli audit``: summary, findings, comparison, exit codes."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "ledger"))
from audited_runs import begin_run, finished, forge, interrupted, make_run

from dataflex.algorithms.base import Selection, SelectorBase
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.random import Random
from dataflex.cli.main import main
from dataflex.ledger.ledger import Ledger


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: Any) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of the verb, in this process."""
    monkeypatch.setattr(sys, "argv", ["dataflex-cli", "audit", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    finished(folder / "delta", DeltaLoss())
    finished(folder / "delta-again", DeltaLoss())
    finished(folder / "wider", DeltaLoss(window_size=0.5))
    finished(folder / "random", Random())
    interrupted(folder / "crashed", DeltaLoss(), at=9, saved_at=4)
    return folder


def test_a_whole_record_is_verified_with_a_summary(records: Path, monkeypatch, capsys) -> None:
    code, out, err = run(monkeypatch, capsys, records / "delta")
    assert (code, err) == (0, "")
    assert "delta_loss" in out
    assert "window_size=0.2" in out
    assert "14 of 14 recorded, ended at step 14" in out
    assert "6, 2 of them warm-up" in out
    assert re.search(r"56, \d+ distinct of a pool of 40", out)
    assert "4 passes over the pool" in out
    assert "0 resumes, 0 rollbacks" in out
    assert "numpy 1" in out
    assert out.rstrip().endswith("verified")
    assert "damage" not in out


def test_a_resumed_run_says_so(records: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(records / "crashed", tmp_path / "run")
    again = begin_run(make_run(tmp_path / "run", DeltaLoss(), begin=False), tmp_path / "run" / "checkpoint-4")
    again.train(4)
    again.curator.end(14, None)
    code, out, _ = run(monkeypatch, capsys, tmp_path / "run")
    assert code == 0
    assert "1 resumes, 1 rollbacks" in out


def test_a_crashed_run_is_verified_with_a_note(records: Path, monkeypatch, capsys) -> None:
    code, out, _ = run(monkeypatch, capsys, records / "crashed")
    assert code == 0
    assert "note: ledger.jsonl: it has no line 'end' after step 10 of 14" in out


def test_damage_is_exit_code_1_and_named(records: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(records / "delta", tmp_path / "run")
    (tmp_path / "run/dataflex/segments/000003.parquet").unlink()
    code, out, err = run(monkeypatch, capsys, tmp_path / "run")
    assert (code, err) == (1, "")
    assert "damage: segments/000003.parquet: it is missing" in out
    assert "1 damage found" in out


def test_a_choice_that_does_not_follow_is_damage(records: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(records / "delta", tmp_path / "run")
    forge(tmp_path / "run", lambda lines: lines[4]["notes"].update(tau=0.1))
    code, out, _ = run(monkeypatch, capsys, tmp_path / "run")
    assert code == 1
    assert "damage: segment 4: its notes do not follow from its signals" in out


@pytest.mark.parametrize("arguments", [["nowhere"], ["."], ["a", "b", "c"], ["delta", "nowhere"]])
def test_a_mistake_is_exit_code_2_and_one_line(records: Path, monkeypatch, capsys, arguments: list[str]) -> None:
    arguments = [str(records / "delta") if name == "delta" else name for name in arguments]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("dataflex-cli: error: ")
    assert err.count("\n") == 1


def test_the_record_itself_and_one_moved_aside_can_be_named(records: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(records / "delta", tmp_path / "run")
    assert run(monkeypatch, capsys, tmp_path / "run/dataflex")[0] == 0
    Ledger(tmp_path / "run").move_aside()
    assert run(monkeypatch, capsys, tmp_path / "run/dataflex.old-1")[0] == 0
    monkeypatch.chdir(tmp_path / "run/dataflex.old-1")
    assert run(monkeypatch, capsys, ".")[0] == 0


# two runs


def test_two_runs_that_decided_the_same_are_equal(records: Path, monkeypatch, capsys) -> None:
    code, out, _ = run(monkeypatch, capsys, records / "delta", records / "delta-again")
    assert code == 0
    assert "every decision is the same" in out
    assert out.count("all, in order") == 6


def test_two_runs_that_differ_are_exit_code_3(records: Path, monkeypatch, capsys) -> None:
    code, out, _ = run(monkeypatch, capsys, records / "delta", records / "wider")
    assert code == 3
    assert "params: window_size" in out
    assert "the first segment that differs is 2" in out
    assert out.count("all, in order") == 3, "both warm-ups and the first selection"
    assert "%" in out


def test_two_methods(records: Path, monkeypatch, capsys) -> None:
    code, out, _ = run(monkeypatch, capsys, records / "delta", records / "random")
    assert code == 3
    assert "method" in out
    assert "params: steepness" in out


def test_a_run_that_went_less_far_differs(records: Path, monkeypatch, capsys) -> None:
    code, out, _ = run(monkeypatch, capsys, records / "delta", records / "crashed")
    assert code == 3
    assert "the first segment that differs is 4" in out


def test_damage_in_one_of_two_goes_before_a_difference(records: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(records / "delta", tmp_path / "run")
    (tmp_path / "run/dataflex/rows.parquet").unlink()
    code, out, _ = run(monkeypatch, capsys, records / "wider", tmp_path / "run")
    assert code == 1
    assert "the first segment that differs is 2" in out


def test_other_data_is_no_equal_decision(records: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    import yaml

    from dataflex.ledger.run_file import write_run

    shutil.copytree(records / "random", tmp_path / "run")
    path = tmp_path / "run/dataflex/run.yaml"
    content = yaml.safe_load(path.read_text())
    seal = content.pop("seal")
    content["fingerprint"]["data"] = "other"
    write_run(path, content, seal["rows"])
    code, out, _ = run(monkeypatch, capsys, records / "random", tmp_path / "run")
    assert code == 3
    assert "different data" in out


# output


def test_no_colours_and_no_control_characters_in_a_pipe(records: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """A stranger's record may hold what a terminal obeys, and rich's own markup."""
    shutil.copytree(records / "delta", tmp_path / "run")
    evil = "\x1b]0;owned\x07\x1b[2J[bold red]x[/] :smile:"
    forge(tmp_path / "run", lambda lines: lines[4].update(decision=evil, method=evil))
    code, out, _ = run(monkeypatch, capsys, tmp_path / "run", tmp_path / "run")
    assert code == 1
    assert "\x1b" not in out
    assert "\\x1b[2J[bold red]x[/] :smile:" in out


@pytest.mark.parametrize("no_color", [True, False])
def test_no_color_is_honoured_on_a_terminal(records: Path, monkeypatch, capsys, no_color: bool) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = run(monkeypatch, capsys, records / "delta")
    assert ("\x1b[32m" in out) != no_color


# code of other people


MODULE = """
import pathlib
pathlib.Path({marker!r}).touch()
from dataclasses import dataclass
import numpy as np
from dataflex.algorithms.base import Selection, SelectorBase

@dataclass(frozen=True, kw_only=True)
class Last(SelectorBase):
    def select(self, state, signals, quota, progress, rng):
        rows_Q = np.flatnonzero(state["trainable_N"])[-quota:]
        return Selection(rows_Q=rows_Q, decision="last"), state
"""


def test_code_that_a_record_names_runs_only_when_asked_for(tmp_path: Path, monkeypatch, capsys) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True, kw_only=True)
    class Last(SelectorBase):
        def select(self, state, signals, quota, progress, rng):
            return Selection(rows_Q=np.flatnonzero(state["trainable_N"])[-quota:], decision="last"), state

    marker = tmp_path / "imported"
    (tmp_path / "foreign_method.py").write_text(MODULE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    made = make_run(tmp_path / "run", Last(), begin=False)
    made.curator.method = type(made.curator.method)(name="foreign_method:Last", selector=made.curator.method.selector)
    begin_run(made)
    made.train()
    made.curator.end(14, None)
    code, out, _ = run(monkeypatch, capsys, tmp_path / "run")
    assert code == 0
    assert "a record must not run code" in out
    assert not marker.exists()
    code, out, _ = run(monkeypatch, capsys, tmp_path / "run", "--run-code")
    assert code == 0
    assert "code of 'foreign_method:Last' was run" in out
    assert marker.exists()
    sys.modules.pop("foreign_method")


def test_a_method_that_nobody_has_is_a_note(records: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    made = make_run(tmp_path / "run", Random(), begin=False)
    made.curator.method = type(made.curator.method)(name="gone:Method", selector=Random())
    begin_run(made)
    made.train()
    code, out, _ = run(monkeypatch, capsys, tmp_path / "run", "--run-code")
    assert code == 0
    assert "cannot be built" in out
