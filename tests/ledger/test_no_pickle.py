"""No file of a run directory can run code: pickles and tags of YAML are planted under every name that is read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from audited_runs import everything_found, finished, save
from safetensors.numpy import save as save_safetensors

from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.replay import Replay
from dataflex.algorithms.select.static import Static
from dataflex.core.errors import DataFlexError
from dataflex.ledger.ledger import LOCK_FILE, Ledger
from dataflex.signals.cache import SignalCache
from dataflex.signals.file import read_scores
from dataflex.train.checkpoint import STATE_FILE, newest_complete_checkpoint, read_state

KEY = {"signal": "loss", "weights": "w"}


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.sprung),)


def plain(trap: Trap) -> bytes:
    return pickle.dumps(trap)


def of_torch(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    torch.save({"values": trap}, buffer)
    return buffer.getvalue()


def of_numpy(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([trap], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def of_numpy_archive(trap: Trap) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, row=np.array([trap], dtype=object))
    return buffer.getvalue()


def of_arrow(trap: Trap) -> bytes:
    """A column of an extension type of Python's, which pyarrow unpickled before its version 14.0.1."""
    marks = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(trap),
    }
    names = ("row", "position", "num_tokens", "num_label_tokens", "loss", "score")
    schema = pa.schema([pa.field(name, pa.int64(), metadata=marks) for name in names])
    buffer = io.BytesIO()
    pq.write_table(pa.table([pa.array([0, 1])] * len(names), schema=schema), buffer)
    return buffer.getvalue()


def of_yaml(trap: Trap) -> bytes:
    call = f"!!python/object/apply:os.mkdir [{json.dumps(str(trap.sprung))}]"
    return f"run_id: {call}\nfingerprint: {call}\n{call}: 1\n".encode()


def of_json(trap: Trap) -> bytes:
    return (
        json.dumps({"kind": "segment", "py/reduce": [{"py/function": "os.mkdir"}, [str(trap.sprung)]]}).encode() + b"\n"
    )


def of_safetensors(trap: Trap) -> bytes:
    values = np.frombuffer(pickle.dumps(trap), dtype=np.uint8)
    names = ("values", "times_trained_N", "scorable_N", "state.initial_losses_N")
    return save_safetensors(
        dict.fromkeys(names, values), metadata={"dataflex": pickle.dumps(trap, 0).decode("latin-1")}
    )


PAYLOADS = (plain, of_torch, of_numpy, of_numpy_archive, of_arrow, of_yaml, of_json, of_safetensors)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    for run in (finished(folder / "run", DeltaLoss()), finished(folder / "former", DeltaLoss())):
        save(run, 14)
        (run.output_dir / "checkpoint-14" / "trainer_state.json").write_text("{}")
        (run.output_dir / "checkpoint-14" / "rng_state.pth").touch()
        SignalCache(run.ledger.root / "cache").save(KEY, np.zeros(40, dtype=np.float32))
    np.save(folder / "scores.npy", np.random.default_rng(0).random(40))
    return folder


def every_reader(run: Path) -> list[Callable[[], Any]]:
    """All that this package reads from a run directory, and scores from a file in it."""
    ledger = Ledger(run)
    line = {"segment": 2, "sha256": {"rows": "", "signals": ""}}
    checkpoint = run / "checkpoint-14"
    scores = [run / f"scores{ending}" for ending in (".npy", ".json", ".parquet")]
    return [
        ledger.run,
        ledger.run_id,
        ledger.lines,
        ledger.segments,
        lambda: ledger.rows_of(line),
        lambda: ledger.signals_of(line),
        lambda: ledger.claim({}, overwrite=False),
        ledger.lock,
        ledger.unlock,
        lambda: read_state(checkpoint),
        lambda: newest_complete_checkpoint(str(run), lambda meta: None, lambda sentence: None),
        lambda: SignalCache(ledger.root / "cache").load(KEY),
        *(lambda path=path: read_scores(str(path), 40, "d") for path in scores),
    ]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.__name__)
def test_a_pickle_under_any_name_is_a_sentence_and_runs_nothing(records: Path, tmp_path: Path, payload) -> None:
    run, sprung = tmp_path / "run", tmp_path / "sprung"
    data = payload(Trap(sprung))
    shutil.copytree(records / "run", run)
    planted = [path for path in run.rglob("*") if path.is_file()]
    assert {"run.yaml", "rows.parquet", "ledger.jsonl", STATE_FILE, "trainer_state.json"} <= {p.name for p in planted}
    planted += [run / f"scores{ending}" for ending in (".npy", ".json", ".parquet")] + [run / LOCK_FILE]
    for path in planted:
        path.write_bytes(data)
    refused = 0
    for read in every_reader(run):
        with contextlib.suppress(DataFlexError):
            read()
            continue
        refused += 1
    assert refused >= 8
    found = everything_found(run)
    assert "run.yaml" in {finding.where for finding in found if finding.severity == "damage"}
    assert not sprung.exists()


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.__name__)
@pytest.mark.parametrize(
    "name", ["run.yaml", "rows.parquet", "ledger.jsonl", "segments/000002.parquet", "signals/000002.parquet"]
)
def test_a_pickle_in_place_of_one_file_is_found_by_the_audit(records: Path, tmp_path: Path, name: str, payload) -> None:
    """With the rest in order, so that reading does not end before it comes to this file."""
    run, sprung = tmp_path / "run", tmp_path / "sprung"
    shutil.copytree(records / "run", run)
    (run / "dataflex" / name).write_bytes(payload(Trap(sprung)))
    found = everything_found(run)
    assert any(f.severity == "damage" and f.where.startswith((name, "segments/")) for f in found)
    assert not sprung.exists()


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.__name__)
def test_a_pickle_in_what_a_method_reads_runs_nothing(records: Path, tmp_path: Path, payload) -> None:
    sprung = tmp_path / "sprung"
    data = payload(Trap(sprung))
    shutil.copy(records / "scores.npy", tmp_path / "scores.npy")
    shutil.copytree(records / "former", tmp_path / "former")
    finished(tmp_path / "by-file", Static(path=str(tmp_path / "scores.npy")))
    finished(tmp_path / "replay", Replay(path=str(tmp_path / "former")))
    for path in (tmp_path / "scores.npy", *(p for p in (tmp_path / "former").rglob("*") if p.is_file())):
        path.write_bytes(data)
    for run in ("by-file", "replay"):
        assert any(finding.where.startswith("segment") for finding in everything_found(tmp_path / run))
    assert not sprung.exists()


def test_the_traps_would_spring_where_pickles_are_loaded(tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    for number, payload in enumerate((plain, of_numpy, of_torch)):
        sprung = tmp_path / str(number)
        data = io.BytesIO(payload(Trap(sprung)))
        {plain: pickle.load, of_numpy: lambda f: np.load(f, allow_pickle=True)}.get(
            payload, lambda f: torch.load(f, weights_only=False)
        )(data)
        assert sprung.exists()
