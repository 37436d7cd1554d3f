"""What a user holds in hand: directories, caches, methods from files and from former runs, the merged model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from dataflex.core.errors import DataFlexError
from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import assert_same_weights, train


def rows_of(run: Path) -> list[list[int]]:
    ledger = Ledger(run)
    return [ledger.rows_of(line).tolist() for _, line in sorted(ledger.segments().items())]


def test_overwriting_moves_the_old_record_aside(config, tmp_path: Path) -> None:
    run = train(config(), tmp_path)
    old = (run / "dataflex" / "ledger.jsonl").read_bytes()
    train(config(overwrite_output_dir=True, seed=8), tmp_path)
    assert (run / "dataflex.old-1" / "ledger.jsonl").read_bytes() == old
    assert (run / "dataflex" / "ledger.jsonl").read_bytes() != old


@pytest.mark.long
def test_checkpoints_of_an_earlier_run_in_the_directory_are_never_resumed(config, tmp_path: Path, capsys) -> None:
    settings = config(save_strategy="steps", save_steps=3)
    run = train(settings, tmp_path)
    train({**settings, "overwrite_output_dir": True, "save_strategy": "no"}, tmp_path)
    assert (run / "checkpoint-6").exists(), "left over from the first run, with an equal fingerprint"
    with pytest.raises(DataFlexError, match="earlier run"):
        train({**settings, "resume_from_checkpoint": str(run / "checkpoint-6")}, tmp_path)
    capsys.readouterr()
    train(settings, tmp_path)  # as after a kill before the first checkpoint of the second run
    said = capsys.readouterr().out
    assert "checkpoint-6 belongs to an earlier run in this directory and is passed over" in said
    assert "the run starts again" in said


@pytest.mark.long
def test_a_checkpoint_of_an_abandoned_branch_is_not_resumed(config, tmp_path: Path, capsys) -> None:
    """Resumed from an early checkpoint, killed, started again: the old branch's later checkpoint still lies there."""
    settings = config(save_strategy="steps", save_steps=1, num_train_epochs=2.0)
    run = train(settings, tmp_path)
    Ledger(run).rollback(2, "as a resume from step 4 does")
    rows = Ledger(run).rows_of({"segment": 2, "sha256": {"rows": _digest_of(run, 2)}})
    other = rows[::-1].copy()
    line = next(line for line in Ledger(run).lines() if line.get("segment") == 2)
    Ledger(run).append({k: v for k, v in line.items() if k not in ("kind", "sha256", "previous")}, other, {})
    (run / "adapter_model.safetensors").unlink()
    for step in (5, *range(8, 14)):
        shutil.rmtree(run / f"checkpoint-{step}")  # 14 stays, from beyond the end of the present record
    capsys.readouterr()
    train(settings, tmp_path)
    said = capsys.readouterr().out
    assert "checkpoint-14 was trained on rows that have been rolled back since" in said
    assert "checkpoint-7 was trained on rows that have been rolled back since" in said
    assert f"going on after step 4, from {run / 'checkpoint-4'}" in said


def _digest_of(run: Path, segment: int) -> str:
    return next(line for line in Ledger(run).lines() if line.get("segment") == segment)["sha256"]["rows"]


def test_a_reused_checkpoint_folder_is_never_half_old(config, tmp_path: Path, monkeypatch) -> None:
    """Killed while a checkpoint is written into the folder of an earlier run's: it must not look complete."""
    from transformers import Trainer

    settings = config(save_strategy="steps", save_steps=3)
    run = train(settings, tmp_path)

    def killed(self, output_dir):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(KeyboardInterrupt):
        train({**settings, "overwrite_output_dir": True}, tmp_path)
    assert not (run / "checkpoint-3" / "trainer_state.json").exists()
    monkeypatch.undo()


def test_a_ledger_that_lost_lines_stops_a_resume(config, tmp_path: Path) -> None:
    settings = config(save_strategy="steps", save_steps=5)
    run = train(settings, tmp_path)
    path = run / "dataflex" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(DataFlexError, match="records the run up to step 3, the checkpoint was saved at step"):
        train(settings, tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_steps": 5}, "max_steps (None then, 5 now)"),
        ({"learning_rate": 2e-2}, "learning_rate (0.01 then, 0.02 now)"),
        ({"dataset": "other"}, "dataset (toy then, other now)"),
        ({"update_step": 1}, "schedule"),
        ({"per_device_train_batch_size": 1}, "global_batch (4 then, 2 now)"),
    ],
    ids=str,
)
def test_another_run_in_the_directory_is_refused_and_left_alone(config, tmp_path: Path, changes, named) -> None:
    run = train(config(save_strategy="steps", save_steps=3), tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(DataFlexError) as refusal:
        train(config(save_strategy="steps", save_steps=3, **changes), tmp_path)
    assert named in str(refusal.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_checkpoint_without_our_state_is_refused(config, tmp_path: Path) -> None:
    settings = config(save_strategy="steps", save_steps=3)
    run = train(settings, tmp_path)
    (run / "checkpoint-3" / "dataflex_state.safetensors").unlink()
    with pytest.raises(DataFlexError, match="holds no dataflex_state"):
        train({**settings, "resume_from_checkpoint": str(run / "checkpoint-3")}, tmp_path)


def test_initial_losses_are_shared_between_equal_runs_and_never_with_others(config, tmp_path: Path, capsys) -> None:
    cache = str(tmp_path / "shared")
    first = train(config(output_dir=str(tmp_path / "first")), tmp_path, cache_dir=cache)
    assert "no pass is made" not in capsys.readouterr().out
    again = train(config(output_dir=str(tmp_path / "again")), tmp_path, cache_dir=cache)
    assert "no pass is made" in capsys.readouterr().out
    assert rows_of(first) == rows_of(again)
    assert_same_weights(first, again)
    sources = [line["scoring"] and line["scoring"]["source"] for line in Ledger(again).segments().values()]
    assert sources == [None, "cache", "measured"]

    fresh = train(config(output_dir=str(tmp_path / "fresh")), tmp_path, fresh=True, cache_dir=cache)
    sources = [line["scoring"] and line["scoring"]["source"] for line in Ledger(fresh).segments().values()]
    assert sources == [None, "measured", "measured"], "--fresh serves none"
    assert rows_of(first) == rows_of(fresh)
    capsys.readouterr()

    other = train(config(output_dir=str(tmp_path / "other"), learning_rate=3e-2), tmp_path, cache_dir=cache)
    assert "holds 1 arrays of other weights or other data: none of them is used" in capsys.readouterr().out
    assert [line["scoring"] and line["scoring"]["source"] for line in Ledger(other).segments().values()] == [
        None,
        "measured",
        "measured",
    ]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SafetensorError("I/O error: No space left")], ids=repr)
def test_a_cache_that_cannot_be_written_is_said_and_the_run_goes_on(config, tmp_path: Path, monkeypatch, capsys, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("dataflex.signals.cache.save_file", full)
    run = train(config(), tmp_path)
    assert "the initial losses could not be kept in" in capsys.readouterr().out
    assert Ledger(run).lines()[-1]["kind"] == "end"


def test_the_baseline_can_be_measured_before_the_warm_up(config, tmp_path: Path) -> None:
    run = train(config(), tmp_path, baseline="run_start")
    ledger = Ledger(run)
    lines = ledger.segments()
    sources = [line["scoring"] and line["scoring"]["source"] for line in lines.values()]
    assert sources == ["measured", None, "measured"], "at step 0, not at the first selection, at the guided draw"
    start, first = ledger.signals_of(lines[0])["loss"], ledger.signals_of(lines[1])["initial_loss"]
    assert np.array_equal(start, first), "the first selection draws by the losses of step 0"
    guided = ledger.signals_of(lines[2])
    expected = start.astype(np.float64) - guided["loss"]
    assert np.array_equal(guided["delta"], expected)


def test_losses_at_the_start_serve_every_run_of_the_base_model_whatever_its_adapter(config, tmp_path: Path) -> None:
    cache = {"baseline": "run_start", "cache_dir": str(tmp_path / "shared")}
    first = train(config(output_dir=str(tmp_path / "first")), tmp_path, **cache)
    changes = {"lora_rank": 8, "seed": 8, "learning_rate": 3e-2, "lora_target": "q_proj"}
    other = train(config(output_dir=str(tmp_path / "other"), **changes), tmp_path, **cache)
    one, two = (Ledger(run).segments() for run in (first, other))
    assert [line["scoring"] and line["scoring"]["source"] for line in two.values()] == ["cache", None, "measured"]
    assert np.array_equal(*(Ledger(run).signals_of(k[0])["loss"] for run, k in ((first, one), (other, two))))
    # An adapter that does not start at zero, a module trained beside it: measured anew.
    for number, changes in enumerate([{"pissa_init": True}, {"additional_target": "lm_head"}]):
        run = train(config(output_dir=str(tmp_path / f"third-{number}"), **changes), tmp_path, **cache)
        assert Ledger(run).segments()[0]["scoring"]["source"] == "measured"


def test_the_end_of_a_run_says_what_choosing_cost(config, tmp_path: Path, capsys) -> None:
    run = train(config(), tmp_path)
    end = Ledger(run).lines()[-1]
    scored = [line["scoring"] for line in Ledger(run).segments().values() if line["scoring"]]
    cost = end["choosing"]
    assert cost["num_passes"] == len(scored) == 2
    assert cost["num_tokens"] == sum(scoring["num_tokens"] for scoring in scored)
    assert cost["tokens_per_s"] == pytest.approx(cost["num_tokens"] / cost["scoring_seconds"])
    assert 0 < cost["scoring_seconds"] <= cost["seconds"] < end["seconds"]["running"]
    assert cost["share_of_run"] == pytest.approx(cost["seconds"] / end["seconds"]["running"])
    said = capsys.readouterr().out
    assert f"2 passes, {cost['num_tokens']:,} tokens scored in" in said
    assert f"({scored[0]['tokens_per_s']:,.0f} tokens/s)" in said


def test_replay_trains_a_former_run_again_without_its_method(config, tmp_path: Path) -> None:
    first = train(config(output_dir=str(tmp_path / "first")), tmp_path)
    presets = tmp_path / "components.yaml"
    presets.write_text(json.dumps({"selectors": {"again": {"name": "replay", "params": {"path": str(first)}}}}))
    settings = config(output_dir=str(tmp_path / "again"), component_name="again", components_cfg_file=str(presets))
    again = train(settings, tmp_path)
    assert rows_of(first) == rows_of(again)
    assert_same_weights(first, again)
    with pytest.raises(DataFlexError, match="other data"):
        train({**settings, "dataset": "other", "output_dir": str(tmp_path / "x"), "update_step": 1}, tmp_path)
    with pytest.raises(DataFlexError, match="shorter"):
        train({**settings, "num_train_epochs": 2.0, "output_dir": str(tmp_path / "y")}, tmp_path)


def test_static_with_a_path_trains_the_listed_rows_in_order(config, tmp_path: Path) -> None:
    listed = list(range(20, 4, -1))
    (tmp_path / "rows.json").write_text(json.dumps(listed))
    settings = config(component_name="static", warmup_step=0, num_train_epochs=1.0)
    run = train(settings, tmp_path, path=str(tmp_path / "rows.json"))
    assert [row for rows in rows_of(run) for row in rows] == listed


def test_a_method_of_another_package_is_used_by_its_name(config, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_methods.py").write_text(
        "from dataclasses import dataclass\n"
        "import numpy as np\n"
        "from dataflex.algorithms.base import Selection, SelectorBase\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class First(SelectorBase):\n"
        '    """Always the first rows."""\n'
        "    offset: int = 0\n\n"
        "    def select(self, state, signals, quota, progress, rng):\n"
        "        rows = self.offset + np.arange(quota)\n"
        '        return Selection(rows_Q=rows, decision="first rows", ordered=True), state\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    presets = tmp_path / "components.yaml"
    presets.write_text("mine: {name: 'my_methods:First', params: {offset: 2}}\n")
    run = train(config(component_name="mine", components_cfg_file=str(presets), warmup_step=0), tmp_path)
    assert rows_of(run) == [list(range(2, 10))] * 2


def test_a_cut_run_has_a_smaller_last_quota(config, tmp_path: Path) -> None:
    run = train(config(max_steps=6), tmp_path)
    assert [len(rows) for rows in rows_of(run)] == [12, 8, 4]
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 6


def test_warm_ups_differ_between_cycles_and_repeat_no_row(config, tmp_path: Path) -> None:
    run = train(config(num_train_epochs=2.0), tmp_path)
    warmups = [
        rows for rows, line in zip(rows_of(run), Ledger(run).segments().values(), strict=True) if line["update"] is None
    ]
    assert len(warmups) == 2
    assert warmups[0] != warmups[1]
    assert all(len(set(rows)) == len(rows) for rows in warmups)


def test_the_merged_model_generates_text(config, tiny_model: Path, tmp_path: Path) -> None:
    from llamafactory.train.tuner import export_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = train(config(), tmp_path)
    merged = tmp_path / "merged"
    export_model(
        {
            "model_name_or_path": str(tiny_model),
            "adapter_name_or_path": str(run),
            "template": "default",
            "finetuning_type": "lora",
            "export_dir": str(merged),
            "export_device": "cpu",
        }
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    prompt = tokenizer("the quick fox", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=5, do_sample=False)[0])
    assert len(text) > len("the quick fox")
