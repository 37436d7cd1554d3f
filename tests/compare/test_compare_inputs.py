"""What a comparison reads: held-out rows that nobody has seen, baselines, and a config that measures."""

import json
import sys
from pathlib import Path

import pytest

from dataflex.cli.compare import Session
from dataflex.cli.compare_inputs import check_held_out
from dataflex.cli.compare_plan import measuring_config, read_plan, sized
from dataflex.core.errors import ConfigError, DataFlexError


def add_entry(name, **entry):
    path = Path("data/dataset_info.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), name: entry}))


def rows_of(name):
    return json.loads(Path(f"data/{name}.json").read_text())


def with_target(plan, name="aim", **changes):
    Path("data/aim.json").write_text(json.dumps([{"instruction": "the moon", "input": "", "output": "runs over"}] * 3))
    add_entry("aim", file_name="aim.json")
    return plan(components=["near"], overrides={"target": name}, **changes)


def test_the_same_file_under_another_name_is_trained_on(plan, write):
    add_entry("alias", file_name="toy.json")
    with pytest.raises(ConfigError, match=r"toy\.json' is also trained on"):
        read_plan(write(plan(held_out={"dataset": "alias"})))
    add_entry("other_split", file_name="toy.json", split="test")
    with pytest.raises(ConfigError, match="all 40 rows are trained on as well"):  # a file has no splits: its rows tell
        read_plan(write(plan(held_out={"dataset": "other_split"})))


def test_another_split_of_a_folder_that_is_trained_on_is_held_out(plan, write):
    Path("data/parts").mkdir()
    for split in ("train", "test"):
        Path(f"data/parts/{split}.json").write_text(json.dumps(rows_of("toy")))
        add_entry(split, file_name="parts", split=split)
    base = {"dataset": "train", "dataset_dir": "data"}
    check_held_out(base, "test", None)
    add_entry("alias", file_name="parts")
    with pytest.raises(ConfigError, match="is also trained on"):
        check_held_out(base, "alias", None)


def test_the_target_is_no_held_out_set(plan, write):
    with pytest.raises(ConfigError, match="'held_out' is the target as well"):
        read_plan(write(with_target(plan, name="held_out")))
    add_entry("alias", file_name="held_out.json")
    with pytest.raises(ConfigError, match=r"held_out\.json' is the target as well"):
        read_plan(write(plan(components=["near"], overrides={"target": "alias"})))


def test_held_out_rows_that_are_rows_of_the_pool_are_counted_whatever_their_columns_are_called(plan, write):
    assert read_plan(write(plan())).num_held_out_trained == 0
    renamed = [{"q": row["instruction"], "a": row["output"]} for row in rows_of("toy")[:4]] + rows_of("held_out")
    Path("data/renamed.json").write_text(json.dumps(renamed))
    add_entry("renamed", file_name="renamed.json", columns={"prompt": "q", "response": "a"})
    assert read_plan(write(plan(held_out={"dataset": "renamed"}))).num_held_out_trained == 4
    for name in ("part.jsonl", "part.json"):  # one row a line under either ending
        Path(name).write_text("\n".join(json.dumps(row) for row in rows_of("toy")[:4]))
        with pytest.raises(ConfigError, match="all 4 rows are trained on as well"):
            read_plan(write(plan(held_out={"file": name})))


def test_a_folder_can_be_a_held_out_set(plan, write):
    Path("data/folder").mkdir()
    add_entry("folder", file_name="folder")
    with pytest.raises(ConfigError, match="folder is empty"):
        read_plan(write(plan(held_out={"dataset": "folder"})))
    Path("data/folder/rows.json").write_text(json.dumps(rows_of("held_out")))
    read_plan(write(plan(held_out={"dataset": "folder"})))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"components": ["near"]}, "near chooses what serves a target, and none is named"),
        ({"components": ["less"]}, "less chooses what serves a target, and none is named"),
        ({"overrides": {"model_name_or_path": "./no/such"}}, "'./no/such' does not exist"),
        ({"overrides": {"model_name_or_path": "no/such/model"}}, "'no/such/model' does not exist"),
        ({"overrides": {"tokenized_path": "cache"}}, "tokenized_path is set"),
        ({"overrides": {"early_stopping_steps": 2}}, "different numbers of steps"),
    ],
)
def test_what_would_end_a_run_later_is_said_before(changes, sentence, plan, write):
    with pytest.raises(DataFlexError, match=sentence):
        read_plan(write(plan(**changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {"val_size": 0.2, "eval_strategy": "steps", "eval_steps": 2},
        {"eval_dataset": "held_out", "eval_strategy": "epoch", "eval_on_each_dataset": True},
        {"eval_dataset": "held_out", "do_eval": True, "compute_accuracy": True},
        {"val_size": 0.2, "do_predict": True, "predict_with_generate": True},
    ],
    ids=str,
)
def test_a_base_that_evaluates_while_it_trains_can_be_measured(changes, plan, write, tmp_path):
    from llamafactory.hparams import get_train_args

    config = measuring_config(read_plan(write(plan(overrides=changes))), tmp_path)
    assert get_train_args(config)[1].dataset == ["held_out"]


def test_the_seed_of_a_run_is_the_plans_alone(plan, write):
    comparison = read_plan(write(plan(overrides={"data_seed": 3, "seed": 4})))
    for method in comparison.methods:
        assert not {"data_seed", "seed"} & sized(method, 7, 2).keys()


def digests(text):
    session = Session(read_plan(text), Path("out"))
    return {m.label: session._make(m, 1, 7).digest for m in session._plan.methods}


def test_the_target_and_the_code_of_a_method_of_ones_own_are_part_of_what_a_run_is(plan, write, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(tmp_path))
    code = (
        "from dataclasses import dataclass\n"
        "from dataflex.algorithms.select.random import Random\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Random):\n"
        "    source = 'a test'\n"
    )
    Path("its_module.py").write_text(code)
    Path("mine.yaml").write_text(json.dumps({"selectors": {"mine": {"name": "its_module:Mine"}, "near": None}}))
    whole = with_target(plan)
    whole["components"].append("mine")
    whole["base"]["components_cfg_file"] = "mine.yaml"
    before = digests(write(whole))
    Path("its_module.py").write_text(code + "    # changed\n")
    after = digests(write(whole))
    assert [label for label in before if before[label] != after[label]] == ["mine"]
    Path("data/aim.json").write_text(Path("data/aim.json").read_text().replace("moon", "bird"))
    again = digests(write(whole))
    assert [label for label in after if after[label] != again[label]] == ["near"]
    sys.modules.pop("its_module", None)


def test_the_weights_of_a_reference_are_part_of_what_a_run_is(plan, write):
    Path("reference").mkdir()
    Path("reference/model.safetensors").write_text("1")
    presets = {"selectors": {"rho_loss": {"name": "rho_loss", "params": {"reference": "reference"}}}}
    Path("mine.yaml").write_text(json.dumps(presets))
    whole = plan(components=["rho_loss"], overrides={"components_cfg_file": "mine.yaml"})
    before = digests(write(whole))
    Path("reference/model.safetensors").write_text("2")
    after = digests(write(whole))
    assert [label for label in before if before[label] != after[label]] == ["rho_loss"]


def test_baselines_of_a_base_with_a_weigher_are_of_the_same_file_as_the_weigher(plan, write):
    presets = {"selectors": {"loss": None}, "weighters": {"mine": {"name": "loss"}}}
    Path("mine.yaml").write_text(json.dumps(presets))
    changes = {"components": ["loss"], "overrides": {"components_cfg_file": "mine.yaml", "weigh": "mine"}}
    with pytest.raises(ConfigError, match=r"add to its selectors static: \{name: static\}"):
        read_plan(write(plan(**changes)))
    named = {"static": {"name": "static"}, "random": {"name": "random"}, "longest": {"name": "length"}}
    Path("mine.yaml").write_text(json.dumps({**presets, "selectors": {"loss": None, **named}}))
    methods = read_plan(write(plan(**changes))).methods
    assert [method.parsed.deciding.weighers[0].name for method in methods] == ["loss"] * 4


def test_a_seed_that_is_added_changes_no_length_of_equal_compute(plan, write):
    """Prices differ a little by seed: tokens of the rows do."""

    def made_up(num_seeds):
        def run(seed, choosing):
            return {
                "num_passes": 2 if choosing else 0,
                "num_steps": 7,
                "choosing_flops": choosing * (1 + seed / 50),
                "training_flops": 7e6 * (1 - seed / 30),
            }

        seeds = range(1, num_seeds + 1)
        costs = {"static": 0.0, "random": 0.0, "length": 0.0, "delta_loss": 8e6}
        methods = {m: {"runs": {str(seed): run(seed, cost) for seed in seeds}} for m, cost in costs.items()}
        session = Session(
            read_plan(write(plan(components=["delta_loss"], seeds=list(seeds), budget="both"))), Path("out")
        )
        return session._lengths({"methods": methods})

    budget, lengths = made_up(1)
    assert made_up(3) == (budget, lengths)
    assert lengths["random"] > lengths["delta_loss"] == 7
