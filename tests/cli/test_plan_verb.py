"""``plan``: what a run will do and cost, and every reason why it could not."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_configs import changed, write_config
from test_forecast import recorded

from dataflex.cli.plan import plan
from dataflex.cli.pool_size import pool_size
from dataflex.core.errors import ConfigError, DataFlexError

pytestmark = pytest.mark.usefixtures("without_llamafactory")


def write_data(num_rows: int = 100, name: str = "toy.json", **info: Any) -> None:
    rows = [{"instruction": f"ask {i}", "input": "", "output": "line one\nline two"} for i in range(num_rows)]
    data = Path("data")
    data.mkdir(exist_ok=True)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), data / name)
    elif name.endswith(".jsonl") or name.startswith("lines"):
        (data / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    else:
        (data / name).write_text(json.dumps(rows), encoding="utf-8")
    path = data / "dataset_info.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, name.split(".")[0]: {"file_name": name, **info}}))


def planned(capsys: pytest.CaptureFixture, config: dict[str, Any], *overrides: str) -> str:
    plan(write_config(Path(), config), list(overrides))
    return capsys.readouterr().out


def refused(config: dict[str, Any]) -> str:
    with pytest.raises(DataFlexError) as caught:
        plan(write_config(Path(), config), [])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_documented_schedule(capsys: pytest.CaptureFixture) -> None:
    write_data(1000)
    lines = words(planned(capsys, changed()))
    assert lines == [
        "delta_loss: 30 optimizer steps of 1 samples (1 ranks x 1 micro-batches x 1); pool: about 1,000 rows "
        "(raw rows counted, before bad ones are dropped)",
        "segment steps samples decision window (share) scores",
        "0 0-10 10 warm-up (uniform) - -",
        "1 10-20 10 first (uniform) - the pool",
        "2 20-30 10 guided 0.7946 to 0.9946 the pool",
        "Scoring: 2 passes over 1,000 rows = 2,000 forward rows; training: 30 rows at 2 forwards each (lora). Choosing "
        "costs 3333% of the training's compute (97% of the whole run).",
        "Note: scoring the whole pool at each decision costs 3333% of the training's FLOPs; score_budget: 0.1 would "
        "cost 10%, with losses that are estimated for the most part.",
        "How long that takes: --like RUN_DIR, an earlier run on this machine.",
    ]


def test_nothing_is_written(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    write_data()
    path = write_config(Path(), changed())
    before = sorted(tmp_path.rglob("*"))
    plan(path, [])
    assert sorted(tmp_path.rglob("*")) == before
    capsys.readouterr()


def test_quotas_follow_the_geometry_and_the_last_segment_is_cut(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(1000)
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("NPROC_PER_NODE", "3")
    text = planned(capsys, changed(per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1.2))
    lines = words(text)
    assert "36 optimizer steps of 24 samples (6 ranks x 2 micro-batches x 2)" in lines[0]
    assert [line.split()[:3] for line in lines[2:6]] == [
        ["0", "0-10", "240"],
        ["1", "10-20", "240"],
        ["2", "20-30", "240"],
        ["3", "30-36", "144"],
    ]


def test_full_training_costs_three_forwards_a_row(capsys: pytest.CaptureFixture) -> None:
    write_data(60)
    text = planned(capsys, changed(finetuning_type="full", per_device_train_batch_size=4, update_times=1))
    assert "training: 80 rows at 3 forwards each (full). Choosing costs 25% of the training's compute (20%" in " ".join(
        text.split()
    )


@pytest.mark.parametrize("component", ["random", "static"])
def test_a_method_without_a_pass_costs_nothing(capsys: pytest.CaptureFixture, component: str) -> None:
    write_data(100)
    text = planned(capsys, changed(component_name=component))
    assert "No pass over the pool" in text
    if component == "static":
        assert "100 optimizer steps" in text
        assert "host order" in text


def test_a_baseline_at_the_start_is_a_pass_at_the_start(capsys: pytest.CaptureFixture) -> None:
    write_data(100)
    lines = words(planned(capsys, changed(), "component.params.baseline=run_start"))
    assert lines[2].endswith("the pool")
    assert lines[3].endswith(" -")


def test_a_budget_says_what_it_buys(capsys: pytest.CaptureFixture) -> None:
    write_data(1000)
    text = planned(capsys, changed(score_budget=0.5, update_step=100, update_times=4, finetuning_type="full"))
    lines = words(text)
    assert "0 0-10 10 warm-up (uniform) - the pool" in lines  # the initial losses of step 0
    assert "1 10-110 100 first (uniform) - -" in lines
    assert (
        "score_budget 0.5: scoring costs at most 50.0% of the training's FLOPs, full scoring would cost 325%; losses "
        "that are not measured are estimated. Initial losses are those of step 0 (baseline: run_start). That buys 615 "
        "forward rows for 4 decisions, about 154 each."
    ) in " ".join(text.split())
    assert "initial losses of all 1,000 rows are not affordable" in text
    assert "Note: scoring the whole pool" not in text


def test_a_budget_that_affords_the_initial_losses_or_nothing(capsys: pytest.CaptureFixture) -> None:
    write_data(100)
    rich = planned(capsys, changed(score_budget=5, update_step=30, update_times=20))
    assert "The initial losses of all 100 rows are measured first" in rich
    poor = planned(capsys, changed(score_budget=0.05, update_step=10, update_times=2))
    assert "fewer than 16 rows can be scored" in poor


@pytest.mark.parametrize(("value", "said"), [(-1, "score_budget is -1"), ("tenth", "score_budget is 'tenth'")])
def test_a_budget_that_is_none(value: Any, said: str) -> None:
    write_data()
    assert said in refused(changed(score_budget=value))


def test_a_budget_for_a_method_that_scores_nothing() -> None:
    write_data()
    assert "measures no losses of the pool that it could limit" in refused(
        changed(score_budget=0.1, component_name="random")
    )


def test_updates_until_the_end(capsys: pytest.CaptureFixture) -> None:
    write_data(95)
    lines = words(planned(capsys, changed(update_times=0, per_device_train_batch_size=2, warmup_step=0)))
    assert "48 optimizer steps" in lines[0]
    assert [line.split()[1] for line in lines[2:7]] == ["0-10", "10-20", "20-30", "30-40", "40-48"]
    # tau is the share of the run's updates already made: 0, 1/5, 2/5 ...
    starts = [float(line.split()[4]) for line in lines[3:7]]
    assert starts == pytest.approx([0.8 / (1 + math.exp(-10 * (t / 5 - 0.5))) for t in range(1, 5)], abs=1e-4)


def test_a_long_run_is_shown_in_part_but_counted_whole(capsys: pytest.CaptureFixture) -> None:
    write_data(100)
    text = planned(capsys, changed(update_times=100, update_step=1))
    assert "... and 61 more segments" in text
    assert "Scoring: 100 passes" in text


def test_static_says_so(capsys: pytest.CaptureFixture) -> None:
    assert "train_type is static" in planned(capsys, changed(train_type="static"))


# the size of the pool


@pytest.mark.parametrize("name", ["toy.json", "toy.jsonl", "toy.parquet", "lines.json"])
def test_rows_are_counted_in_every_format(name: str) -> None:
    write_data(37, name)
    assert pool_size({"dataset": name.split(".")[0], "dataset_dir": "data"}).num_rows == 37


@pytest.mark.parametrize("names", ["toy,other", "toy, other", ["toy", "other"]])
def test_several_sets_add_up(names: Any) -> None:
    write_data(37)
    write_data(12, "other.jsonl")
    assert pool_size({"dataset": names, "dataset_dir": "data"}).num_rows == 49
    limited = pool_size({"dataset": names, "dataset_dir": "data", "max_samples": 20})
    assert limited.num_rows == 32, "the limit is for each set"


@pytest.mark.parametrize(("val_size", "left"), [(0.1, 90), (0.101, 89), (7, 93), (0, 100)])
def test_what_is_held_out_is_not_in_the_pool(val_size: float, left: int) -> None:
    write_data(100)
    assert pool_size({"dataset": "toy", "dataset_dir": "data", "val_size": val_size}).num_rows == left


def test_num_samples_of_the_data_set_counts() -> None:
    write_data(100, num_samples=250)
    assert pool_size({"dataset": "toy", "dataset_dir": "data"}).num_rows == 250


@pytest.mark.parametrize("val_size", [100, 500])
def test_holding_out_everything_leaves_no_pool(val_size: int) -> None:
    write_data(100)
    with pytest.raises(ConfigError):
        pool_size({"dataset": "toy", "dataset_dir": "data", "val_size": val_size})


def test_an_empty_set_is_an_error() -> None:
    write_data(0)
    with pytest.raises(ConfigError, match="toy is empty"):
        pool_size({"dataset": "toy", "dataset_dir": "data"})


@pytest.mark.parametrize("dataset", [None, "", [], 5, 1.5, True, {"toy": 1}, ["toy", 3]])
def test_a_data_set_that_is_none(dataset: Any) -> None:
    write_data(3)
    host = {"dataset": dataset, "dataset_dir": "data"}
    if dataset == {"toy": 1}:  # a mapping is read as its names, or refused
        return
    with pytest.raises(ConfigError):
        pool_size(host)


def test_an_unknown_set_is_answered_with_the_known_ones() -> None:
    write_data(3)
    with pytest.raises(ConfigError, match=r"'toi' is not in .*; known: toy"):
        pool_size({"dataset": "toi", "dataset_dir": "data"})


UNREADABLE = {
    "no dataset_info.json": lambda data: (data / "dataset_info.json").unlink(),
    "a broken dataset_info.json": lambda data: (data / "dataset_info.json").write_text("{"),
    "binary dataset_info.json": lambda data: (data / "dataset_info.json").write_bytes(b"\xff\xfe{"),
    "a missing file": lambda data: (data / "toy.json").unlink(),
    "a hub set": lambda data: (data / "dataset_info.json").write_text('{"toy": {"hf_hub_url": "a/b"}}'),
    "a folder": lambda data: (data / "dataset_info.json").write_text('{"toy": {"file_name": "."}}'),
    "another format": lambda data: (data / "dataset_info.json").write_text('{"toy": {"file_name": "toy.csv"}}'),
    "a mapping in the file": lambda data: (data / "toy.json").write_text('{"rows": []}'),
    "a binary file": lambda data: (data / "toy.json").write_bytes(b"\xff\xfe\x00\x81"),
    "a broken parquet": lambda data: (
        (data / "toy.parquet").write_bytes(b"PAR1 no"),
        (data / "dataset_info.json").write_text('{"toy": {"file_name": "toy.parquet"}}'),
    ),
}


@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_where_rows_cannot_be_counted_the_cost_is_for_a_thousand(capsys: pytest.CaptureFixture, damage) -> None:
    write_data(3)
    (Path("data") / "toy.csv").write_text("a,b\n1,2\n")
    damage(Path("data"))
    text = " ".join(planned(capsys, changed()).split())
    assert "size unknown" in text
    assert "2 passes over each 1,000 pool rows = 2,000 forward rows" in text


@pytest.mark.parametrize("info", ["[]", '{"toy": "toy.json"}', '{"toy": null}', '"toy"', '{"toy": {"file_name": 5}}'])
def test_a_dataset_info_of_another_shape_is_no_traceback(capsys: pytest.CaptureFixture, info: str) -> None:
    write_data(30)
    (Path("data") / "dataset_info.json").write_text(info)
    with contextlib.suppress(ConfigError):  # a sentence will do
        planned(capsys, changed())


@pytest.mark.parametrize("changes", [{"component_name": "static"}, {"update_times": 0}, {"update_times": -1}])
def test_a_run_whose_length_depends_on_the_pool_needs_its_size(changes: dict[str, Any]) -> None:
    assert "depends on the size of the pool" in refused(changed(**changes))


def test_an_unknown_pool_is_no_hindrance_where_the_length_is_fixed(capsys: pytest.CaptureFixture) -> None:
    assert "7 optimizer steps" in planned(capsys, changed(update_times=0, train_step=7))


# refused


def test_a_quota_above_the_pool_is_an_error() -> None:
    write_data(9)
    assert "quota of 10 samples until the next update is larger than the 9" in refused(changed())


def test_a_quota_above_what_is_left_after_holding_out() -> None:
    write_data(10)
    assert "larger than the 9" in refused(changed(val_size=0.1))


def test_a_quota_above_the_pool_is_fine_with_replacement_and_in_the_warmup(capsys: pytest.CaptureFixture) -> None:
    write_data(9)
    assert "30 optimizer steps" in planned(capsys, changed(), "component.params.replacement=true")
    assert "14 optimizer steps" in planned(capsys, changed(update_step=2))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("per_device_train_batch_size", 0),
        ("per_device_train_batch_size", "2"),
        ("per_device_train_batch_size", 1.5),
        ("per_device_train_batch_size", True),
        ("gradient_accumulation_steps", -1),
        ("gradient_accumulation_steps", [1]),
        ("num_train_epochs", 0),
        ("num_train_epochs", "three"),
        ("max_steps", "7"),
        ("max_samples", 1.5),
        ("val_size", "10%"),
    ],
)
def test_a_number_that_is_none(key: str, value: Any) -> None:
    write_data()
    refused(changed(**{key: value}))


@pytest.mark.parametrize("text", [".inf", ".nan", "-.inf"])
@pytest.mark.parametrize(
    "key", ["per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_samples", "val_size"]
)
def test_a_number_that_is_not_finite(key: str, text: str) -> None:
    write_data()
    with pytest.raises(DataFlexError):
        plan(write_config(Path(), changed()), [f"{key}={text}"])


@pytest.mark.parametrize(("name", "value"), [("NNODES", "two"), ("NPROC_PER_NODE", "all")])
def test_a_launch_variable_that_is_no_number(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    write_data()
    monkeypatch.setenv(name, value)
    with pytest.raises(DataFlexError, match=name):
        plan(write_config(Path(), changed()), [])


def test_an_unknown_key_is_found_before_anything_else() -> None:
    assert "unknown key 'learning_rat' (did you mean 'learning_rate'?)" in refused(changed(learning_rat=1))


def test_the_integration_was_not_needed() -> None:
    assert not hasattr(sys.modules["dataflex.integrations.llamafactory"], "__file__")


def test_the_seconds_come_from_an_earlier_run(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    write_data(1000)
    plan(write_config(Path(), changed()), [], recorded(tmp_path / "earlier"))
    text = " ".join(capsys.readouterr().out.split())
    assert "2 passes = 100,000 tokens in 200.0 s, training 15.0 s; choosing takes 93% of the run's time." in text
