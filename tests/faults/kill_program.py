"""Trains small runs in forked children and kills each at a counted event; started by test_kills.py.

Usage: kill_program.py JOBS.json RESULTS.json

A job is {"config": CONFIG.yaml, "log": FILE, "kill": [phase, number] or null}. The imports are done once, in the
parent; a child is forked for every job. A child that is not killed writes the events of its run to LOG.events.json.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llamafactory.train.sft.workflow
import peft.peft_model
import torch
import transformers.trainer
from transformers.trainer_callback import TrainerState

import dataflex.ledger.files
import dataflex.signals.loss
import dataflex.train.curator
import dataflex.train.measure
import dataflex.train.mixin
from dataflex.cli.main import main

PHASES = ("begin", "scoring", "recording", "before the first step", "training", "checkpoint")


class Tripwire:
    """Counts the events of each phase of a run, and kills the process at one of them."""

    def __init__(self, kill: tuple[str, int] | None) -> None:
        self.kill = kill
        self.phase = "training"
        self.events: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()

    def hit(self, kind: str) -> None:
        self.counts[self.phase] += 1
        self.events.append((self.phase, kind))
        if self.kill == (self.phase, self.counts[self.phase]):
            os.kill(os.getpid(), signal.SIGKILL)

    def within(self, phase: str, owner: Any, name: str, afterwards: str | None = None) -> None:
        """While ``owner.name`` runs, events belong to ``phase``; then to ``afterwards`` or the phase before."""
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before, self.phase = self.phase, phase
            try:
                return original(*args, **kwargs)
            finally:
                self.phase = afterwards or before

        setattr(owner, name, wrapped)

    def around(self, owner: Any, name: str, kind: str) -> None:
        """An event before and one after ``owner.name``."""
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.hit(f"before {kind}")
            result = original(*args, **kwargs)
            self.hit(f"after {kind}")
            return result

        setattr(owner, name, wrapped)

    def half_saved(self, owner: Any, name: str, path_of: Callable[..., Any], kind: str) -> None:
        """Two events: the file that ``owner.name`` writes is there with half its bytes, and whole."""
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            path = path_of(*args, **kwargs)
            if isinstance(path, (str, os.PathLike)) and os.path.isfile(path):
                whole = Path(path).read_bytes()
                Path(path).write_bytes(whole[: len(whole) // 2])
                self.hit(f"half of {kind}")
                Path(path).write_bytes(whole)
            self.hit(f"after {kind}")
            return result

        setattr(owner, name, wrapped)

    def install(self) -> None:
        curator, measurer = dataflex.train.curator.Curator, dataflex.train.measure.Measurer
        self.within("begin", curator, "begin")
        self.within("recording", curator, "_decide", afterwards="before the first step")
        self.within("scoring", measurer, "__call__")
        self.within("checkpoint", transformers.trainer.Trainer, "_save_checkpoint")
        self.around(dataflex.signals.loss.LossSignal, "measure", "a scoring forward")
        self.around(llamafactory.train.sft.workflow.CustomSeq2SeqTrainer, "compute_loss", "a training forward")
        for name in ("fsync", "replace", "rename"):
            self.around(os, name, name)
        self.half_saved(torch, "save", lambda obj, file, *_, **__: file, "torch.save")
        self.half_saved(peft.peft_model, "safe_save_file", lambda tensors, file, *_, **__: file, "the adapter")
        self.half_saved(TrainerState, "save_to_json", lambda state, path: path, "trainer_state.json")
        self.around(transformers.trainer.shutil, "rmtree", "the removal of a folder")
        self._optimizer_steps()
        self._halves_of_writes()

    def _optimizer_steps(self) -> None:
        original = torch.optim.AdamW.step

        def step(*args: Any, **kwargs: Any) -> Any:
            self.hit("before an optimizer step")
            result = original(*args, **kwargs)
            self.phase = "training"
            self.hit("after an optimizer step")
            return result

        torch.optim.AdamW.step = step

    def _halves_of_writes(self) -> None:
        """Our own files: half of the bytes are on the disk, then all of them."""

        class Halved:
            def __init__(self, file: Any) -> None:
                self.file = file

            def __enter__(self) -> Any:
                self.file.__enter__()
                return self

            def __exit__(self, *error: Any) -> Any:
                return self.file.__exit__(*error)

            def write(inner, data: Any) -> None:  # noqa: N805  self is the tripwire
                inner.file.write(data[: len(data) // 2])
                inner.file.flush()
                self.hit("half of a write")
                inner.file.write(data[len(data) // 2 :])

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        def open_halved(path: Any, mode: str = "r", **kwargs: Any) -> Any:
            file = builtins.open(path, mode, **kwargs)  # noqa: SIM115  the caller closes it
            return Halved(file) if "w" in mode or "a" in mode else file

        dataflex.ledger.files.open = open_halved  # type: ignore[attr-defined]


def child(job: dict[str, Any]) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(Path(job["config"]).parent)
    wire = Tripwire(tuple(job["kill"]) if job["kill"] else None)
    wire.install()
    sys.argv = ["dataflex-cli", "train", job["config"]]
    code = 0
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    if code == 0:
        Path(f"{job['log']}.events.json").write_text(json.dumps(wire.events))
    sys.stdout.flush()
    os._exit(code)


def run(job: dict[str, Any]) -> int:
    """The exit code of a forked child, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        child(job)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(job) for job in jobs]))
