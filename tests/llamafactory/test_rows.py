"""rows.parquet names the raw row of every sample, though LLaMA-Factory drops columns and bad rows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.llamafactory.conftest import make_rows, train, write_data


@pytest.fixture
def mixed_data(tmp_path: Path) -> tuple[Path, dict[str, list[dict]]]:
    """Two data sets; every fifth row of the first has no answer and is dropped."""
    first = [{**row, "source": f"web {i}", "nested": {"a": i}} for i, row in enumerate(make_rows(23))]
    for row in first[::5]:
        row["output"] = None  # type: ignore[assignment]
    second = [{**row, "weight": i / 2, "task": i} for i, row in enumerate(make_rows(11, seed=5))]
    sets = {"first": first, "second": second}
    return write_data(tmp_path / "data", **sets), sets


@pytest.mark.parametrize(
    "changes",
    [{}, {"max_samples": 8}, {"val_size": 0.3}, {"preprocessing_num_workers": 2}, {"mix_strategy": "interleave_over"}],
    ids=str,
)
def test_every_sample_is_traced_to_its_raw_row(config, tmp_path: Path, mixed_data, changes: dict) -> None:
    folder, sets = mixed_data
    settings = config(
        dataset="first,second",
        dataset_dir=str(folder),
        component_name="random",
        warmup_step=0,
        update_step=1,
        **changes,
    )
    run = train(settings, tmp_path)
    rows = pd.read_parquet(run / "dataflex" / "rows.parquet")
    assert rows["row"].tolist() == list(range(len(rows)))
    if not changes:
        assert len(rows) == 23 - 5 + 11
    if "max_samples" in changes:
        assert rows.groupby("dataset").size().to_dict() == {"first": 6, "second": 8}
    for row in rows.itertuples():
        raw = sets[row.dataset][row.source_row]
        assert raw["output"] is not None, "dropped rows are not in the table"
        assert row.excerpt == f"{raw['instruction']} → {raw['output']}"
        assert row.task == str(raw["task"]), "kept columns; mixed types become text"
        assert row.num_label_tokens == len(raw["output"].split()) + 1, "the answer's words and the end of sequence"
        if row.dataset == "first":
            assert row.source == raw["source"]
            assert pd.isna(row.weight)
        else:
            assert row.weight == raw["weight"]
    assert "nested" not in rows.columns


def test_a_subset_of_a_data_set_keeps_the_row_numbers_of_the_file(config, tmp_path: Path) -> None:
    import json

    raw = make_rows(30)
    folder = write_data(tmp_path / "data", toy=raw)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["toy"]["num_samples"] = 12  # a random subset
    (folder / "dataset_info.json").write_text(json.dumps(info))
    run = train(config(dataset_dir=str(folder), component_name="random", warmup_step=0, update_step=1), tmp_path)
    rows = pd.read_parquet(run / "dataflex" / "rows.parquet")
    assert len(rows) == 12
    assert rows["source_row"].tolist() != list(range(12))
    for row in rows.itertuples():
        assert row.excerpt == f"{raw[row.source_row]['instruction']} → {raw[row.source_row]['output']}"


def test_the_files_open_without_us(config, tmp_path: Path) -> None:
    run = train(config(), tmp_path) / "dataflex"
    lines = pd.read_json(run / "ledger.jsonl", lines=True)
    assert lines.iloc[-1][["kind", "step"]].tolist() == ["end", 7]
    ledger = lines[lines["kind"] == "segment"]
    assert ledger["decision"].tolist() == ["warm-up", "first", "guided"]
    segment = pd.read_parquet(run / "segments" / "000002.parquet")
    table = pd.read_parquet(run / "signals" / "000002.parquet")
    assert {"row", "loss", "delta", "rank", "in_window", "weight", "times_trained"} <= set(table.columns)
    assert (table["times_trained"].sum()) == ledger["num_rows"][:2].sum()
    merged = segment.merge(pd.read_parquet(run / "rows.parquet"), on="row")
    assert len(merged) == ledger["num_rows"][2] == 2 * 4
    inside = table.set_index("row").loc[segment["row"], "in_window"].sum()
    assert inside == ledger["notes"][2]["num_from_window"]
