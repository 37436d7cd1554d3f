"""A run that is killed at any instant and started again ends as the uninterrupted one: weights, record, metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import assert_same_weights, base_config, data_dir, tiny_model  # noqa: F401
from tests.llamafactory.test_resume import decisions

pytestmark = pytest.mark.long

PROGRAM = Path(__file__).with_name("kill_program.py")
LONG = os.environ.get("DATAFLEX_FAULTS") == "long"
# Instants of each phase, spread evenly over its events. The short version has eight in all.
INSTANTS = {
    "begin": 5 if LONG else 1,
    "scoring": 10 if LONG else 2,
    "recording": 15 if LONG else 2,
    "before the first step": 8 if LONG else 1,
    "training": 8 if LONG else 0,
    "checkpoint": 15 if LONG else 2,
}
KILLED = -9


class Runs:
    """Starts the program with jobs; each has a folder of its own."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings

    def job(self, name: str, kill: tuple[str, int] | None = None) -> dict[str, Any]:
        work = self.folder / name
        work.mkdir(exist_ok=True)
        config = work / "config.yaml"
        params = {"params": {"cache_dir": str(work / "cache")}}
        config.write_text(json.dumps({**self.settings, "output_dir": str(work / "run"), "component": params}))
        return {"config": str(config), "log": str(work / "log"), "kill": kill}

    def start(self, jobs: list[dict[str, Any]]) -> list[int]:
        jobs_file, results_file = self.folder / "jobs.json", self.folder / "results.json"
        jobs_file.write_text(json.dumps(jobs))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"HF_DATASETS_CACHE": str(self.folder / "datasets-cache"), "TOKENIZERS_PARALLELISM": "false"}
        root = str(PROGRAM.parents[2])
        command = [sys.executable, str(PROGRAM), str(jobs_file), str(results_file)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(results_file.read_text())

    def run(self, name: str) -> Path:
        return self.folder / name / "run"

    def log(self, name: str) -> str:
        return (self.folder / name / "log").read_text()[-3000:]


@pytest.fixture(scope="module")
def runs(tiny_model: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:  # noqa: F811
    folder = tmp_path_factory.mktemp("kills")
    settings = {
        **base_config(tiny_model, data_dir, folder),
        "num_train_epochs": 2.0,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
        "disable_tqdm": True,
    }
    return Runs(folder, settings)


@pytest.fixture(scope="module")
def events(runs: Runs) -> list[list[str]]:
    """(phase, event) in the order of the uninterrupted run."""
    job = runs.job("full")
    assert runs.start([job]) == [0], runs.log("full")
    return json.loads(Path(f"{job['log']}.events.json").read_text())


def chosen(events: list[list[str]]) -> list[tuple[str, int, str]]:
    """(phase, number of the event in its phase, what it is), spread over every phase's events."""
    instants = []
    for phase, wanted in INSTANTS.items():
        kinds = [kind for where, kind in events if where == phase]
        assert len(kinds) >= wanted, f"{phase} has {len(kinds)} events"
        numbers = np.unique(np.linspace(1, len(kinds), wanted + 2).round().astype(int)[1:-1])
        instants += [(phase, int(number), kinds[number - 1]) for number in numbers]
    return instants


def losses(run: Path) -> dict[int, float]:
    """Training loss by step, as the host logged it."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def decided(run: Path) -> dict[int, dict[str, float]]:
    """Our own numbers by step, without those that are times."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    timed = ("share_of_run", "seconds", "tokens_per_s")
    ours = {}
    for entry in history:
        numbers = {k: v for k, v in entry.items() if k.startswith("dataflex/") and not k.endswith(timed)}
        if numbers:
            ours[entry["step"]] = numbers
    return ours


def test_a_run_that_is_killed_anywhere_ends_as_the_uninterrupted_one(runs: Runs, events: list[list[str]]) -> None:
    full = runs.run("full")
    instants = chosen(events)
    assert len(instants) >= (50 if LONG else 8)
    names = [f"{number}-{phase.replace(' ', '-')}" for phase, number, _ in instants]
    jobs = []
    for name, (phase, number, _) in zip(names, instants, strict=True):
        jobs += [runs.job(name, kill=(phase, number)), runs.job(name)]
    codes = runs.start(jobs)
    for i, (name, (phase, number, kind)) in enumerate(zip(names, instants, strict=True)):
        where = f"killed {phase}, event {number}: {kind}"
        assert codes[2 * i] == KILLED, f"{where}: {runs.log(name)}"
        assert codes[2 * i + 1] == 0, f"{where}: {runs.log(name)}"
        run = runs.run(name)
        assert_same_weights(full, run)
        assert decisions(run) == decisions(full), where
        assert losses(run) == losses(full), where
        assert decided(run) == decided(full), where
        assert not list(run.rglob("*.tmp")), where


@pytest.mark.skipif(not LONG, reason="make faults")
def test_a_run_that_is_killed_again_and_again_still_ends_as_the_uninterrupted_one(runs: Runs, events) -> None:
    """Each start is killed a little later in another phase."""
    full = runs.run("full")
    kills = [("begin", 9), ("scoring", 5), ("checkpoint", 20), ("recording", 4), ("before the first step", 3)]
    kills += [("checkpoint", 25), ("scoring", 3), ("training", 3), ("checkpoint", 7), ("checkpoint", 12)]
    codes = runs.start([*(runs.job("again", kill) for kill in kills), runs.job("again")])
    assert codes == [KILLED] * len(kills) + [0], runs.log("again")
    assert_same_weights(full, runs.run("again"))
    assert decisions(runs.run("again")) == decisions(full)
    assert losses(runs.run("again")) == losses(full)


def test_the_record_of_a_killed_run_is_readable_before_it_is_resumed(runs: Runs, events: list[list[str]]) -> None:
    """The kill in the middle of writing a line is no damage."""
    halves = [i for i, (phase, kind) in enumerate(events) if (phase, kind) == ("recording", "half of a write")]
    number = 1 + sum(1 for phase, _ in events[: halves[-1]] if phase == "recording")
    assert runs.start([runs.job("half-a-line", kill=("recording", number))]) == [KILLED]
    ledger = Ledger(runs.run("half-a-line"))
    assert not ledger.path.read_bytes().endswith(b"\n")
    assert [line["kind"] for line in ledger.lines()].count("segment") == 5
