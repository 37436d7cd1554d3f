"""Scores from a file: every format, and one sentence for everything that is not one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflex.core.errors import ConfigError
from dataflex.signals.file import FINGERPRINT_KEY, read_scores

DIGEST = "d" * 64


def write(path: Path, content) -> str:
    """Write by the ending; bytes as they are, a dict as parquet columns, anything else as its format's array."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".parquet":
        pq.write_table(content if isinstance(content, pa.Table) else pa.table(content), path)
    elif path.suffix == ".npy":
        np.save(path, np.asarray(content), allow_pickle=True)
    else:
        path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ids.npy", np.array([3, 0, 2])),
        ("ids.npy", np.array([3, 0, 2], dtype=np.uint8)),
        ("ids.npy", np.array([3, 0, 2], dtype=">i4")),
        ("ids.json", [3, 0, 2]),
        ("ids.parquet", {"row": [3, 0, 2]}),
        ("ids.parquet", {"row": pa.array([3, 0, 2], pa.uint32()), "other": ["a", "b", "c"]}),
    ],
)
def test_row_ids_are_scores_that_fall_in_the_order_of_the_list(tmp_path: Path, name: str, content) -> None:
    scores_N = read_scores(write(tmp_path / name, content), 4, DIGEST)
    np.testing.assert_array_equal(scores_N, [2, np.nan, 1, 3])
    assert scores_N.dtype == np.float64


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("scores.npy", np.array([0.5, -1, 7], dtype=np.float16)),
        ("scores.npy", np.array([0.5, -1, 7])),
        ("scores.json", [0.5, -1, 7]),
        ("scores.parquet", {"score": [0.5, -1, 7]}),
        ("scores.parquet", {"row": [2, 0, 1], "score": [7, 0.5, -1]}),
    ],
)
def test_fractions_are_scores_one_a_row(tmp_path: Path, name: str, content) -> None:
    np.testing.assert_array_equal(read_scores(write(tmp_path / name, content), 3, DIGEST), [0.5, -1, 7])


def test_rows_with_scores_need_not_be_all_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "some.parquet", {"row": [4, 1], "score": [0.25, None]})
    np.testing.assert_array_equal(read_scores(path, 5, DIGEST), [np.nan, np.nan, np.nan, np.nan, 0.25])


def test_the_data_that_a_parquet_file_names_is_checked(tmp_path: Path) -> None:
    table = pa.table({"row": [0]})
    path = write(tmp_path / "mine.parquet", table.replace_schema_metadata({FINGERPRINT_KEY: DIGEST.encode()}))
    np.testing.assert_array_equal(read_scores(path, 1, DIGEST), [1])
    with pytest.raises(ConfigError, match="made for other data"):
        read_scores(path, 1, "e" * 64)


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, np.arange(3))
    return buffer.getvalue()


BAD = {
    "ids below zero": ("x.json", [0, -1], "names row -1"),
    "ids above the pool": ("x.npy", np.array([0, 3]), "row 3, but the training set has rows 0 to 2"),
    "an id twice": ("x.json", [1, 2, 1], "row 1 more than once"),
    "an id twice in parquet": ("x.parquet", {"row": [2, 2], "score": [1.0, 2.0]}, "row 2 more than once"),
    "too few scores": ("x.npy", np.array([0.5, 1.5]), "2 scores but the training set has 3 rows"),
    "too many scores": ("x.parquet", {"score": [0.1] * 4}, "4 scores"),
    "no scores": ("x.json", [], "0 scores"),
    "a matrix": ("x.npy", np.zeros((3, 1)), "one flat list"),
    "a mapping": ("x.json", {"row": [1]}, "one flat list"),
    "truth values": ("x.json", [True, False, True], "one flat list"),
    "words": ("x.json", ["a", "b", "c"], "one flat list"),
    "an empty place": ("x.json", [1, None, 2], "one flat list"),
    "lists of different length": ("x.json", [[1], [1, 2]], "not a list of rows or scores"),
    "complex numbers": ("x.npy", np.zeros(3, dtype=complex), "one flat list"),
    "pickled objects": ("x.npy", np.array([{}, {}, {}]), "not a list of rows or scores"),
    "another ending": ("x.csv", b"1\n2\n", "its ending is '.csv'"),
    "no ending": ("x", b"1\n2\n", "its ending is ''"),
    "json cut short": ("x.json", b"[1, 2", "not a list of rows or scores"),
    "json in no encoding": ("x.json", b"\xff\xfe\x00[", "not a list of rows or scores"),
    "an empty json": ("x.json", b"", "not a list of rows or scores"),
    "an empty npy": ("x.npy", b"", "x.npy"),
    "npy cut short": ("x.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<i8', 'fort", "x.npy"),
    "an archive named npy": ("x.npy", npz(), "x.npy"),
    "an empty parquet": ("x.parquet", b"", "not a list of rows or scores"),
    "a text named parquet": ("x.parquet", b"PAR1 no PAR1", "not a list of rows or scores"),
    "parquet without our columns": ("x.parquet", {"id": [1], "value": [2.0]}, "only id, value"),
    "fractional row ids": ("x.parquet", {"row": [0.5, 1.0]}, "x.parquet"),
    "an id missing in parquet": ("x.parquet", {"row": [0, None], "score": [1.0, 2.0]}, "x.parquet"),
    "words as ids in parquet": ("x.parquet", {"row": ["a", "b"]}, "x.parquet"),
    "words as scores in parquet": ("x.parquet", {"score": ["a", "b", "c"]}, "x.parquet"),
    "words as scores of rows": ("x.parquet", {"row": [0, 1], "score": ["a", "b"]}, "x.parquet"),
    "lists as scores": ("x.parquet", {"score": [[1.0], [2.0], [3.0]]}, "x.parquet"),
}


@pytest.mark.parametrize(("name", "content", "said"), BAD.values(), ids=BAD.keys())
def test_everything_else_is_one_sentence(tmp_path: Path, name: str, content, said: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ConfigError) as caught:
        read_scores(path, 3, DIGEST)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nested_far_beyond_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "deep.json", b"[" * 100_000)
    with pytest.raises(ConfigError):
        read_scores(path, 3, DIGEST)


@pytest.mark.parametrize("ending", ["npy", "json", "parquet"])
def test_a_missing_file_is_named(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ConfigError, match=f"nothing.{ending}.* cannot be read") as caught:
        read_scores(str(tmp_path / f"nothing.{ending}"), 3, DIGEST)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["npy", "json"])
def test_a_directory_is_no_file(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"folder.{ending}").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_scores(str(tmp_path / f"folder.{ending}"), 3, DIGEST)
