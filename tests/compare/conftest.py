"""A tiny model and data, and compare's processes run in this one where a test is not about processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.llamafactory.conftest import base_config, make_rows, tiny_model, write_data  # noqa: F401

os.environ.setdefault("DISABLE_VERSION_CHECK", "1")
OURS = ("output_dir", "overwrite_output_dir", "seed", "component_name")


@pytest.fixture
def plan(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:  # noqa: F811
    """A plan of small runs; keyword arguments change it, None takes a key out."""
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path / "data", toy=make_rows(40), held_out=make_rows(11, seed=5), empty=[])
    base = {k: v for k, v in base_config(tiny_model, data, tmp_path / "x").items() if k not in OURS}

    def make(**changes: Any) -> dict[str, Any]:
        whole = {
            "base": {**base, "save_strategy": "no"},
            "seeds": [1, 2],
            "held_out": {"dataset": "held_out", "points": 2},
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        return {key: value for key, value in whole.items() if value is not None}

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    def write(plan: dict[str, Any]) -> str:
        path = tmp_path / "plan.yaml"
        path.write_text(json.dumps(plan))  # JSON is YAML
        return str(path)

    return write


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have compare call what it would start as a process; the list says what was started."""
    from dataflex.cli.train import train
    from dataflex.evaluate.compare import runs
    from dataflex.evaluate.compare.measure import measure_checkpoints

    started: list[str] = []

    def run(command: Any, log: Path, what: str) -> str | None:
        started.append(what)
        if "train" in command:
            train(command[command.index("train") + 1], [], fresh="--fresh" in command)
        else:
            measure_checkpoints(json.loads(Path(command[-1]).read_text()))
        return None

    monkeypatch.setattr(runs, "_run", run)
    return started
