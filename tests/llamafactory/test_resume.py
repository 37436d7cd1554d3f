"""A run resumed from any checkpoint ends as the uninterrupted run does."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from dataflex.core.errors import DataFlexError
from dataflex.ledger.ledger import Ledger
from dataflex.train.settings import versions
from tests.llamafactory.conftest import assert_same_weights, train, write_data

# Segments of 3, 2, 2 | 3, 2, 2 steps: checkpoints 3, 5, 7, 10 and 12 lie at boundaries, 7 at an epoch's end.
NUM_STEPS = 14
EVERY_CHECKPOINT = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2.0}


def cut_after(full: Path, step: int, target: Path) -> Path:
    """A copy of a run as a kill right after the checkpoint of ``step`` leaves it: the ledger may be ahead."""
    shutil.copytree(full, target)
    for checkpoint in target.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (target / name).unlink()
    return target


def decisions(run: Path) -> list[tuple]:
    """What each segment was decided to be: rows in order, and the line without times."""
    ledger = Ledger(run)
    return [
        (k, line["start"], line["stop"], line["decision"], line["window"], line["notes"], ledger.rows_of(line).tolist())
        for k, line in sorted(ledger.segments().items())
    ]


@pytest.fixture(params=[0, 2], ids=["in-process loader", "two workers"])
def full_run(request, config, tmp_path: Path) -> tuple[Path, dict]:
    settings = config(output_dir=str(tmp_path / "full"), dataloader_num_workers=request.param, **EVERY_CHECKPOINT)
    return train(settings, tmp_path), settings


@pytest.mark.long
def test_resume_from_any_checkpoint_ends_with_the_same_weights(full_run, tmp_path: Path) -> None:
    full, settings = full_run
    steps = range(1, NUM_STEPS) if settings["dataloader_num_workers"] == 0 else (3, 4, 7, 11)
    for step in steps:
        run = cut_after(full, step, tmp_path / f"cut-{step}")
        train({**settings, "output_dir": str(run)}, tmp_path)
        assert_same_weights(full, run)
        assert decisions(full) == decisions(run), f"resumed from step {step}"


@pytest.mark.long
@pytest.mark.parametrize("component", ["random", "loss", "static", "longest"])
def test_every_kind_of_method_resumes(config, tmp_path: Path, component: str) -> None:
    settings = config(output_dir=str(tmp_path / "full"), component_name=component, **EVERY_CHECKPOINT)
    if component == "static":
        settings["warmup_step"] = 0
    full = train(settings, tmp_path)
    for step in (3, 6, 9, 10):
        run = cut_after(full, step, tmp_path / f"cut-{step}")
        train({**settings, "output_dir": str(run)}, tmp_path)
        assert_same_weights(full, run)
        assert decisions(full) == decisions(run)


def test_the_epoch_is_right_after_a_resume(config, tmp_path: Path) -> None:
    settings = config(output_dir=str(tmp_path / "full"), **EVERY_CHECKPOINT)
    full = train(settings, tmp_path)
    run = cut_after(full, 4, tmp_path / "cut")
    train({**settings, "output_dir": str(run)}, tmp_path)

    def epochs(folder: Path) -> list[float]:
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        return [entry["epoch"] for entry in history if "loss" in entry]

    assert np.allclose(epochs(run), epochs(full))
    assert epochs(full)[-1] == pytest.approx(2.0)


def test_a_kill_before_any_checkpoint_starts_again_and_keeps_the_old_lines(config, tmp_path: Path) -> None:
    settings = config(output_dir=str(tmp_path / "full"))
    full = train(settings, tmp_path)
    run = tmp_path / "cut"
    run.mkdir()
    shutil.copytree(full / "dataflex", run / "dataflex")
    train({**settings, "output_dir": str(run)}, tmp_path)
    kinds = [line["kind"] for line in Ledger(run).lines()]
    assert kinds == ["segment"] * 3 + ["end", "rollback", "resume"] + ["segment"] * 2 + ["end"]
    assert_same_weights(full, run)
    assert decisions(full) == decisions(run)


def test_the_batch_size_that_was_found_is_used_after_a_resume(config, tmp_path: Path) -> None:
    settings = config(output_dir=str(tmp_path / "full"), **EVERY_CHECKPOINT)
    full = train(settings, tmp_path)
    assert Ledger(full).run()["score_batch_tokens"] == Ledger(full).segments()[1]["scoring"]["batch_tokens"]
    run = cut_after(full, 4, tmp_path / "cut")
    Ledger(run).update_run({"score_batch_tokens": 77})
    train({**settings, "output_dir": str(run)}, tmp_path)
    assert_same_weights(full, run)
    later = [line["scoring"] for line in Ledger(run).segments().values() if line["start"] > 4 and line["scoring"]]
    assert [scoring["batch_tokens"] for scoring in later] == [77] * len(later)
    assert later


@pytest.mark.parametrize("content", [None, b"", b"half a fi"], ids=["missing", "empty", "cut short"])
def test_a_checkpoint_without_whole_random_streams_is_passed_over(config, tmp_path: Path, capsys, content) -> None:
    settings = config(output_dir=str(tmp_path / "full"), **EVERY_CHECKPOINT)
    full = train(settings, tmp_path)
    run = cut_after(full, 6, tmp_path / "cut")
    streams = run / "checkpoint-6" / "rng_state.pth"
    if content is None:
        streams.rename(streams.with_name("rng_state_1.pth"))  # another rank's
    else:
        streams.write_bytes(content)
    train({**settings, "output_dir": str(run)}, tmp_path)
    assert "checkpoint-6 lacks a rank's random state" in capsys.readouterr().out
    assert_same_weights(full, run)


def test_an_incomplete_checkpoint_is_passed_over(config, tmp_path: Path) -> None:
    settings = config(output_dir=str(tmp_path / "full"), **EVERY_CHECKPOINT)
    full = train(settings, tmp_path)
    run = cut_after(full, 6, tmp_path / "cut")
    (run / "checkpoint-6" / "trainer_state.json").write_text('{"log_hist')  # killed while it was written
    train({**settings, "output_dir": str(run)}, tmp_path)
    assert_same_weights(full, run)


def test_a_base_model_that_changed_under_an_adapter_is_refused(config, tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    settings = config(model_name_or_path=str(model), **EVERY_CHECKPOINT)
    full = train({**settings, "output_dir": str(tmp_path / "full")}, tmp_path)
    run = cut_after(full, 4, tmp_path / "cut")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += torch.tensor(1e-3)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    before = (run / "dataflex" / "ledger.jsonl").read_bytes()
    with pytest.raises(DataFlexError, match="the frozen weights of the model are not those of the run recorded"):
        train({**settings, "output_dir": str(run)}, tmp_path)
    assert (run / "dataflex" / "ledger.jsonl").read_bytes() == before


def test_other_versions_are_refused_by_name_unless_the_user_lets_them(
    config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(**EVERY_CHECKPOINT)
    full = train({**settings, "output_dir": str(tmp_path / "full")}, tmp_path)
    run = cut_after(full, 4, tmp_path / "cut")
    now = {**versions(), "torch": "99.1"}
    for place in ("settings", "mixin"):
        monkeypatch.setattr(f"dataflex.train.{place}.versions", lambda: now)
    with pytest.raises(DataFlexError, match=rf"version of torch \({versions()['torch'][:6]}.* then, 99\.1 now\)"):
        train({**settings, "output_dir": str(run)}, tmp_path)
    train({**settings, "output_dir": str(run)}, tmp_path, other_versions=True)
    assert_same_weights(full, run)
    resumed = [line for line in Ledger(run).lines() if line["kind"] == "resume"]
    assert [line["versions"]["torch"] for line in resumed] == ["99.1"], (
        "the record says under which versions it went on"
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["the system's error", "PyTorch's", "safetensors'"],
)
def test_a_full_disk_while_a_checkpoint_is_saved_is_a_sentence_and_the_run_goes_on_later(
    config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    settings = config(**EVERY_CHECKPOINT)
    full = train({**settings, "output_dir": str(tmp_path / "full")}, tmp_path)
    run = {**settings, "output_dir": str(tmp_path / "run")}
    save, calls = torch.save, 0

    def save_until_full(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > 9:
            raise error
        return save(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save_until_full)
        patched.setattr("dataflex.ledger.files.shutil.disk_usage", lambda path: SimpleNamespace(free=0))
        with pytest.raises(DataFlexError, match=r"the disk of .* is full .* goes on from the last complete checkpoint"):
            train(run, tmp_path)
    assert_same_weights(full, train(run, tmp_path))
    assert decisions(full) == decisions(tmp_path / "run")


def test_another_error_of_the_host_stays_its_own(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args, **kwargs):
        raise RuntimeError("write this down: not a full disk")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RuntimeError, match="not a full disk"):
        train(config(**EVERY_CHECKPOINT), tmp_path)


def test_a_pool_of_one_row_trains(config, tmp_path: Path) -> None:
    changes = {"max_samples": 1, "warmup_step": 1, "update_step": 1, "gradient_accumulation_steps": 1}
    run = train(config(per_device_train_batch_size=1, **changes), tmp_path)
    assert [rows for *_, rows in decisions(run)] == [[0], [0], [0]]


def test_rows_that_are_equal_are_rows_of_their_own(config, tmp_path: Path) -> None:
    row = {"instruction": "red fox", "input": "", "output": "runs over the moon"}
    data = write_data(tmp_path / "equal", same=[row] * 20)
    run = train(config(dataset="same", dataset_dir=str(data)), tmp_path)
    for _, _, _, decision, _, notes, rows in decisions(run):
        assert len(set(rows)) == len(rows)
        assert decision == "warm-up" or notes["num_scored"] == 20


def test_a_model_that_gives_no_number_stops_with_a_sentence(config, tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] *= float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataFlexError, match=r"quota of 8 samples .* is larger than the 0"):
        train(config(model_name_or_path=str(model)), tmp_path)
