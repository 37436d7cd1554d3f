"""One training and its measurement as processes of their own: finished ones stay, half-finished ones go on."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.core.errors import LedgerError
from dataflex.evaluate.identity import run_digest
from dataflex.ledger import lock
from dataflex.ledger.files import write_atomic
from dataflex.ledger.ledger import LOCK_FILE, Ledger

PARENT_DIED = 1  # PR_SET_PDEATHSIG of prctl(2)
PATIENCE_S = 30.0  # for a run that a killed comparison left, which ends with it


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: a method, a seed, a number of steps."""

    method: str
    seed: int
    num_steps: int
    folder: Path
    config: Mapping[str, Any]  # LLaMA-Factory's keys and ours, with output_dir in ``folder``
    digest: str

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def log(self) -> Path:
        return self.folder / "train.log"

    @property
    def is_finished(self) -> bool:
        # Who removed the model, to have it trained again, need not know of the other file.
        is_there = Ledger(self.model).exists()
        return is_there and _read(self.folder / "finished.json").get("digest") == self.digest


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What measures the models: LLaMA-Factory's keys with the held-out rows as data set, and what they stand for."""

    config: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def digest(self) -> str:
        return run_digest(self.config, self.inputs)


def train(run: Run, launcher: Sequence[str]) -> str | None:
    """Train, or go on with what a former process left; returns None, or a sentence when it failed."""
    if run.is_finished:
        return None
    if _read(run.folder / "run.json").get("digest") not in (None, run.digest):
        _move_aside(run.folder)  # of another plan, or of other data
    run.folder.mkdir(parents=True, exist_ok=True)
    for former in [run.folder / "finished.json", *run.folder.glob("held_out-*.json")]:
        former.unlink(missing_ok=True)  # of a model that is no longer there
    write_atomic(run.folder / "run.json", json.dumps({"digest": run.digest}).encode())
    config = run.folder / "config.json"
    write_atomic(config, json.dumps(run.config, indent=1).encode())
    _wait_for(run.model)
    # Every method pays for the losses that it asks for: none is taken from the cache of another run.
    command = [*launcher, sys.executable, "-m", "dataflex.cli.main", "train", str(config), "--fresh"]
    what = f"{run.method}, seed {run.seed}"
    problem = _run(command, run.log, what)
    if problem is None and not _ended_at(run):
        problem = (
            f"{what} failed: its command ended before step {run.num_steps} was trained; {_remedy(launcher, run.log)}"
        )
    if problem is None:
        write_atomic(run.folder / "finished.json", json.dumps({"digest": run.digest}).encode())
    return problem


def measure(run: Run, held_out: HeldOut, launcher: Sequence[str]) -> str | None:
    """Measure the checkpoints and the model of a finished run, then remove the checkpoints; as ``train``."""
    found = {int(path.name.split("-")[1]): path for path in run.model.glob("checkpoint-*")}
    checkpoints = {step: path for step, path in sorted(found.items()) if step < run.num_steps}
    out, what = _measurements(run, held_out), f"{run.method}, seed {run.seed}"
    problem = measure_all({**checkpoints, run.num_steps: run.model}, held_out, out, launcher, what)
    if problem is None:
        for path in found.values():  # they have served: of a large model they would fill the disk
            shutil.rmtree(path)
    return problem


def measure_all(
    checkpoints: Mapping[int, Path | None], held_out: HeldOut, out: Path, launcher: Sequence[str], what: str
) -> str | None:
    """Measure checkpoints, by steps (None: the model that training starts from); what is in ``out`` already stays."""
    if checkpoints.keys() <= {int(step) for step in _read(out)}:
        return None
    folders = {step: None if path is None else str(path) for step, path in checkpoints.items()}
    spec = {"config": dict(held_out.config), "checkpoints": folders, "out": str(out)}
    path = out.with_name("measure.json")
    write_atomic(path, json.dumps(spec, indent=1).encode())
    command = [*launcher, sys.executable, "-m", "dataflex.evaluate.compare.measure", str(path)]
    log = out.with_name("measure.log")
    problem = _run(command, log, f"measuring {what}")
    if problem is None and not checkpoints.keys() <= {int(step) for step in _read(out)}:
        return f"measuring {what} failed: its command ended before {out} was written; {_remedy(launcher, log)}"
    return problem


def measured(run: Run, held_out: HeldOut) -> dict[int, dict[str, Any]]:
    """What was measured of a run, by steps."""
    found = _read(_measurements(run, held_out))
    return {int(step): values for step, values in sorted(found.items(), key=lambda item: int(item[0]))}


def _measurements(run: Run, held_out: HeldOut) -> Path:
    return run.folder / f"held_out-{held_out.digest[:12]}.json"


def _remedy(launcher: Sequence[str], log: Path) -> str:
    """Of a command that reported success and left its work undone."""
    return "name a launcher that waits for its command, such as srun" if launcher else f"the whole log: {log}"


def _ended_at(run: Run) -> bool:
    """True: the ledger says that the last step was trained."""
    ledger = Ledger(run.model)
    return ledger.exists() and any(line["kind"] == "end" and line["step"] == run.num_steps for line in ledger.lines())


def _run(command: Sequence[str], log: Path, what: str) -> str | None:
    with log.open("ab") as file:
        try:
            # preexec_fn is safe here: this process has no threads.
            done = subprocess.run(command, stdout=file, stderr=file, preexec_fn=_dying_with(os.getpid()), check=False)
        except OSError as error:
            return f"{what} failed: {command[0]} cannot be started ({error.strerror or error})"
    if done.returncode == 0:
        return None
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return f"{what} failed ({how}): {_last_line(log)}; the whole log: {log}"


def _dying_with(parent: int) -> Callable[[], None]:
    """Have the child end when this process is killed, so that no run goes on that nobody waits for."""

    def in_child() -> None:
        ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be said
            os._exit(1)

    return in_child


def _wait_for(output_dir: Path) -> None:
    """Wait until the run of a killed comparison has ended; the trainer tells it if it does not."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            lock.take(output_dir / LOCK_FILE)
        except LedgerError:
            time.sleep(0.2)
        else:
            lock.release(output_dir / LOCK_FILE)
            return


def _move_aside(folder: Path) -> None:
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(target)


def _last_line(log: Path) -> str:
    """The last line that says something, cut to a length that a sentence bears."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("dataflex-cli: error: ")[:300] if lines else "it said nothing"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
