"""Checksum and chain of every line and the seal of run.yaml: verified at each reading, quickly."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataflex.core.errors import LedgerError
from dataflex.ledger.ledger import Ledger
from dataflex.ledger.lines import seal


def begun(output_dir: Path, run_id: str = "a") -> Ledger:
    ledger = Ledger(output_dir)
    ledger.begin({"run_id": run_id, "fingerprint": {"learning_rate": 1e-4}}, {"row": np.arange(4)})
    return ledger


def record(output_dir: Path, num_segments: int = 4, run_id: str = "a") -> Ledger:
    ledger = begun(output_dir, run_id)
    for segment in range(num_segments):
        ledger.append({"segment": segment, "start": segment}, np.array([segment, 3]), {})
    return ledger


def change(ledger: Ledger, edit: Callable[[list[bytes]], list[bytes]]) -> None:
    texts = ledger.path.read_bytes().split(b"\n")[:-1]
    ledger.path.write_bytes(b"".join(text + b"\n" for text in edit(texts)))


EDITS = {
    "the last line edited": (lambda t: [*t[:-1], t[-1].replace(b'"start": 3', b'"start": 2')], 4, "checksum"),
    "a line edited": (lambda t: [t[0], t[1].replace(b'"start": 1', b'"start": 9'), *t[2:]], 2, "checksum"),
    "the checksum edited": (lambda t: [*t[:-1], t[-1][:-3] + b'0"}'], 4, "checksum"),
    "the checksum taken out": (lambda t: [*t[:-1], t[-1][:-81] + b"}"], 4, "checksum is missing"),
    "the first line taken out": (lambda t: t[1:], 1, "not the first line of this run"),
    "a line taken out": (lambda t: [*t[:1], *t[2:]], 2, "does not follow line 1"),
    "two lines swapped": (lambda t: [t[0], t[2], t[1], t[3]], 2, "does not follow line 1"),
    "a line twice": (lambda t: [t[0], t[0], *t[1:]], 2, "does not follow line 1"),
    "a space added": (lambda t: [t[0], t[1].replace(b": ", b":  ", 1), *t[2:]], 2, "checksum"),
}


@pytest.mark.parametrize(("edit", "number", "said"), EDITS.values(), ids=EDITS.keys())
def test_an_edit_is_named_with_its_line_and_a_remedy(tmp_path: Path, edit, number: int, said: str) -> None:
    ledger = record(tmp_path)
    change(ledger, edit)
    for read in (Ledger(tmp_path).lines, Ledger(tmp_path).segments, lambda: Ledger(tmp_path).line_of(0)):
        with pytest.raises(LedgerError, match=said) as caught:
            read()
        assert f"line {number} of {ledger.path}" in str(caught.value)
        assert "overwrite_output_dir: true" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_nothing_is_appended_to_a_damaged_ledger(tmp_path: Path) -> None:
    ledger = record(tmp_path)
    change(ledger, EDITS["a line edited"][0])
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerError, match="line 2"):
        Ledger(tmp_path).rollback(0, "resumed")
    assert ledger.path.read_bytes() == before


def test_the_checksum_is_the_last_key_and_over_the_text_before_it(tmp_path: Path) -> None:
    for text in record(tmp_path).path.read_bytes().split(b"\n")[:-1]:
        content = json.loads(text)
        checksum = content.pop("checksum")
        body = json.dumps(content, ensure_ascii=False).encode()
        assert hashlib.sha256(body).hexdigest() == checksum
        assert text.endswith(b'"checksum": "' + checksum.encode() + b'"}')


def test_a_ledger_of_another_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    mine, other = record(tmp_path / "mine", run_id="a"), record(tmp_path / "other", run_id="b")
    mine.path.write_bytes(other.path.read_bytes())
    with pytest.raises(LedgerError, match=r"line 1 .* belong to another run"):
        Ledger(tmp_path / "mine").lines()


def test_a_path_that_is_no_utf_8_can_be_recorded(tmp_path: Path) -> None:
    ledger = begun(tmp_path)
    ledger.append({"segment": 0, "params": {"path": "scores\udcff.npy"}}, np.array([0]), {})
    assert Ledger(tmp_path).segments()[0]["params"] == {"path": "scores\udcff.npy"}


@pytest.mark.parametrize(
    "text", [b'{"kind": "segment"}', b'{"kind": "rollback"}', b'{"kind": "segment", "segment": []}']
)
def test_a_whole_line_that_names_no_segment_is_damage(tmp_path: Path, text: bytes) -> None:
    ledger = begun(tmp_path)
    ledger.path.write_bytes(seal(json.loads(text), hashlib.sha256(b"a").hexdigest()) + b"\n")
    with pytest.raises(LedgerError, match=r"line 1 .* names no segment"):
        ledger.lines()


def test_deeply_nested_json_is_damage_and_no_crash(tmp_path: Path) -> None:
    ledger = begun(tmp_path)
    ledger.path.write_bytes(b'{"kind": ' + b"[" * 100_000 + b"\n")
    with pytest.raises(LedgerError, match=r"line 1 .* no JSON"):
        ledger.lines()


# what is known is not read again


def test_lines_are_read_once_and_again_when_somebody_else_changed_the_file(tmp_path: Path, monkeypatch) -> None:
    writer = record(tmp_path)
    reader = Ledger(tmp_path)
    reads: list[Path] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), original(path))[1])
    for _ in range(3):
        assert len(reader.lines()) == 4
        assert len(writer.lines()) == 4
    assert reads == [reader.path], "the writer knows what it wrote"
    writer.rollback(2, "resumed")
    assert sorted(reader.segments()) == sorted(writer.segments()) == [0, 1]
    assert reads == [reader.path] * 2
    monkeypatch.undo()
    os.utime(reader.path, ns=(time.time_ns(), time.time_ns() + 10**9))
    change(writer, EDITS["the first line taken out"][0])
    for ledger in (reader, writer):
        with pytest.raises(LedgerError, match="line 1"):
            ledger.lines()


def test_what_append_returns_is_what_a_reader_reads(tmp_path: Path) -> None:
    ledger = begun(tmp_path)
    written = ledger.append({"segment": 0, "params": {"quantiles": (0.1, 0.2), "n": np.int64(3)}}, np.array([0]), {})
    assert written["params"] == {"quantiles": [0.1, 0.2], "n": 3}
    assert ledger.lines() == Ledger(tmp_path).lines() == [written]


def test_a_change_of_the_returned_list_changes_no_record(tmp_path: Path) -> None:
    ledger = record(tmp_path)
    ledger.lines().clear()
    ledger.segments().clear()
    assert len(ledger.lines()) == len(ledger.segments()) == 4


def test_a_decision_costs_the_same_after_ten_thousand_lines(tmp_path: Path, monkeypatch) -> None:
    """Counted in bytes and calls, not in seconds: nothing of the file is read again."""
    ledger = begun(tmp_path)
    previous, texts = hashlib.sha256(b"a").hexdigest(), []
    for segment in range(10_000):
        texts.append(seal({"kind": "segment", "segment": segment, "sha256": {"rows": ""}}, previous))
        previous = hashlib.sha256(texts[-1]).hexdigest()
    ledger.path.write_bytes(b"\n".join(texts) + b"\n")
    assert len(ledger.lines()) == 10_000
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    ledger.append({"segment": 10_000}, np.array([1]), {})
    assert ledger.line_of(9_999) is not None
    assert len(ledger.segments()) == 10_001


# run.yaml


@pytest.mark.parametrize(
    ("old", "new"), [("0.0001", "0.0002"), ("run_id: a", "run_id: b"), ("seal:", "other:"), ("run_id: a", "1: {2: 3}")]
)
def test_an_edited_run_yaml_is_refused_by_all_who_read_it(tmp_path: Path, old: str, new: str) -> None:
    ledger = record(tmp_path)
    path = ledger.root / "run.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    for read in (ledger.run, ledger.run_id, lambda: ledger.update_run({"a": 1})):
        with pytest.raises(
            LedgerError, match=r"run\.yaml is damaged: its checksum|run\.yaml is damaged: it was changed"
        ):
            read()
    assert ledger.claim({}, overwrite=True) == "replace"


def test_values_added_to_run_yaml_are_sealed_too(tmp_path: Path) -> None:
    ledger = record(tmp_path)
    ledger.update_run({"score_batch_tokens": 4096})
    assert Ledger(tmp_path).run()["score_batch_tokens"] == 4096
    assert "seal" not in ledger.run()


def test_a_few_lines_of_aliases_do_not_fill_the_memory(tmp_path: Path) -> None:
    ledger = record(tmp_path)
    bomb = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12))
    (ledger.root / "run.yaml").write_text(bomb)
    with pytest.raises(LedgerError, match="alias"):
        ledger.run()


def test_the_layout_of_run_yaml_is_no_content(tmp_path: Path) -> None:
    ledger = record(tmp_path)
    path = ledger.root / "run.yaml"
    path.write_text("# a comment\n" + path.read_text().replace("run_id: a", "run_id:   'a'"))
    assert ledger.run_id() == "a"
