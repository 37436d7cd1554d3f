"""Rows of .json and .jsonl files."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataflex.core.json_rows import json_lines, read_json


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"q": 1}, {"q": 2}]'),
        ("a.json", '{"q": 1}\n{"q": 2}\n'),  # one row a line under the other ending
        ("a.jsonl", '{"q": 1}\n\n{"q": 2}\n'),
    ],
)
def test_rows_are_read_as_they_stand(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_json(tmp_path / name) == [{"q": 1}, {"q": 2}]


def test_a_line_separator_inside_a_string_ends_no_row() -> None:
    assert json_lines('{"q": "a\u2028b"}\n{"q": "c\x85d"}\n') == ['{"q": "a\u2028b"}', '{"q": "c\x85d"}']


def test_a_list_cut_short_is_blamed_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"q": 1},\n{"q": 2}')
    with pytest.raises(ValueError, match="line 2"):
        read_json(tmp_path / "a.json")
