"""What ``select`` reads from the command line before it loads anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_configs import changed, write_config
from test_cli_main import run

from dataflex.cli.select import parse_take
from dataflex.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "amount"), [(None, None), ("40", 40), ("1", 1), ("0.25", 0.25), ("1.0", 1.0), ("10%", 0.1), ("100%", 1.0)]
)
def test_an_amount_is_rows_or_a_share(text: str | None, amount: float | None) -> None:
    found = parse_take(text)
    assert found == amount
    assert type(found) is type(amount)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "0.0", "200%", "nan", "inf", "half", "", "%", "1e400"])
def test_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--take is"):
        parse_take(text)


@pytest.mark.parametrize(
    ("out", "named"),
    [("x.csv", "must end in .jsonl or .parquet"), ("no/x.jsonl", "does not exist"), ("there.jsonl", "exists")],
)
def test_a_place_that_cannot_be_written_is_refused_first(monkeypatch, capsys, tmp_path: Path, out, named) -> None:
    (tmp_path / "there.jsonl").write_text("{}")
    path = write_config(tmp_path, changed(learning_rat=1))
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(monkeypatch, capsys, "select", path, "--out", str(tmp_path / out))
    assert (code, err.count("\n")) == (2, 1)
    assert named in err
    assert sorted(tmp_path.rglob("*")) == before
