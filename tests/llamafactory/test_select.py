"""``dataflex-cli select``: one decision without training, written so that LLaMA-Factory reads it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflex.cli.audit import audit
from dataflex.cli.select import select
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import make_rows, train, write_data


@pytest.fixture
def choose(config, tmp_path: Path):
    """Run the verb; returns the rows of the file."""

    def run(name: str = "chosen.jsonl", *, out_dir: Path = tmp_path, **options: Any) -> list[dict[str, Any]]:
        asked = {key: options.pop(key, None) for key in ("take", "update", "baseline")}
        asked["take"] = asked["take"] and str(asked["take"])
        overwrite = options.pop("overwrite", False)
        path = tmp_path / "select.yaml"
        path.write_text(json.dumps(config(**options)))
        select(str(path), [], out=str(out_dir / name), overwrite=overwrite, **asked)
        return read(out_dir / name)

    return run


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def printed_entry(text: str) -> dict[str, Any]:
    return json.loads(text[text.rindex("\n{\n") :])


def left_behind(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_it_is_the_decision_that_training_would_make_with_this_model(choose, config, tmp_path: Path) -> None:
    settings = {"component_name": "loss", "warmup_step": 0}
    run = train(config(**settings), tmp_path)
    ledger = Ledger(run)
    rows = choose(**settings)
    assert [row["dataflex_row"] for row in rows] == ledger.rows_of(ledger.segments()[0]).tolist()
    losses_N = ledger.signals_of(ledger.segments()[0])["loss"]
    assert np.allclose([row["dataflex_loss"] for row in rows], losses_N[[r["dataflex_row"] for r in rows]], rtol=1e-5)
    assert not (tmp_path / "chosen.jsonl.record" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", ["chosen.jsonl", "chosen.parquet"])
def test_the_file_holds_the_raw_rows_and_why_and_is_trained_on_again(
    choose, config, tmp_path: Path, capsys, name: str
) -> None:
    rows = choose(name, component_name="loss", take=12)
    raw = make_rows(37)
    assert len(rows) == 12
    for row in rows:
        reasons = {key: row.pop(key) for key in list(row) if key.startswith("dataflex_")}
        assert row == raw[reasons["dataflex_row"]], "no row of this data set is dropped, so that positions agree"
        assert reasons.keys() == {"dataflex_row", "dataflex_loss", "dataflex_weight"}
        assert round(reasons["dataflex_weight"], 9) in (1, 5)
    entry = printed_entry(capsys.readouterr().out)
    (tmp_path / "dataset_info.json").write_text(json.dumps(entry))
    run = train(config(dataset="chosen", dataset_dir=str(tmp_path), update_step=1, warmup_step=1), tmp_path)
    assert pq.read_table(run / "dataflex" / "rows.parquet")["dataflex_row"].to_pylist() == [
        row["dataflex_row"] for row in read(tmp_path / name)
    ]


def test_delta_loss_compares_with_the_losses_of_a_run_and_is_verified(choose, config, tmp_path: Path, capsys) -> None:
    run = train(config(), tmp_path)
    rows = choose(adapter_name_or_path=str(run), baseline=str(run), take=None)
    assert len(rows) == 8
    initial_N = Ledger(run).signals_of(Ledger(run).segments()[1])["loss"]
    record = tmp_path / "chosen.jsonl.record"
    columns_N = Ledger(record).signals_of(Ledger(record).segments()[0])
    assert np.array_equal(columns_N["initial_loss"], initial_N)
    assert np.array_equal(columns_N["delta"], initial_N.astype(np.float64) - columns_N["loss"].astype(np.float64))
    for row in rows:
        assert row["dataflex_delta"] == pytest.approx(row["dataflex_initial_loss"] - row["dataflex_loss"], abs=1e-6)
    capsys.readouterr()
    assert audit([str(record)], False) == 0
    said = capsys.readouterr().out
    assert "verified" in said
    assert "not derived again" not in said
    assert (record / "dataflex" / "report.html").stat().st_size > 1000


def test_initial_losses_come_from_a_selection_or_a_file_too(choose, tmp_path: Path) -> None:
    choose("base.jsonl", component_name="loss")
    losses_N = Ledger(tmp_path / "base.jsonl.record").signals_of({**_line(tmp_path / "base.jsonl.record")})["loss"]
    np.save(tmp_path / "losses.npy", losses_N.astype(np.float64))
    one = choose("one.jsonl", baseline=str(tmp_path / "base.jsonl.record"), take=6)
    two = choose("two.jsonl", baseline=str(tmp_path / "losses.npy"), take=6)
    assert one == two
    assert choose("early.jsonl", baseline=str(tmp_path / "losses.npy"), take=6, update_times=4, update=2) != one


def _line(record: Path) -> dict[str, Any]:
    return Ledger(record).segments()[0]


def test_methods_without_a_model_pass_choose_as_they_are(choose, tmp_path: Path) -> None:
    rows = choose(component_name="longest", take=0.1)
    assert len(rows) == 4
    answers = sorted((len(row["output"].split()) for row in make_rows(37)), reverse=True)
    assert sorted((len(row["output"].split()) for row in rows), reverse=True) == answers[:4]
    assert len({row["dataflex_row"] for row in choose("random.jsonl", component_name="random", take=20)}) == 20
    assert audit([str(tmp_path / "random.jsonl.record")], False) == 0


def test_listed_rows_are_written_and_a_replay_is_refused(choose, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[9, 2, 30, 4]")
    presets = tmp_path / "presets.yaml"
    listed = {"name": "static", "params": {"path": str(tmp_path / "rows.json")}}
    again = {"name": "replay", "params": {"path": str(tmp_path)}}
    presets.write_text(json.dumps({"listed": listed, "again": again}))
    rows = choose(component_name="listed", components_cfg_file=str(presets), take=3)
    assert [row["dataflex_row"] for row in rows] == [9, 2, 30]
    with pytest.raises(ConfigError, match="replay repeats what another run chose"):
        choose("again.jsonl", component_name="again", components_cfg_file=str(presets))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "delta_loss compares two models"),
        ({"baseline": "nowhere"}, "nowhere"),
        ({"baseline": ".", "component_name": "loss"}, "remove --baseline-from"),
        ({"baseline": "."}, "holds no record of a run"),
        ({"component_name": "static"}, "static chooses nothing"),
        ({"component_name": "random", "take": 38}, "--take asks for 38 samples, but 37 can be drawn"),
        ({"component_name": "random", "update": 3}, "decisions 1 to 2"),
        ({"component_name": "random", "max_steps": 3}, "ends in its warm-up"),
        ({"train_type": "static", "component_name": "random"}, "train_type is not dynamic_select"),
    ],
    ids=str,
)
def test_what_cannot_be_chosen_is_one_sentence_and_leaves_nothing(choose, tmp_path: Path, changes, named) -> None:
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    with pytest.raises(DataFlexError, match=named):
        choose(out_dir=out_dir, **changes)
    assert left_behind(out_dir) == []


def test_a_failure_in_the_middle_leaves_nothing(choose, tmp_path: Path, monkeypatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("dataflex.train.choose.decide", broken)
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    with pytest.raises(RuntimeError, match="in the middle"):
        choose(out_dir=out_dir, component_name="loss")
    assert left_behind(out_dir) == []


def test_a_file_is_replaced_only_when_asked_and_the_old_record_stays(choose, tmp_path: Path) -> None:
    first = choose(component_name="random", take=5)
    with pytest.raises(ConfigError, match="exists; name another file"):
        choose(component_name="random", take=6)
    assert read(tmp_path / "chosen.jsonl") == first
    assert len(choose(component_name="random", take=6, overwrite=True)) == 6
    record = tmp_path / "chosen.jsonl.record"
    assert left_behind(record) == ["dataflex", "dataflex.old-1"]
    assert _line(record)["num_rows"] == 6


def test_other_formats_and_columns_are_read_again_as_they_were(choose, config, tmp_path: Path, capsys) -> None:
    talks = [
        {"talk": [{"who": "me", "what": r["instruction"]}, {"who": "bot", "what": r["output"]}], "n": i}
        for i, r in enumerate(make_rows(20))
    ]
    data = write_data(tmp_path / "data", talks=talks, toy=make_rows(9))
    entry = {
        "file_name": "talks.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "bot"},
    }
    (data / "dataset_info.json").write_text(json.dumps({"talks": entry, "toy": {"file_name": "toy.json"}}))
    with pytest.raises(ConfigError, match="'talks' and 'toy' differ in format"):
        choose(component_name="random", take=4, dataset="talks,toy", dataset_dir=str(data))
    rows = choose(component_name="random", take=4, dataset="talks", dataset_dir=str(data))
    assert [row["talk"] for row in rows] == [talks[row["n"]]["talk"] for row in rows]
    printed = printed_entry(capsys.readouterr().out)
    assert printed == {"chosen": {**entry, "file_name": "chosen.jsonl"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(printed))
    settings = {"component_name": "random", "dataset": "chosen", "dataset_dir": str(tmp_path)}
    again = choose("again.jsonl", take=2, **settings)
    assert [row.keys() for row in again] == [{"talk", "n", "dataflex_row"}] * 2, "our old columns are replaced"
