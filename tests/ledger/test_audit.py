"""The audit finds every planted damage and names its place, never stops at the first and never raises."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from audited_runs import damages, edit_texts, everything_found
from planted_in_files import DAMAGED_FILES
from planted_in_lines import DAMAGED_LINES
from planting import flip, root, segments, signals

from dataflex.ledger.audit import audit
from dataflex.ledger.ledger import Ledger
from dataflex.ledger.run_file import write_run
from dataflex.ledger.summary import summary

DAMAGES = {**DAMAGED_LINES, **DAMAGED_FILES}


@pytest.mark.parametrize(("record", "plant", "where", "said"), DAMAGES.values(), ids=DAMAGES.keys())
def test_planted_damage_is_named(records: Path, tmp_path: Path, record: str, plant, where: str, said: str) -> None:
    run = tmp_path / "runs" / record
    shutil.copytree(records / record, run)
    shutil.copy(records / "other" / "dataflex" / "ledger.jsonl", tmp_path / "records-other.jsonl")
    plant(run)
    found = damages(run)
    named = [finding for finding in found if finding.where.startswith(where) and re.search(said, finding.sentence)]
    assert named, f"found only:\n{chr(10).join(map(str, found)) or 'nothing'}"
    for finding in found:
        assert "\n" not in finding.sentence
        assert finding.sentence


def test_there_are_many_kinds_of_damage() -> None:
    assert len(DAMAGES) >= 24


# the audit never stops and never raises


def test_all_of_many_damages_are_named(records: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(records / "whole", run)
    (root(run) / segments(3)).unlink()
    flip(root(run) / signals(4), 2)
    edit_texts(run, lambda t: [*t[:1], t[1].replace(b"first", b"First"), *t[2:]])
    (root(run) / "rows.parquet").write_bytes(b"")
    places = {finding.where for finding in damages(run)}
    assert {segments(3), signals(4), "ledger.jsonl line 2", "rows.parquet"} <= places


@pytest.mark.parametrize("name", ["run.yaml", "rows.parquet", "ledger.jsonl", segments(2), signals(2), signals(4)])
def test_no_flipped_byte_and_no_cut_makes_the_audit_raise(records: Path, tmp_path: Path, name: str) -> None:
    """A flip of a byte that is no content (of a parquet file's own statistics) may be found or not."""
    run = tmp_path / "run"
    shutil.copytree(records / "whole", run)
    path = root(run) / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(whole), size=min(40, len(whole)), replace=False):
        data = bytearray(whole)
        data[position] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(data))
        found = everything_found(run)
        if name in ("run.yaml", "ledger.jsonl", "rows.parquet"):
            assert found, f"byte {position}"
        path.write_bytes(whole[:position])
        assert everything_found(run), f"cut at {position}"


JSON_VALUES = [None, True, -1, "x", [1], {"a": []}, 2**70, float("nan")]


def test_no_value_in_a_line_makes_the_audit_raise(records: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(records / "whole", run)
    lines = [json.loads(text) for text in Ledger(run).path.read_bytes().split(b"\n")[:-1]]
    for number in (4, 6):
        for key in lines[number]:
            for value in JSON_VALUES:
                changed = json.dumps({**lines[number], key: value}).encode()
                edit_texts(run, lambda t, n=number, c=changed: [*t[:n], c, *t[n + 1 :]])
                found = audit(Ledger(run))
                assert found.findings, f"{key}: {value}"
                summary(found)


def test_no_value_in_run_yaml_makes_the_audit_raise(records: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(records / "whole", run)
    content = yaml.safe_load((root(run) / "run.yaml").read_text())
    content.pop("seal")
    places = [(key,) for key in content] + [
        (key, inner) for key, value in content.items() if isinstance(value, dict) for inner in value
    ]
    for place in places:
        for value in (None, -1, "x", {"a": []}, 2**70):
            changed = json.loads(json.dumps(content))
            target = changed if len(place) == 1 else changed[place[0]]
            target[place[-1]] = value
            write_run(root(run) / "run.yaml", changed, None)
            everything_found(run)
            summary(audit(Ledger(run)))
