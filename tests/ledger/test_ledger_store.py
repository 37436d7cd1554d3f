"""The ledger: what was written is what is read, by us and by others, and what was changed since is noticed."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.core.errors import LedgerError
from dataflex.ledger.files import array_digest
from dataflex.ledger.ledger import Ledger

ROWS = {"row": np.arange(6), "num_tokens": np.arange(6) + 3, "excerpt": ["a → b", "", "ü", "x", "y", "z"]}
COLUMNS = {
    "row": np.arange(6),
    "loss": np.array([1.5, np.nan, -0.0, 0.0, np.inf, 2], dtype=np.float32),
    "delta": np.array([0.1, np.nan, -0.0, 0.0, -np.inf, 1e-300]),
    "rank": np.array([5, -1, 0, 1, 2, 3]),
    "in_window": np.array([True, False, True, True, False, False]),
    "times_trained": np.zeros(6, dtype=np.int32),
}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path)
    ledger.begin({"fingerprint": {"learning_rate": 1e-4}}, ROWS)
    return ledger


def append(ledger: Ledger, segment: int, rows=(3, 1, 2), columns=None, **fields) -> dict:
    line = {"segment": segment, "start": segment * 2, "stop": segment * 2 + 2, **fields}
    return ledger.append(line, np.array(rows, dtype=np.int64), COLUMNS if columns is None else columns)


def test_what_was_recorded_is_read_back(ledger: Ledger) -> None:
    written = append(ledger, 0, rows=[3, 3, 1], note="ü → \n \x00")
    again = Ledger(ledger.root.parent)
    assert again.segments() == {0: written}
    assert again.lines() == [written]
    assert again.rows_of(written).tolist() == [3, 3, 1]
    signals = again.signals_of(written)
    assert list(signals) == list(COLUMNS)
    for name, values in COLUMNS.items():
        assert signals[name].dtype == values.dtype
        assert signals[name].tobytes() == values.tobytes(), name


def test_a_segment_without_columns_has_none(ledger: Ledger) -> None:
    line = append(ledger, 0, columns={})
    assert ledger.signals_of(line) == {}
    assert not list((ledger.root / "signals").iterdir())


def test_an_empty_segment(ledger: Ledger) -> None:
    assert ledger.rows_of(append(ledger, 0, rows=[])).tolist() == []


@pytest.mark.parametrize("dtype", [np.int32, np.int16, np.uint32, np.uint64])
def test_rows_of_another_integer_type_are_read_back(ledger: Ledger, dtype: type) -> None:
    line = ledger.append({"segment": 0}, np.array([2, 0, 1], dtype=dtype), {})
    assert ledger.rows_of(line).tolist() == [2, 0, 1]


def test_every_nan_is_read_back(ledger: Ledger) -> None:
    """inf - inf is the negative one on most machines, np.nan the positive one."""
    column = np.array([np.nan, -np.nan, 1.0, np.nan, -np.nan, 0.0])
    line = append(ledger, 0, columns={"delta": column})
    assert np.isnan(ledger.signals_of(line)["delta"]).tolist() == np.isnan(column).tolist()


def test_a_column_of_words_is_read_back_or_refused_before_its_line(ledger: Ledger) -> None:
    columns = {"domain": np.array(["code", "math", "code", "web", "web", "math"])}
    try:
        line = append(ledger, 0, columns=columns)
    except LedgerError:
        assert ledger.lines() == []
        return
    assert ledger.signals_of(line)["domain"].tolist() == columns["domain"].tolist()


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n", "\ufeff", "🦊"])
def test_a_character_that_some_take_for_the_end_of_a_line_is_none(ledger: Ledger, character: str) -> None:
    written = append(ledger, 0, params={"path": f"scores{character}.npy"})
    append(ledger, 1)
    assert ledger.segments()[0] == written
    assert len(ledger.lines()) == 2
    assert len(ledger.path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_does_not_have_is_refused_and_nothing_is_recorded(ledger: Ledger, value: float) -> None:
    before = ledger.path.read_bytes() if ledger.path.exists() else b""
    with pytest.raises((LedgerError, ValueError)):
        append(ledger, 0, notes={"tau": value})
    assert (ledger.path.read_bytes() if ledger.path.exists() else b"") == before
    assert ledger.segments() == {}


def test_numpy_numbers_in_a_line_are_numbers_and_other_objects_are_refused(ledger: Ledger) -> None:
    append(ledger, 0, notes={"num_scored": np.int64(3), "share": np.float32(0.5)})
    assert ledger.segments()[0]["notes"] == {"num_scored": 3, "share": 0.5}
    with pytest.raises(LedgerError, match="notes must be JSON values"):
        append(ledger, 1, notes={"rows": {1, 2}})
    assert list(ledger.segments()) == [0]


def test_columns_of_different_length_are_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="differ in length"):
        append(ledger, 0, columns={"row": np.arange(3), "loss": np.zeros(2)})
    assert ledger.lines() == []


# lines


def test_a_segment_in_force_is_not_recorded_with_other_rows(ledger: Ledger) -> None:
    """Its arrays would be overwritten before the new line stands."""
    line = append(ledger, 0, rows=[0])
    assert append(ledger, 0, rows=[0]) == line, "the same again changes nothing"
    with pytest.raises(LedgerError, match="roll it back"):
        append(ledger, 0, rows=[5, 4])
    assert ledger.rows_of(ledger.segments()[0]).tolist() == [0]
    assert len(ledger.lines()) == 1


def test_a_rollback_cancels_from_its_segment_on_and_what_follows_counts(ledger: Ledger) -> None:
    for segment in range(4):
        append(ledger, segment)
    ledger.rollback(2, "resumed from step 4")
    assert sorted(ledger.segments()) == [0, 1]
    append(ledger, 2, decision="again")
    assert sorted(ledger.segments()) == [0, 1, 2]
    assert ledger.segments()[2]["decision"] == "again"
    ledger.rollback(0, "starts again")
    assert ledger.segments() == {}
    assert [line["kind"] for line in ledger.lines()] == ["segment"] * 4 + ["rollback", "segment", "rollback"]
    assert ledger.lines()[4]["reason"] == "resumed from step 4"


def test_a_rollback_beyond_the_last_segment_cancels_nothing(ledger: Ledger) -> None:
    append(ledger, 0)
    ledger.rollback(1, "nothing")
    assert sorted(ledger.segments()) == [0]


@given(st.lists(st.tuples(st.sampled_from(["segment", "rollback"]), st.integers(0, 4)), max_size=12))
def test_lines_in_force_are_those_of_a_plain_replay(tmp_path_factory: pytest.TempPathFactory, events) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("run"))
    ledger.root.mkdir()
    wanted: dict[int, int] = {}
    for number, (kind, segment) in enumerate(events):
        if kind == "segment":
            ledger._append({"kind": kind, "segment": segment, "number": number})
            wanted[segment] = number
        else:
            ledger.rollback(segment, "")
            wanted = {k: v for k, v in wanted.items() if k < segment}
    assert {k: line["number"] for k, line in ledger.segments().items()} == wanted


def test_each_line_names_the_one_before(ledger: Ledger) -> None:
    append(ledger, 0)
    ledger.rollback(0, "ü")
    append(ledger, 0)
    raw = ledger.path.read_bytes().split(b"\n")[:-1]
    before = [b"", *raw[:-1]]
    assert [line["previous"] for line in ledger.lines()] == [hashlib.sha256(text).hexdigest() for text in before]


def test_a_new_ledger_is_empty(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "nowhere")
    assert not ledger.exists()
    assert ledger.lines() == []
    assert ledger.segments() == {}


# damage


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"{no json}\n", "line 2 of"),
        (b"[1]\n", "no 'kind'"),
        (b'"segment"\n', "no 'kind'"),
        (b'{"segment": 1}\n', "no 'kind'"),
        (b"\xff\xfe\n", "line 2 of"),
        (b"\x00\x00\x00\n", "line 2 of"),
        (b"\n", "line 2 of"),
    ],
)
def test_a_damaged_line_is_named(ledger: Ledger, bad: bytes, said: str) -> None:
    append(ledger, 0)
    with open(ledger.path, "ab") as file:
        file.write(bad)
    with pytest.raises(LedgerError, match=said) as caught:
        ledger.segments()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["segments", "signals"])
def test_an_edited_array_is_noticed_and_its_file_named(ledger: Ledger, which: str) -> None:
    line = append(ledger, 3)
    path = ledger.root / which / "000003.parquet"
    table = pq.read_table(path).to_pandas()
    table.loc[0, "row"] = 5
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)
    read = ledger.rows_of if which == "segments" else ledger.signals_of
    with pytest.raises(LedgerError, match=rf"{which}.000003\.parquet") as caught:
        read(line)
    assert "\n" not in str(caught.value)


def test_swapped_rows_are_an_edit(ledger: Ledger) -> None:
    line = append(ledger, 0, rows=[1, 2, 3])
    path = ledger.root / "segments" / "000000.parquet"
    pq.write_table(pa.table({"position": [0, 1, 2], "row": [2, 1, 3]}), path)
    with pytest.raises(LedgerError, match="000000"):
        ledger.rows_of(line)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other columns"])
@pytest.mark.parametrize("which", ["segments", "signals"])
def test_a_missing_or_damaged_array_is_named(ledger: Ledger, which: str, damage: str) -> None:
    line = append(ledger, 0)
    path = ledger.root / which / "000000.parquet"
    if damage == "missing":
        path.unlink()
    elif damage == "other columns":
        pq.write_table(pa.table({"else": [1]}), path)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 100])
    read = ledger.rows_of if which == "segments" else ledger.signals_of
    with pytest.raises(LedgerError, match=rf"{which}.000000\.parquet"):
        read(line)


def test_rewriting_the_same_numbers_with_another_writer_is_no_edit(ledger: Ledger) -> None:
    line = append(ledger, 0)
    for which in ("segments", "signals"):
        path = ledger.root / which / "000000.parquet"
        pq.write_table(pq.read_table(path), path, compression="none", use_dictionary=False, version="1.0")
    assert ledger.rows_of(line).tolist() == [3, 1, 2]
    assert set(ledger.signals_of(line)) == set(COLUMNS)


def test_the_digest_is_of_names_types_shapes_and_order() -> None:
    values = np.arange(6, dtype=np.int64)
    digests = {
        array_digest({"row": values}),
        array_digest({"rows": values}),
        array_digest({"row": values.astype(np.int32)}),
        array_digest({"row": values.astype(np.float64)}),
        array_digest({"row": values.reshape(2, 3)}),
        array_digest({"row": values[::-1]}),
        array_digest({"row": values, "x": values}),
        array_digest({"x": values, "row": values}),
        array_digest({}),
    }
    assert len(digests) == 9
    assert array_digest({"row": np.arange(12)[::2] // 2}) == array_digest({"row": values}), "strides do not count"


# for others to read


def test_pandas_and_plain_pyarrow_read_everything(ledger: Ledger) -> None:
    append(ledger, 0, rows=[4, 0])
    chosen = pd.read_parquet(ledger.root / "segments" / "000000.parquet")
    assert chosen.to_dict("list") == {"position": [0, 1], "row": [4, 0]}
    signals = pd.read_parquet(ledger.root / "signals" / "000000.parquet")
    assert list(signals.columns) == list(COLUMNS)
    assert math.isnan(signals.loc[1, "loss"])
    assert signals["in_window"].tolist() == COLUMNS["in_window"].tolist()
    rows = pq.read_table(ledger.root / "rows.parquet").to_pydict()
    assert rows["excerpt"] == ROWS["excerpt"]
    assert rows["row"] == list(range(6))
    lines = pd.read_json(ledger.path, lines=True)
    assert lines["segment"].tolist() == [0]
    merged = signals.merge(pd.read_parquet(ledger.root / "rows.parquet"), on="row")
    assert len(merged) == 6


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(
        ["1e-4", "yes", "null", "~", "2024-01-01", "0x1F", "1_000", "<<", "=", "- a", "a: b", "${x}", ""]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc-:# \n", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcdef_", min_size=1), json_values, max_size=4))
def test_run_yaml_round_trips(tmp_path_factory: pytest.TempPathFactory, config: dict) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("run"))
    ledger.begin({"config": config, "again": config}, {"row": [0]})
    assert ledger.run() == {"config": config, "again": config}
    assert json.dumps(ledger.run()["config"], sort_keys=True) == json.dumps(config, sort_keys=True), "types stay"


def test_one_object_in_two_places_is_written_out_twice(ledger: Ledger) -> None:
    shared = {"a": [1, 2]}
    ledger.begin({"x": shared, "y": shared}, ROWS)
    text = (ledger.root / "run.yaml").read_text(encoding="utf-8")
    assert "&" not in text
    assert "*" not in text


# claiming

FINGERPRINT = {"learning_rate": 1e-4, "data": "d" * 64, "params": {"window_size": 0.2, "path": None}, "num_rows": 6}


def started(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path)
    ledger.begin({"fingerprint": FINGERPRINT}, ROWS)
    return ledger


def test_an_empty_directory_is_new_whatever_overwrite_says(tmp_path: Path) -> None:
    for overwrite in (False, True):
        assert Ledger(tmp_path).claim(FINGERPRINT, overwrite=overwrite) == "new"
    (tmp_path / "checkpoint-1").mkdir()
    assert Ledger(tmp_path).claim(FINGERPRINT, overwrite=False) == "new"


def test_the_same_run_continues_or_is_replaced_and_claiming_writes_nothing(tmp_path: Path) -> None:
    started(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert Ledger(tmp_path).claim(dict(FINGERPRINT), overwrite=False) == "continue"
    assert Ledger(tmp_path).claim({"learning_rate": 1}, overwrite=True) == "replace"
    assert sorted(tmp_path.rglob("*")) == before


def test_another_run_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    started(tmp_path)
    other = {**FINGERPRINT, "learning_rate": 2e-4, "extra": 1}
    with pytest.raises(LedgerError) as caught:
        Ledger(tmp_path).claim(other, overwrite=False)
    said = str(caught.value)
    assert "learning_rate (0.0001 then, 0.0002 now)" in said
    assert "extra (None then, 1 now)" in said
    assert "num_rows" not in said
    assert "overwrite_output_dir: true" in said
    assert "\n" not in said


def test_of_many_differences_three_are_named(tmp_path: Path) -> None:
    started(tmp_path)
    with pytest.raises(LedgerError, match=r"and 2 more"):
        Ledger(tmp_path).claim({**FINGERPRINT, **dict.fromkeys("abcde", 1)}, overwrite=False)


@pytest.mark.parametrize("content", ["", "[1]", "{", "fingerprint: null", "fingerprint: [1]", "fingerprint: text"])
def test_a_damaged_run_yaml_is_a_sentence_and_can_be_moved_aside(tmp_path: Path, content: str) -> None:
    ledger = started(tmp_path)
    (ledger.root / "run.yaml").write_text(content)
    with pytest.raises(LedgerError) as caught:
        ledger.claim(FINGERPRINT, overwrite=False)
    assert len(" ".join(str(caught.value).split())) > 20
    assert ledger.claim(FINGERPRINT, overwrite=True) == "replace"


def test_a_ledger_without_run_yaml_is_no_new_directory(tmp_path: Path) -> None:
    ledger = started(tmp_path)
    append(ledger, 0)
    (ledger.root / "run.yaml").unlink()
    assert ledger.exists()
    with pytest.raises(LedgerError, match=r"run\.yaml"):
        ledger.claim(FINGERPRINT, overwrite=False)
    assert ledger.claim(FINGERPRINT, overwrite=True) == "replace"


def test_records_moved_aside_are_numbered_and_keep_everything(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        ledger = started(tmp_path)
        append(ledger, 0, note=number)
        assert ledger.move_aside() == tmp_path / f"dataflex.old-{number}"
        assert not ledger.exists()
    for number in (1, 2, 3):
        old = Ledger(tmp_path, directory=f"dataflex.old-{number}")
        assert old.segments()[0]["note"] == number
        assert old.rows_of(old.segments()[0]).tolist() == [3, 1, 2]


def test_a_gap_in_the_numbers_is_never_an_overwrite(tmp_path: Path) -> None:
    (tmp_path / "dataflex.old-2").mkdir()
    (tmp_path / "dataflex.old-1").write_text("a file of the user's")
    started(tmp_path).move_aside()
    assert (tmp_path / "dataflex.old-3" / "run.yaml").exists()
    assert not list((tmp_path / "dataflex.old-2").iterdir())
