"""The verb: what it refuses, what it trains, and that nothing is repeated that is finished."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataflex.cli.compare import Session, compare
from dataflex.cli.compare_plan import read_plan
from dataflex.core.errors import ConfigError, DataFlexError, LedgerError
from dataflex.evaluate.compare import runs

pytestmark = pytest.mark.long


def results(out):
    return json.loads((Path(out) / "results.json").read_text())


def without_seconds(value):
    """Results as far as they are no clock's."""
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k not in ("choosing_s", "training_s")}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


WRONG = {
    "unknown key": ({"componets": []}, "unknown parameter 'componets' \\(did you mean 'components'"),
    "no base": ({"base": None}, "base is missing"),
    "missing base file": ({"base": "nowhere.yaml"}, "cannot be read"),
    "no seeds": ({"seeds": []}, "must hold one or more different whole numbers"),
    "double seed": ({"seeds": [1, 1]}, "must hold one or more different whole numbers"),
    "seed of a word": ({"seeds": ["one"]}, "seeds is"),
    "budget": ({"budget": "step"}, "did you mean 'steps'"),
    "flops at equal steps": ({"flops": 1e9}, "with budget: compute or both"),
    "metric": ({"held_out": {"dataset": "held_out", "metric": "los"}}, "did you mean 'loss'"),
    "nothing held out": ({"held_out": {}}, "name either a dataset or a file"),
    "unknown data set": ({"held_out": {"dataset": "hold_out"}}, "did you mean 'held_out'"),
    "missing file": ({"held_out": {"file": "nowhere.json"}}, "nowhere.json does not exist"),
    "unknown preset": ({"components": ["delta_los"]}, "did you mean 'delta_loss'"),
    "unknown parameter": (
        {"components": [{"component_name": "loss", "params": {"focuss": "high"}}]},
        "did you mean 'focus'",
    ),
    "unknown key of a component": ({"components": [{"component": "loss"}]}, "did you mean 'component_name'"),
    "the same name twice": ({"components": ["loss", "loss"]}, "two components are called 'loss'"),
    "a name that leads elsewhere": ({"components": [{"name": "../x", "component_name": "loss"}]}, "it names a folder"),
    "seed below zero": ({"seeds": [1, -1]}, "each must be from 0 to 4294967295"),
    "held out and trained": ({"held_out": {"dataset": "toy"}}, "'toy' is also trained on"),
    "held-out file that is trained": ({"held_out": {"file": "data/toy.json"}}, "is also trained on"),
    "no held-out rows": ({"held_out": {"dataset": "empty"}}, "is empty"),
    "another model at the end": ({"overrides": {"load_best_model_at_end": True}}, "would replace it by another"),
    "changed weights below": ({"overrides": {"pissa_init": True}}, "leave it out"),
    "launcher with an open quote": ({"launcher": "srun 'x"}, "cannot be split into words"),
    "launcher": ({"launcher": "no-such-program --now"}, "no program that can be found"),
    "host key": ({"overrides": {"learning_rat": 1.0}}, "did you mean 'learning_rate'"),
    "stage": ({"overrides": {"stage": "dpo"}}, "stage sft"),
    "static training": ({"overrides": {"train_type": "static"}}, "needs train_type: dynamic_select"),
    "a quota above the pool": ({"overrides": {"update_step": 30}}, "40"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_in_the_plan_is_one_sentence_before_anything_is_started(case, plan, write, in_process):
    changes, sentence = WRONG[case]
    with pytest.raises(DataFlexError, match=sentence) as error:
        compare(write(plan(**changes)))
    assert "\n" not in str(error.value)
    assert not in_process
    assert not Path("out").exists()


def test_an_empty_held_out_file_is_refused(plan, write, in_process):
    Path("none.json").write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        compare(write(plan(held_out={"file": "none.json"})))


def test_baselines_are_added_and_every_run_has_the_same_steps(plan, write, in_process, capsys):
    assert compare(write(plan(components=["delta_loss"]))) == 0
    assert "always compared, hence added: static, random, length" in capsys.readouterr().out
    methods = results("out")["budgets"]["steps"]["methods"]
    assert list(methods) == ["static", "random", "length", "delta_loss"]
    for name, method in methods.items():
        for run in method["runs"].values():
            assert run["num_steps"] == 7  # 3 + 2 x 2 of the base
            assert list(run["curve"]) == ["4", "7"]
        assert (method["choosing_flops"]["mean"] > 0) == (name == "delta_loss")
    assert not list(Path("out").rglob("checkpoint-*"))
    assert not Path("../dataflex_saves").exists()
    assert {f.name for f in Path("out").glob("results.*")} == {"results.json", "results.md", "results.html"}
    # What is finished is not done again, and the table is the same.
    before = results("out")
    in_process.clear()
    assert compare(write(plan(components=["delta_loss"]))) == 0
    assert in_process == []
    assert results("out") == before


def test_seeds_change_the_runs_and_named_baselines_are_not_added(plan, write, in_process, capsys):
    named = ["static", "random", {"name": "short", "component_name": "shortest"}]
    assert compare(write(plan(components=named))) == 0
    assert "hence added" not in capsys.readouterr().out
    methods = results("out")["budgets"]["steps"]["methods"]
    assert list(methods) == ["static", "random", "short"]
    losses = [run["loss"] for method in methods.values() for run in method["runs"].values()]
    assert len(set(losses)) == 6


def test_another_plan_in_the_same_place_trains_again_and_keeps_what_was_there(plan, write, in_process):
    assert compare(write(plan(seeds=[1]))) == 0
    first = results("out")
    in_process.clear()
    assert compare(write(plan(seeds=[1], overrides={"learning_rate": 1e-3}))) == 0
    assert [what for what in in_process if not what.startswith("measuring")] == [
        f"{method}, seed 1" for method in ("static", "random", "length")
    ]
    assert len(list(Path("out/runs").rglob("steps-7.old-1"))) == 3
    assert results("out")["budgets"] != first["budgets"]
    in_process.clear()
    Path("data/toy.json").write_text(Path("data/toy.json").read_text().replace("fox", "dog"))
    compare(write(plan(seeds=[1], overrides={"learning_rate": 1e-3})))
    assert "random, seed 1" in in_process  # other data under the same name


@pytest.fixture
def preset(tmp_path):
    """Writes a components file of its own with a preset ``mine``."""

    def write_preset(**params):
        (tmp_path / "mine.yaml").write_text(json.dumps({"selectors": {"mine": {"name": "static", "params": params}}}))

    (tmp_path / "scores.json").write_text("[1, 2, 3]")
    write_preset(path="scores.json")
    return write_preset


def edit_mapping():
    """The same rows, read from other columns."""
    path = Path("data/dataset_info.json")
    info = json.loads(path.read_text())
    for entry in info.values():
        entry["columns"] = {"prompt": "output", "response": "instruction"}
    path.write_text(json.dumps(info))


CHANGES = {
    "nothing": (lambda preset, base: None, set()),
    "the preset's parameters": (lambda preset, base: preset(path="scores.json", reuse="always"), {"mine"}),
    "the file that it names": (lambda preset, base: Path("scores.json").write_text("[3, 2, 1]"), {"mine"}),
    "how rows are read": (lambda preset, base: edit_mapping(), {"mine", "random", "held out"}),
    "the template": (lambda preset, base: base.update(template="alpaca"), {"mine", "random", "held out"}),
    "the adapter's weights": (lambda preset, base: Path("adapter/x").write_text("2"), {"mine", "random", "held out"}),
    "the number of ranks": (lambda preset, base: os.environ.update(NPROC_PER_NODE="2"), {"mine", "random"}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_whatever_determines_a_result_makes_it_another(case, plan, write, preset, monkeypatch):
    """What is finished stands for what is asked for only as long as none of this has changed."""
    monkeypatch.setenv("NPROC_PER_NODE", "1")
    change, expected = CHANGES[case]
    Path("adapter").mkdir()
    Path("adapter/x").write_text("1")
    whole = plan(components=["mine"])
    whole["base"] |= {"components_cfg_file": "mine.yaml", "adapter_name_or_path": "adapter"}

    def digests():
        session = Session(read_plan(write(whole)), Path("out"))
        of_runs = {m.label: session._make(m, 1, 7).digest for m in session._plan.methods}
        return {**of_runs, "held out": session._held_out.digest}

    before = digests()
    change(preset, whole["base"])
    after = digests()
    changed = {name for name in ("mine", "random", "held out") if before[name] != after[name]}
    assert changed == expected


@pytest.mark.parametrize("new", [False, True])
def test_adapters_that_training_starts_from_are_measured_with_its_own(new, plan, write, in_process):
    """At a learning rate of nearly nothing the end is the start: neither adapter may be lost on the way."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    whole = plan(seeds=[1], components=["static"], held_out={"dataset": "held_out", "points": 1})
    chain = []
    for number in (1, 2) if new else (1, 2, 3):  # without a new one the last is trained on, those before are merged
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(whole["base"]["model_name_or_path"])
        model = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        )
        model.save_pretrained(f"adapter-{number}")
        chain.append(f"adapter-{number}")
    keys = {"adapter_name_or_path": ",".join(chain), "create_new_adapter": new, "learning_rate": 1e-9}
    losses = {}
    for count in (0, 1, len(chain)):
        given = {**keys, "adapter_name_or_path": ",".join(chain[:count]) or None}
        given = {key: value for key, value in given.items() if value is not None}
        assert compare(write({**whole, "overrides": given, "output_dir": f"out-{count}"})) == 0
        found = results(f"out-{count}")
        losses[count] = found["start"]["loss"]
        for method in found["budgets"]["steps"]["methods"].values():
            assert method["loss"]["mean"] == pytest.approx(losses[count], rel=1e-5)
    assert len({round(loss, 4) for loss in losses.values()}) == 3


def test_a_model_that_was_removed_is_trained_again(plan, write, in_process):
    assert compare(write(plan(seeds=[1]))) == 0
    before = results("out")
    shutil.rmtree("out/runs/random/seed-1/steps-7/model")
    in_process.clear()
    assert compare(write(plan(seeds=[1]))) == 0
    assert in_process == ["random, seed 1", "measuring random, seed 1"]  # not what the former model was measured at
    assert without_seconds(results("out")["budgets"]["steps"]["differences"]) == without_seconds(
        before["budgets"]["steps"]["differences"]
    )


def test_at_equal_compute_the_cheap_train_longer_and_all_spend_nearly_the_same(plan, write, in_process):
    assert compare(write(plan(components=["delta_loss"], seeds=[1], budget="both"))) == 0
    found = results("out")["budgets"]
    lengths = found["compute"]["aim"]["num_steps"]
    assert lengths["delta_loss"] == 7  # the dearest sets the budget
    assert lengths["random"] > 7
    assert lengths["static"] > 7
    spent = {
        m: r["choosing_flops"]["mean"] + r["training_flops"]["mean"] for m, r in found["compute"]["methods"].items()
    }
    for total in spent.values():  # a step is 4 rows, whose lengths differ
        assert total == pytest.approx(found["compute"]["aim"]["flops"], rel=0.15)
    # The learning rate of the longer run ends where its own steps end.
    folder = next(Path(f"out/runs/random/seed-1/steps-{lengths['random']}").glob("model"))
    log = json.loads((folder / "trainer_state.json").read_text())
    assert log["global_step"] == lengths["random"]
    rates = [entry["learning_rate"] for entry in log["log_history"] if "learning_rate" in entry]
    assert rates[-1] < 0.05 * max(rates)


def test_exact_match_can_be_what_is_compared_from_a_file(plan, write, in_process):
    rows = json.loads(Path("data/held_out.json").read_text())
    Path("mine.json").write_text(json.dumps(rows))
    assert compare(write(plan(seeds=[1], held_out={"file": "mine.json", "metric": "exact_match", "points": 1}))) == 0
    found = results("out")
    assert found["metric"] == "exact_match"
    assert "exact match" in found["budgets"]["steps"]["differences"][0]["sentence"]


def test_a_second_comparison_in_the_same_place_is_refused(plan, write, in_process, tmp_path):
    (tmp_path / "out").mkdir()
    hold = (
        "import sys, time; from pathlib import Path; from dataflex.ledger import lock; "
        "lock.take(Path(sys.argv[1])); print(1, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "out" / ".compare.lock")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(LedgerError, match="being written by another run"):
            compare(write(plan()))
    finally:
        other.kill()
        other.wait()


def test_a_failed_run_is_told_the_others_go_on_and_the_next_start_tries_it_again(
    plan, write, in_process, capsys, monkeypatch
):
    whole = runs._run

    def failing(command, log, what):
        if what == "length, seed 2":
            log.write_text("some lines\ndataflex-cli: error: the disk is full\n")
            return f"{what} failed (exit code 2): {runs._last_line(log)}; the whole log: {log}"
        return whole(command, log, what)

    monkeypatch.setattr(runs, "_run", failing)
    assert compare(write(plan())) == 1
    told = capsys.readouterr().out
    assert "length, seed 2 failed (exit code 2): the disk is full; the whole log: " in told
    assert "| length (1 failed) |" in told
    methods = results("out")["budgets"]["steps"]["methods"]
    assert methods["length"]["failed"] == [2]
    assert [len(m["runs"]) for m in methods.values()] == [2, 2, 2]
    monkeypatch.setattr(runs, "_run", whole)
    in_process.clear()
    assert compare(write(plan())) == 0
    assert in_process == ["length, seed 2", "measuring length, seed 2"]


def test_a_launcher_that_returns_at_once_finishes_nothing(plan, write, in_process, monkeypatch, capsys):
    """As sbatch does, whose job runs later."""
    whole = runs._run
    monkeypatch.setattr(runs, "_run", lambda command, log, what: None)
    with pytest.raises(
        DataFlexError, match=r"the model to start from failed: its command ended before .* a launcher that"
    ):
        compare(write(plan(seeds=[1], launcher="env")))
    monkeypatch.setattr(
        runs, "_run", lambda command, log, what: None if "train" in command else whole(command, log, what)
    )
    assert compare(write(plan(seeds=[1], launcher="env"))) == 1
    assert (
        "random, seed 1 failed: its command ended before step 7 was trained; name a launcher" in capsys.readouterr().out
    )
    assert not list(Path("out").rglob("finished.json"))
    monkeypatch.setattr(runs, "_run", whole)
    assert compare(write(plan(seeds=[1], launcher="env"))) == 0


def test_a_run_whose_record_is_damaged_is_told_and_the_others_stand(plan, write, in_process, capsys):
    assert compare(write(plan(seeds=[1]))) == 0
    ledger = Path("out/runs/random/seed-1/steps-7/model/dataflex/ledger.jsonl")
    ledger.write_text(ledger.read_text().replace('"start":0', '"start":1', 1).replace('"start": 0', '"start": 1', 1))
    assert compare(write(plan(seeds=[1]))) == 1
    assert "random, seed 1 failed: " in capsys.readouterr().out
    assert results("out")["budgets"]["steps"]["methods"]["static"]["failed"] == []


@pytest.mark.parametrize("name", ["near", "less"])
def test_an_interruption_makes_no_method_cheaper(name, plan, write, in_process, monkeypatch):
    """Embeddings and gradients that were measured before a kill are on the disk, and were paid for all the same."""
    from dataflex.train.curator import Curator

    rows = [{"instruction": "the moon", "input": "", "output": "runs over"}] * 3
    Path("data/aim.json").write_text(json.dumps(rows))
    info = json.loads(Path("data/dataset_info.json").read_text())
    Path("data/dataset_info.json").write_text(json.dumps({**info, "aim": {"file_name": "aim.json"}}))
    whole = plan(seeds=[1], components=[name], overrides={"target": "aim"})
    assert compare(write({**whole, "output_dir": "through"})) == 0
    choose, finished = Curator._choose, runs._run

    def killed(self, segment, *rest):
        if self.method.name == name and not segment.is_warmup:
            raise KeyboardInterrupt
        return choose(self, segment, *rest)

    monkeypatch.setattr(Curator, "_choose", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(write(whole))
    monkeypatch.setattr(Curator, "_choose", choose)
    monkeypatch.setattr(runs, "_run", finished)
    assert compare(write(whole)) == 0
    costs = [results(out)["budgets"]["steps"]["methods"][name]["runs"]["1"] for out in ("through", "out")]
    assert costs[0]["choosing_flops"] == costs[1]["choosing_flops"] > 0
    assert costs[0]["num_passes"] == costs[1]["num_passes"]


def test_a_process_that_fails_gives_its_last_line_and_one_that_cannot_start_its_reason(tmp_path):
    log = tmp_path / "log"
    code = "import sys; print('first'); sys.exit('dataflex-cli: error: the last words')"
    told = runs._run([sys.executable, "-c", code], log, "random, seed 3")
    assert told == f"random, seed 3 failed (exit code 1): the last words; the whole log: {log}"
    killed = runs._run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log, "x")
    assert killed is not None
    assert "(signal 9)" in killed
    assert "cannot be started" in (runs._run([str(tmp_path / "no")], log, "x") or "")


def test_killed_anywhere_and_started_again_it_gives_the_same_table(plan, write, in_process, tmp_path):
    """Real processes, killed with SIGKILL while they train and while they measure; the reference runs through.

    All three instants with DATAFLEX_FAULTS=long, each start being 20 seconds of imports; else the last.
    """
    config = plan(components=["static", "delta_loss", "random", "longest"], seeds=[1])
    assert compare(write({**config, "output_dir": str(tmp_path / "whole")})) == 0
    out = tmp_path / "out"
    (tmp_path / "launch.sh").write_text('echo "$@" >> launched.txt\nexec "$@"\n')
    path = write({**config, "launcher": f"sh {tmp_path}/launch.sh"})  # how a run is started is no part of what it is
    model = out / "runs" / "{}" / "seed-1" / "steps-7" / "model"
    instants = [
        lambda: Path(str(model).format("static"), "checkpoint-4").exists(),
        lambda: (out / "runs/static/seed-1/steps-7/measure.json").exists(),
        lambda: Path(str(model).format("delta_loss"), "dataflex/signals/000001.parquet").exists(),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for is_there in instants if os.environ.get("DATAFLEX_FAULTS") == "long" else instants[-1:]:
        process = subprocess.Popen([sys.executable, "-m", "dataflex.cli.main", "compare", path], env=env)
        until = time.monotonic() + 300
        while not is_there() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert is_there()
        assert not (out / "results.json").exists()
    launched = (tmp_path / "launched.txt").read_text()
    assert "dataflex.cli.main train" in launched
    assert "dataflex.evaluate.compare.measure" in launched
    in_process.clear()
    assert compare(path) == 0
    assert "static, seed 1" not in in_process  # it had been trained before the second kill
    assert without_seconds(results(out)) == without_seconds(results(tmp_path / "whole"))
